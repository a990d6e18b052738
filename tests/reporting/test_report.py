"""Figures and the HTML report: shapes, tables, texts, and no external resources."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from app.core.display_names import flag_text, named_quantity, truncated
from app.reporting import figures, page
from app.reporting.drawing import BarShape, CircleShape, Drawing, ImageShape
from app.reporting.grid_volume import GridVolume, peak
from app.sdk.summary import SYNTHETIC_NOTICE
from app.sdk.types import (
    Attribution,
    CalibratedInterval,
    Channel,
    ClinicalContribution,
    Decision,
    Flag,
    FoldSpread,
    ModalityContribution,
    ModelRef,
    PerfusionSummary,
    Prediction,
    RegionContribution,
    Status,
)

AFFINE = np.array([[4.0, 0, 0, -94], [0, 4, 0, -132], [0, 0, 4, -76], [0, 0, 0, 1]])


@pytest.fixture
def attribution() -> Attribution:
    return Attribution(
        base=-1.6,
        total=-0.5,
        clinical=[
            ClinicalContribution(variable="age", value=61.0, contribution=0.9),
            ClinicalContribution(variable="atrial_fibrillation", value=True, contribution=-0.4),
            ClinicalContribution(variable="perfusion.core_ml", value=None, contribution=0.0, imputed=True),
        ],
        imaging=[ModalityContribution(modality=Channel.CTA, contribution=0.6)],
        maps=["attribution-cta"],
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
    return page.report(prediction, drawings, card).replace("&nbsp;%", " %")


def _pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)), dtype=np.float64) / 255


def _share(pixels: np.ndarray, red_minus_blue: float) -> float:
    difference = pixels[..., 0] - pixels[..., 2]
    return float(np.mean(difference > red_minus_blue if red_minus_blue > 0 else difference < red_minus_blue))


def _texts(drawing: Drawing) -> list[str]:
    """Return the texts of the SVG, in order, with a strict XML parser."""
    root = ElementTree.fromstring(drawing.svg())
    return [node.text or "" for node in root.iter("{http://www.w3.org/2000/svg}text")]


@pytest.mark.parametrize("sign", [1, -1])
def test_overlay_marks_the_peak_in_the_colour_of_its_sign(sign: int) -> None:
    image = GridVolume(np.full((48, 56, 48), 40.0), AFFINE)
    values = np.zeros((48, 56, 48))
    values[30:34, 20:24, 25:29] = sign
    drawing = figures.overlay(image, (0, 80), GridVolume(values, AFFINE), "cta")
    panels = _pixels(drawing.png())[90:-60]  # without the legend, which has both colours
    assert _share(panels, 0.3 * sign) > 0.002
    assert _share(panels, -0.3 * sign) < (0.002 if sign > 0 else 0.02)  # the ring is yellow, which contains little blue


def test_overlay_shows_the_left_of_the_patient_on_the_right_and_says_so() -> None:
    values = np.zeros((48, 56, 48))
    values[10, 20, 25] = 1.0  # x = -54 mm: the left hemisphere
    image = GridVolume(np.full((48, 56, 48), 40.0), AFFINE)
    drawing = figures.overlay(image, (0, 80), GridVolume(values, AFFINE), "cta")
    pictures = [shape for shape in drawing.shapes if isinstance(shape, ImageShape)]
    rings = [shape for shape in drawing.shapes if isinstance(shape, CircleShape)]
    for number in (0, 1, 3):  # axial, coronal, axial projection
        orange = pictures[number].pixels[..., 0].astype(int) - pictures[number].pixels[..., 2] > 80
        columns = np.nonzero(orange)[1]
        assert columns.mean() == pytest.approx(47 - 10, abs=0.6)
        middle = pictures[number].x + pictures[number].width / 2
        assert rings[number].x > middle
    texts = _texts(drawing)
    assert texts.index("R") < texts.index("L")
    assert any(text.startswith("radiological view") for text in texts)


def test_overlay_resamples_a_coarse_map_correctly() -> None:
    values = np.zeros((24, 28, 24))
    values[15, 10, 12] = 1.0
    coarse = GridVolume(values, AFFINE @ np.diag([2.0, 2, 2, 1]))
    voxel, world = peak(coarse)
    assert voxel == (15, 10, 12)
    assert world == pytest.approx((coarse.affine @ [15, 10, 12, 1])[:3])
    image = GridVolume(np.full((48, 56, 48), 40.0), AFFINE)
    drawing = figures.overlay(image, (0, 80), coarse, "cta")
    axial = next(shape for shape in drawing.shapes if isinstance(shape, ImageShape))
    orange = axial.pixels[..., 0].astype(int) - axial.pixels[..., 2] > 80
    rows, columns = np.nonzero(orange)
    assert (47 - columns.mean(), 55 - rows.mean()) == pytest.approx(
        (30, 20), abs=0.5
    )  # mirrored; the first row is the top
    assert f"axial, z = {world[2]:.0f} mm" in _texts(drawing)


def test_waterfall_has_a_bar_per_contribution(attribution: Attribution) -> None:
    drawing = figures.waterfall(attribution)
    texts = _texts(drawing)
    rows = (
        "age: 61",
        "atrial fibrillation: yes",
        "values not given (1)",
        "CTA",
        "+0.90 (+18.0 points)",
        "-0.50 (38 %)",
    )
    assert set(rows) <= set(texts)
    assert "background patients without images" in texts
    bars = [shape for shape in drawing.shapes if isinstance(shape, BarShape) and shape.height == 16]
    assert [bar.fill for bar in bars] == [figures.RAISES, figures.RAISES, figures.LOWERS, figures.RAISES]
    widths = np.array([bar.width for bar in bars[:3]])
    assert widths / widths[0] == pytest.approx(np.array([0.9, 0.6, 0.4]) / 0.9)


def test_small_contributions_share_one_bar() -> None:
    many = [ClinicalContribution(variable=f"v{n}", value=1.0, contribution=0.5 if n < 2 else 0.01) for n in range(20)]
    texts = _texts(figures.waterfall(Attribution(base=0, total=1.18, clinical=many, imaging=[]), limit=2))
    assert "18 smaller ones" in texts
    assert "+0.18 (+3.4 points)" in texts


def test_position_figure_shows_patient_and_cohort() -> None:
    others = np.linspace(-2, 2, 9)
    drawing = figures.position(
        [figures.CohortPosition("age", "81 years", 1.0, others), figures.CohortPosition("NIHSS", "42", 9.0, others)]
    )
    large = [shape for shape in drawing.shapes if isinstance(shape, CircleShape) and shape.radius == 6]
    small = [
        shape for shape in drawing.shapes if isinstance(shape, CircleShape) and shape.radius == 2.2 and shape.y < 40
    ]
    assert sum(dot.x < large[0].x for dot in small) == 6  # -2 to 0.5; the dot at 1.0 is below the patient's
    assert large[1].colour == figures.RAISES  # beyond the scale


def test_position_figure_without_a_known_number_says_so() -> None:
    drawing = figures.position([])
    assert _texts(drawing) == ["No number of the record is known, so there is nothing to compare."]
    assert drawing.table is not None
    assert drawing.table.rows == []


def test_every_figure_has_its_table(attribution: Attribution) -> None:
    parts = [
        RegionContribution(region=region, modality=Channel.CTA, contribution=part, side=side)
        for region, part, side in (("other", -0.05, None), ("left MCA M1", 0.65, "affected"))
    ]
    image = GridVolume(np.full((24, 28, 24), 40.0), AFFINE)
    others = np.linspace(-2, 2, 10)
    drawings = {
        figures.overlay(image, (0, 80), image, "cta", parts, -0.5): [
            ("left MCA M1", "affected", "CTA", "+13.7", "+0.650"),
            ("outside the brain", "", "CTA", "-1.2", "-0.050"),
        ],
        figures.waterfall(attribution): [
            ("age", "61", "+18.0", "+0.900"),
            ("CTA", "", "+12.8", "+0.600"),
            ("atrial fibrillation", "yes", "-9.7", "-0.400"),
            ("core", "not given", "+0.0", "+0.000"),
        ],
        figures.perfusion(PerfusionSummary(core_ml=21.4, mismatch_ratio=4.571)): [
            ("core", "21 mL"),
            ("mismatch ratio", "4.57"),
        ],
        figures.position([figures.CohortPosition("age", "81 years", 1.0, others)]): [
            ("age", "81 years", "70 %", "+1.0 SD")
        ],
    }
    for drawing, rows in drawings.items():
        assert drawing.table is not None
        assert drawing.table.rows == rows
        description = ElementTree.fromstring(drawing.svg()).findtext("{http://www.w3.org/2000/svg}desc") or ""
        assert description.splitlines()[1:] == [" | ".join(row) for row in rows]
        for cell in rows[0]:
            assert f">{cell}</td>" in report(finished_prediction(attribution), {"a figure": drawing}, "")


def test_quantities_have_names_and_units() -> None:
    assert named_quantity("perfusion.core_ml", 22.944, "mL") == "core 22.9 mL"
    assert named_quantity("perfusion.hypoperfusion_intensity_ratio", 0.4123, "1") == "HIR 0.412"
    assert named_quantity("systolic_bp", 150.0, "mmHg") == "systolic BP 150 mmHg"
    assert truncated("perfusion: core 22.9 mL, Tmax > 6 s 99 mL", 20) == "perfusion: core 22.."


def test_fields_of_the_record_are_named_in_words() -> None:
    flag = Flag(code="imputed", detail="age, perfusion.core_ml, atrial_fibrillation: not given, imputed")
    assert flag_text(flag).startswith("age, core, atrial fibrillation: not given, imputed.")
    assert "ctp_interval_s" in flag_text(Flag(code="time-step-default", detail="send ctp_interval_s"))


def test_png_draws_letters_with_accents() -> None:
    letters = "AaEeÁáÉéÑñÜüßçåœµΔ±−–≤≥×…\uffff"  # the last one has no glyph: an empty box
    drawn = set()
    for letter in letters:
        drawing = Drawing(20, 20, "one letter")
        drawing.text(4, 16, letter)
        drawn.add(drawing.png())
    assert len(drawn) == len(letters)


def test_equal_figures_give_equal_bytes(attribution: Attribution) -> None:
    first, second = (figures.waterfall(attribution) for _ in range(2))
    assert first.svg() == second.svg()
    assert first.png() == second.png()


def test_texts_of_a_drawing_are_escaped() -> None:
    drawing = Drawing(100, 50, "<script>")
    drawing.text(10, 20, "a < b & c")
    assert b"<script" not in drawing.svg()
    assert _texts(drawing) == ["a < b & c"]


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
    assert "Raised most by age 61 (+0.90 log-odds, +18.0 points) and CTA (+0.60 log-odds, +12.8 points)." in html
    assert "Lowered most by atrial fibrillation yes (-0.40 log-odds, -9.7 points)." in html


def test_report_keeps_a_number_and_its_percent_sign_on_one_line(prediction: Prediction) -> None:
    html = page.report(prediction, {}, "")
    assert "38&nbsp;%" in html
    assert not re.search(r"\d %", html)


def test_values_that_were_not_given_are_one_bar_and_no_reason(prediction: Prediction, attribution: Attribution) -> None:
    unknown = [
        ClinicalContribution(variable=name, value=None, contribution=part, imputed=True)
        for name, part in (("crp", 1.2), ("nihss", 0.4))
    ]
    explained = attribution.model_copy(update={"clinical": [*attribution.clinical, *unknown], "total": 1.1})
    texts = _texts(figures.waterfall(explained))
    assert [text for text in texts if "not given" in text] == ["values not given (3)"]
    assert any(text.startswith("+1.60") for text in texts)
    html = report(prediction.model_copy(update={"attribution": explained}), {}, "")
    assert "Raised most by age 61 (+0.90" in html


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


def test_report_explains_the_rule_of_the_threshold(prediction: Prediction) -> None:
    assert prediction.decision is not None
    rule = prediction.decision.model_copy(update={"rule": "max-f1-out-of-fold"})
    html = report(prediction.model_copy(update={"decision": rule}), {}, "")
    assert "above the threshold of 22 % (largest F1 score in patients outside the training folds)" in html
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
