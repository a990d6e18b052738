"""Patients that a version was trained on are found by hashes, one by one, and no id is stored."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from app.registry.manifest import Manifest
from app.training import splits, training_overlap
from app.training.cohort import Cohort
from app.training.dataset import Dataset
from app.training.errors import CohortFault
from tests.training.test_input_checks import small

SHIPPED = Path(__file__).resolve().parents[2] / "model_store" / "rlvo-synthetic" / "1.0.0" / "manifest.json"


def version(*cohorts: tuple[Cohort, Dataset], data_sha256: str = "") -> Manifest:
    """A version that was trained on the cohorts, or an older one without hashes."""
    manifest = Manifest.model_validate_json(SHIPPED.read_bytes())
    training = manifest.training.model_copy(update={"data_sha256": data_sha256})
    extra = {training_overlap.EXTRA: [training_overlap.hashes(*one) for one in cohorts]} if cohorts else {}
    plain = manifest.model_copy(update={"training": training, "extra": extra})
    return Manifest.model_validate_json(plain.model_dump_json())


def named(*patients: tuple[str, str]) -> tuple[Cohort, Dataset]:
    """A cohort of (patient, digest of the NCCT) pairs."""
    cohort, data = small(*({"ncct": image} for _, image in patients))
    rows = tuple(replace(study, patient=name) for study, (name, _) in zip(cohort.studies, patients, strict=True))
    return replace(cohort, studies=rows), data


TRAINED = named(("ana", "i1"), ("ben", "i2"), ("eva", "i3"))


@pytest.mark.parametrize(
    ("cohort", "rows"),
    [
        (named(("ana", "i1"), ("ben", "i2"), ("eva", "i3")), "2-4"),
        (named(("x", "new"), ("ben", "other"), ("y", "newer")), "3"),  # one patient, other images
        (named(("x", "new"), ("y", "newer"), ("z", "i3")), "4"),  # one image, under another id
    ],
)
def test_shared_patient_or_image_is_refused_with_its_row(cohort: tuple[Cohort, Dataset], rows: str) -> None:
    with pytest.raises(CohortFault, match=rf"rows {rows}\).*--i-know"):
        training_overlap.check(version(TRAINED), *cohort, accept=False)
    assert "say nothing about new patients" in training_overlap.check(version(TRAINED), *cohort, accept=True)


def test_other_patients_pass() -> None:
    assert not training_overlap.check(version(TRAINED), *named(("dan", "i4"), ("mia", "i5")), accept=False)
    empty = small({"ncct": "constant 0.0"}, {"vessels": "i1"})
    assert not training_overlap.check(version(TRAINED), *empty, accept=False)


def part_of(trained: tuple[Cohort, Dataset], test: list[int]) -> Manifest:
    """A version whose test part has the rows ``test``."""
    manifest = version(trained)
    extra = {training_overlap.EXTRA: [training_overlap.hashes(*trained, np.array(test))]}
    return Manifest.model_validate_json(manifest.model_copy(update={"extra": extra}).model_dump_json())


def test_patient_of_the_test_part_is_noted_and_not_refused() -> None:
    note = training_overlap.check(part_of(TRAINED, [2]), *named(("eva", "i9"), ("dan", "i4")), accept=False)
    assert "was tested, and not trained, on 1 of these 2 studies (same patient id: 1, same image: 0; rows 2)" in note
    assert "--i-know" not in note


def test_training_patients_are_counted_without_the_test_part() -> None:
    with pytest.raises(CohortFault, match=r"was trained on 2 of these 3 studies .*rows 2-3\)"):
        training_overlap.check(part_of(TRAINED, [2]), *TRAINED, accept=False)
    note = training_overlap.check(part_of(TRAINED, [2]), *TRAINED, accept=True)
    assert "was trained on 2 of these 3 studies" in note
    assert "was tested, and not trained, on 1 of these 3 studies" in note


def test_version_that_does_not_keep_its_test_part_apart_says_so() -> None:
    manifest = version(TRAINED)
    (block,) = manifest.extra[training_overlap.EXTRA]
    old = {name: block[name] for name in ("salt", "patients", "images")}
    earlier = manifest.model_copy(update={"extra": {training_overlap.EXTRA: [old]}})
    with pytest.raises(CohortFault, match="was trained or tested on 3 of these 3"):
        training_overlap.check(earlier, *TRAINED, accept=False)


def test_patients_of_a_reused_trunk_are_found() -> None:
    with pytest.raises(CohortFault, match="rows 2"):
        training_overlap.check(version(named(("dan", "i4")), TRAINED), *named(("eva", "i9")), accept=False)


def test_manifest_holds_no_patient_and_differs_between_cohorts() -> None:
    stored = json.dumps(version(TRAINED).extra)
    assert not any(name in stored for name in ("ana", "ben", "eva", "i1"))
    first, other = training_overlap.hashes(*TRAINED), training_overlap.hashes(*named(("ana", "i1"), ("dan", "i4")))
    assert first == training_overlap.hashes(*TRAINED)
    assert not set(first["patients"]) & set(other["patients"])  # type: ignore[call-overload]


def test_version_without_hashes_is_compared_as_a_whole() -> None:
    cohort, data = TRAINED
    old = splits.digest_of([study.patient for study in cohort.studies], data.labels)
    with pytest.raises(CohortFault, match="rows 2-4"):
        training_overlap.check(version(data_sha256=old), *TRAINED, accept=False)
    assert "no hashes" in training_overlap.check(version(), *TRAINED, accept=False)


@pytest.mark.parametrize("other", ["ANA 12", "  ana 12", "ana\u00a012", "ana \uff11\uff12", "Ana_012", "\u00e1na 12"])
def test_id_in_another_spelling_is_a_remark_and_no_refusal(other: str) -> None:
    trained = named(("ana 12", "i1"), ("ben", "i2"))
    for manifest in (version(trained), part_of(trained, [0])):
        note = training_overlap.check(manifest, *named(("dan", "i8"), (other, "i9")), accept=False)
        assert "The patient ids of 1 studies differ" in note
        assert "(rows 3)" in note
        assert "ana" not in note.casefold().replace(manifest.name, "")


@pytest.mark.parametrize("other", ["ana 13", "ana 120", "anna 12", "12 ana"])
def test_another_id_is_no_other_spelling(other: str) -> None:
    trained = named(("ana 12", "i1"), ("ben", "i2"))
    assert not training_overlap.check(version(trained), *named(("dan", "i8"), (other, "i9")), accept=False)
    with pytest.raises(CohortFault) as refused:  # the same id is found as before, without the remark
        training_overlap.check(version(trained), *named(("ana 12", "i9")), accept=False)
    assert "differ" not in str(refused.value)
