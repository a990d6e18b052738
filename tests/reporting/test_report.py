"""The HTML report: texts, tables, escaped values, and no external resources."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime

import pytest

from app.core.display_names import flag_text, named_quantity, truncated
from app.reporting import figures, page
from app.reporting.drawing import Drawing
from app.reporting.page import ReportFigure
from app.sdk.summary import SYNTHETIC_NOTICE
from app.sdk.types import (
    Attribution,
    CalibratedInterval,
    Channel,
    ClinicalContribution,
    Decision,
    Flag,
    FoldSpread,
    ModelRef,
    PerfusionSummary,
    Prediction,
    RegionContribution,
    Status,
)


@pytest.fixture
def prediction(attribution: Attribution) -> Prediction:
    return finished_prediction(attribution)


def finished_prediction(attribution: Attribution) -> Prediction:
    return Prediction(
        id="0192",
        status=Status.SUCCEEDED,
        model=ModelRef(name="tiny", version="1.0.0", digest="sha256:" + "0" * 64),
        subject="<b>S1</b>",
        probability=0.377,
        interval=FoldSpread(low=0.2, high=0.5),
        folds=[0.2, 0.3, 0.45, 0.5],
        decision=Decision(refractory=True, threshold=0.22, rule="max F1"),
        flags=[Flag(code="missing-modality", detail="tmax not given")],
        attribution=attribution,
        perfusion=PerfusionSummary(core_ml=21.0),
        created=datetime(2026, 11, 23, tzinfo=UTC),
    )


def report(prediction: Prediction, drawings: Mapping[str, Drawing], card: str) -> str:
    """The report with ordinary spaces before the percent signs."""
    shown = {caption: ReportFigure(each.svg(), each.title, each.table) for caption, each in drawings.items()}
    return page.report(prediction, shown, card).replace("&nbsp;%", " %")


def test_quantities_have_names_and_units() -> None:
    assert named_quantity("perfusion.core_ml", 22.944, "mL") == "core 22.9 mL"
    assert named_quantity("perfusion.hypoperfusion_intensity_ratio", 0.4123, "1") == "HIR 0.412"
    assert named_quantity("systolic_bp", 150.0, "mmHg") == "systolic BP 150 mmHg"


def test_a_shortened_text_holds_no_part_of_a_number() -> None:
    text = "perfusion: core 22.9 mL, Tmax > 6 s 106 mL"
    for limit in range(15, len(text)):
        shortened = truncated(text, limit)
        assert len(shortened) <= limit
        assert shortened.endswith("..")
        assert set(re.findall(r"[\d.]*\d", shortened)) <= {"22.9", "6", "106"}
    assert truncated(text, 20) == "perfusion: core.."
    assert truncated(text, 39) == "perfusion: core 22.9 mL, Tmax > 6 s.."
    assert truncated("1.2.840.113619.2.55", 10) == "1.2.840..."  # one word
    assert truncated("atrial fibrillation", 10) == "atrial f.."


def test_fields_of_the_record_are_named_in_words() -> None:
    flag = Flag(code="imputed", detail="age, perfusion.core_ml, atrial_fibrillation: not given, imputed")
    assert flag_text(flag).startswith("age, core, atrial fibrillation: not given, imputed.")
    assert "ctp_interval_s" in flag_text(Flag(code="time-step-default", detail="send ctp_interval_s"))


def test_report_is_self_contained_and_escapes_its_values(prediction: Prediction) -> None:
    drawing = figures.perfusion(PerfusionSummary(core_ml=21.0, tmax6_ml=96.0))
    html = report(prediction, {"Perfusion": drawing}, "card <script>")
    assert "38 %" in html
    assert "Research use only" in html
    assert "<b>S1</b>" not in html
    assert "<script" not in html
    assert not re.search(r"""(src|href)=(?!["']?data:)""", html)


def test_report_summarises_the_contributions(prediction: Prediction) -> None:
    html = report(prediction, {}, "")
    assert "Raised most by age 61 years (+0.90 log-odds, +18.0 points) and CTA (+0.60 log-odds, +12.8 points)." in html
    assert "Lowered most by atrial fibrillation yes (-0.40 log-odds, -9.7 points)." in html


def test_report_keeps_a_number_and_its_percent_sign_on_one_line(prediction: Prediction) -> None:
    html = page.report(prediction, {}, "")
    assert "38&nbsp;%" in html
    assert not re.search(r"\d %", html)


def test_report_breaks_no_number_or_usual_word_on_a_narrow_screen(attribution: Attribution) -> None:
    """Before, a narrow screen showed "-0.35" in one line and "2" in the next."""
    region = RegionContribution(region="right insula", modality=Channel.CTA, contribution=-0.352)
    sent = finished_prediction(attribution.model_copy(update={"regions": [region]}))
    html = page.report(sent, {}, "")
    assert '<td class="k">right insula</td>' in html
    assert '<td class="n k">-0.352</td>' in html
    assert "td.k{overflow-wrap:normal}" in html
    assert f'<td class="n">sha256:{"0" * 64}</td>' in html  # a long word breaks, so that nothing scrolls sideways


def test_values_that_were_not_given_are_one_bar_and_no_reason(prediction: Prediction, attribution: Attribution) -> None:
    unknown = [
        ClinicalContribution(variable=name, value=None, contribution=part, imputed=True)
        for name, part in (("crp", 1.2), ("nihss", 0.4))
    ]
    explained = attribution.model_copy(update={"clinical": [*attribution.clinical, *unknown], "total": 1.1})
    texts = figures.waterfall(explained).texts()
    assert [text for text in texts if "not given" in text] == ["values not given (3)"]
    assert any(text.startswith("+1.60") for text in texts)
    html = report(prediction.model_copy(update={"attribution": explained}), {}, "")
    assert "Raised most by age 61 years (+0.90" in html


def test_reasons_start_with_the_share_outside_the_brain(prediction: Prediction, attribution: Attribution) -> None:
    parts = [
        RegionContribution(region=region, modality=Channel.CTA, contribution=part)
        for region, part in (("other", -0.3), ("left MCA M1", 0.6), ("left insula", 0.3))
    ]
    explained = attribution.model_copy(update={"regions": parts})
    html = report(prediction.model_copy(update={"attribution": explained}), {}, "")
    assert "<p>Of the image contributions, outside the brain: CTA 25 %. Raised most by" in html
    assert "outside the brain" not in report(prediction, {}, "")  # no maps, so no regions


@pytest.mark.parametrize(
    ("codes", "text"),
    [
        (["side-from-images"], "The occlusion is taken to be left (from the images)."),
        ([], "The occlusion is on the left (from the record)."),
    ],
)
def test_report_says_where_the_side_comes_from(
    prediction: Prediction, attribution: Attribution, codes: list[str], text: str
) -> None:
    explained = attribution.model_copy(update={"affected": "left"})
    flags = [Flag(code=code, detail="") for code in codes]
    assert text in report(prediction.model_copy(update={"attribution": explained, "flags": flags}), {}, "")


def test_report_says_beside_the_number_that_the_training_patients_were_synthetic(prediction: Prediction) -> None:
    flagged = prediction.model_copy(update={"flags": [Flag(code="synthetic-training", detail="x")]})
    after_number = report(flagged, {}, "").split("<span class=big>")[1]
    assert after_number.startswith("38 %</span> <b class=headline>Refractory</b>")
    assert SYNTHETIC_NOTICE in "".join(after_number.split("</p>")[:2])
    assert SYNTHETIC_NOTICE not in report(prediction, {}, "")


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ("max-f1-out-of-fold", "largest F1 score in patients outside the training folds"),
        ("max-f1-recalibration", "largest F1 score in the patients of the recalibration"),
    ],
)
def test_report_explains_the_rule_of_the_threshold(prediction: Prediction, rule: str, words: str) -> None:
    assert prediction.decision is not None
    decision = prediction.decision.model_copy(update={"rule": rule})
    html = report(prediction.model_copy(update={"decision": decision}), {}, "")
    assert f"above the threshold of 22 % ({words})" in html
    assert "max-f1" not in html


