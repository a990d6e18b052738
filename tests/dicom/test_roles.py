"""Each series of a study gets its role, with a rule and a reason, in 40 naming schemes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from app.dicom.instance import read_instance
from app.dicom.roles import Choice, choose, judge
from app.dicom.stacks import Stack, make_stacks
from app.phantoms import dicom_series, dicom_study
from app.phantoms.dicom_series import SeriesPlan
from app.sdk.errors import InvalidDicom
from app.sdk.series import SeriesRole

SCHEMES = list(dicom_study.naming_schemes())
SMALL = ("en-siemens", "de-kurz", "fr-siemens", "es-corto", "code-mixed", "h-code")


def study(plans: list[SeriesPlan], seed: int = 0) -> tuple[list[Choice], dict[str, SeriesPlan]]:
    instances, truth = [], {}
    for one in plans:
        made = dicom_series.instances(one, seed, len(instances))
        instances += made
        truth[made[0].series.uid] = one
    return choose(make_stacks(instances)), truth


@pytest.mark.parametrize("scheme", SMALL)
def test_every_series_of_a_study_gets_its_role(scheme: str) -> None:
    plans = dicom_study.draw_study(SCHEMES.index(scheme), scheme)
    choices, truth = study(plans)
    for choice in choices:
        assert {truth[uid].truth for uid in choice.stack.series} == {choice.role.value}, choice.rule
        assert choice.rule
        assert choice.reason.endswith(".")
    assert sum(choice.used for choice in choices) == len({choice.role for choice in choices} - {SeriesRole.OTHER})


def test_there_are_forty_schemes_in_four_languages_and_codes() -> None:
    assert len(SCHEMES) == 40
    assert {scheme[:2] for scheme in SCHEMES} >= {"en", "de", "fr", "es", "co"}


def test_instances_in_memory_are_those_of_the_files() -> None:
    for one in dicom_study.draw_study(3, "fr-ge"):
        written = read_instance(next(dicom_series.files(one, 3)), 0)
        made = dicom_series.instances(one, 3)[0]
        assert made.series == written.series
        if made.frames and made.frames[0].down != pytest.approx(written.frames[0].down):
            pytest.fail("directions differ")
        rounded = [replace(each, down=None, across=None) for each in (*made.frames, *written.frames)]
        assert len(set(map(repr, rounded))) <= 1


def test_every_written_file_says_that_it_is_synthetic() -> None:
    for one in dicom_study.draw_study(1, "en-ge"):
        content = next(dicom_series.files(one, 1))
        assert b"SYNTHETIC^PHANTOM" in content


def test_thin_soft_original_series_of_the_whole_head_is_preferred() -> None:
    plans = [one for one in dicom_study.draw_study(0, "en-ge") if one.truth == "ncct"]
    choices, truth = study(plans)
    used = next(choice for choice in choices if choice.used)
    assert truth[used.stack.facts.uid].description == "0.625mm Head Plain"


def head(description: str, **changes: object) -> Stack:
    one = next(each for each in dicom_study.draw_study(0, "en-ge") if each.description == "0.625mm Head Plain")
    changed = replace(one, description=description, protocol="", **changes)
    return make_stacks(dicom_series.instances(changed, 0))[0]


@pytest.mark.parametrize(
    ("description", "changes", "role", "rule"),
    [
        ("CTA Head", {}, "cta", "words-cta"),
        ("Head without contrast", {"contrast": "Iomeprol"}, "ncct", "words-ncct"),
        ("Head with contrast", {}, "other", "after-contrast"),
        ("CBF<30%", {"image_type": ("DERIVED", "PRIMARY")}, "other", "threshold-picture"),
        ("CBF [ml/100g/min]", {"image_type": ("DERIVED", "PRIMARY")}, "cbf", "words-map"),
        ("something", {"image_type": ("DERIVED", "PRIMARY")}, "other", "derived-unnamed"),
        ("Vessel mask", {"image_type": ("DERIVED", "PRIMARY")}, "vessels", "words-mask"),
        ("CTA bone removed", {}, "other", "processed"),
        ("Thorax", {"body_part": "CHEST"}, "other", "other-region"),
        ("Head iDose 4", {}, "ncct", "no-contrast-agent"),
        ("", {"modality": "MR"}, "other", "other-modality"),
    ],
)
def test_rule_decides(description: str, changes: dict[str, object], role: str, rule: str) -> None:
    choice = judge(head(description, **changes))
    assert (choice.role.value, choice.rule) == (role, rule)


def test_head_without_any_word_is_doubtful() -> None:
    assert not judge(head("", body_part="")).certain
    assert judge(head("", body_part="HEAD")).certain


@pytest.mark.parametrize(
    ("start_s", "timed", "role", "rule"),
    [
        (0.0, True, "ncct", "no-contrast-agent"),
        (900.0, True, "other", "after-contrast"),
        (900.0, False, "ncct", "no-contrast-agent"),  # doubtful
    ],
)
def test_head_without_words_after_an_angiography_is_no_ncct(start_s: float, timed: bool, role: str, rule: str) -> None:
    angiography = head("CTA Head", number=1, start_s=600.0)
    after = head("HD_P_5", number=2, start_s=start_s)
    if not timed:
        after = replace(after, frames=tuple(replace(each, times_s={}) for each in after.frames))
    choices = choose([angiography, after])
    assert [(each.role.value, each.rule) for each in choices] == [("cta", "words-cta"), (role, rule)]
    assert choices[1].certain == timed


@pytest.mark.parametrize(
    ("start_s", "bottom", "role"),
    [(20.0, 0.0, "other"), (3.0, 0.0, "cta"), (20.0, -400.0, "cta")],  # a phase, a reconstruction, another region
)
def test_later_angiography_of_the_same_region_is_a_late_phase(start_s: float, bottom: float, role: str) -> None:
    first = head("CTA Head", number=1, start_s=0.0)
    positions = np.add([frame.position for frame in first.frames], [0.0, 0.0, bottom])
    second = head("CTA Head gec faz", number=2, start_s=start_s, positions=positions)
    later = choose([first, second])[1]
    assert later.role.value == role
    assert later.rule == ("late-phase" if role == "other" else "words-cta")


@pytest.mark.parametrize(
    ("start_s", "agent", "role"), [(0.0, "", "ncct"), (900.0, "", "other"), (0.0, "Iomeprol", "other")]
)
def test_unknown_word_for_without_is_a_doubt_and_not_a_loss(start_s: float, agent: str, role: str) -> None:
    """Before any contrast agent is given, a head cannot be enhanced; "kontrastsiz" is Turkish for without contrast."""
    doubted = head("Beyin kontrastsiz kontrast", number=1, start_s=start_s, contrast=agent)
    choices = choose([doubted, head("CTA Head", number=2, start_s=600.0)])
    assert choices[0].role.value == role
    assert choices[0].rule == ("before-contrast" if role == "ncct" else "after-contrast")
    assert not choices[0].certain or role == "other"


def test_head_after_contrast_is_no_ncct_beside_one() -> None:
    plain, contrast = head("Head plain", number=1), head("Head with contrast", number=2, start_s=60.0)
    choices = choose([plain, contrast, head("CTA Head", number=3, start_s=600.0)])
    assert [each.role.value for each in choices] == ["ncct", "other", "cta"]


def test_caller_may_state_the_role_by_number_or_uid() -> None:
    stacks = [head("something", image_type=("DERIVED", "PRIMARY"))]
    for name in (stacks[0].facts.uid, str(stacks[0].facts.number)):
        choice = choose(stacks, {name: SeriesRole.NCCT})[0]
        assert (choice.role, choice.rule, choice.used) == (SeriesRole.NCCT, "stated", True)
    with pytest.raises(InvalidDicom, match="names no series"):
        choose(stacks, {"999": SeriesRole.NCCT})


def test_reason_holds_no_text_of_the_header() -> None:
    choice = judge(head("CTA Head CANARYNAME"))
    assert "CANARY" not in choice.summary().model_dump_json()