def test_report_names_the_spread_of_the_networks_without_a_level(prediction: Prediction) -> None:
    html = report(prediction, {}, "")
    assert "; spread of the four networks 20 % to 50 %." in html
    assert "interval" not in html


def test_report_names_a_calibrated_interval_with_level_and_coverage(prediction: Prediction) -> None:
    interval = CalibratedInterval(level=0.9, coverage=0.88, low=0.2, high=0.5)
    html = report(prediction.model_copy(update={"interval": interval}), {}, "")
    assert "; 90 % interval (measured coverage 88 %) 20 % to 50 %." in html


def test_report_of_a_single_fold_has_no_spread(prediction: Prediction) -> None:
    html = report(prediction.model_copy(update={"interval": None, "attribution": None}), {}, "")
    assert "spread" not in html
    assert "Contributions" not in html


DOUBTFUL = [
    Flag(code="imputed", detail="age: not given"),
    Flag(code="alignment-poor", detail="cta: the alignment is poor"),
]


def test_report_shows_a_withheld_decision_first_and_says_what_to_do(prediction: Prediction) -> None:
    withheld = {"decision": None, "withheld": ["alignment-poor"], "flags": DOUBTFUL, "summary": "Decision withheld: x."}
    html = report(prediction.model_copy(update=withheld), {}, "")
    order = [
        "Decision withheld: x.",
        "<b>Warning:</b> cta: the alignment is poor. What to do: Look at",
        "They are no decision.",
        "38 %",
        "<b>Info:</b> age: not given.",
    ]
    places = [html.index(text) for text in order]
    assert places == sorted(places)
    assert html.count("aria-label=Warning") == 2  # the icon of the first line and that of the flag
    assert "threshold" not in html


def test_report_names_accepted_warnings_beside_the_decision(prediction: Prediction) -> None:
    html = report(prediction.model_copy(update={"flags": DOUBTFUL, "accept_warnings": True}), {}, "")
    assert "The decision was given in spite of these warnings." in html
    assert "above the threshold of 22 %" in html


def test_report_without_warnings_has_no_alert(prediction: Prediction) -> None:
    html = report(prediction, {}, "")
    assert "role=alert" not in html
    assert "<p class=first>Refractory: the probability of 38 % is above the threshold of 22 %.</p>" in html
