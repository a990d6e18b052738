"""Figures and the HTML report: shapes, tables, texts, and no external resources."""

from __future__ import annotations

import io
import re
from datetime import UTC, datetime
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from app.core.display_names import named_quantity, truncated
from app.reporting import figures, page
from app.reporting.drawing import BarShape, CircleShape, Drawing, ImageShape
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
        decision=Decision(refractory=True, threshold=0.22, rule="max F1"),
        flags=[Flag(code="missing-modality", detail="tmax not given")],
        attribution=attribution,
        perfusion=PerfusionSummary(core_ml=21.0),
        created=datetime(2026, 11, 23, tzinfo=UTC),
    )


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
    image = figures.GridVolume(np.full((48, 56, 48), 40.0), AFFINE)
    values = np.zeros((48, 56, 48))
    values[30:34, 20:24, 25:29] = sign
    drawing = figures.overlay(image, (0, 80), figures.GridVolume(values, AFFINE), "cta")
    panels = _pixels(drawing.png())[90:-60]  # without the legend, which has both colours
    assert _share(panels, 0.3 * sign) > 0.002
    assert _share(panels, -0.3 * sign) < (0.002 if sign > 0 else 0.02)  # the ring is yellow, which contains little blue


def test_overlay_resamples_a_coarse_map_correctly() -> None:
    values = np.zeros((24, 28, 24))
    values[15, 10, 12] = 1.0
    coarse = figures.GridVolume(values, AFFINE @ np.diag([2.0, 2, 2, 1]))
    voxel, world = figures.peak(coarse)
    assert voxel == (15, 10, 12)
    assert world == pytest.approx((coarse.affine @ [15, 10, 12, 1])[:3])
    image = figures.GridVolume(np.full((48, 56, 48), 40.0), AFFINE)
    drawing = figures.overlay(image, (0, 80), coarse, "cta")
    axial = next(shape for shape in drawing.shapes if isinstance(shape, ImageShape))
    orange = axial.pixels[..., 0].astype(int) - axial.pixels[..., 2] > 80
    rows, columns = np.nonzero(orange)
    assert (columns.mean(), 55 - rows.mean()) == pytest.approx((30, 20), abs=0.5)  # the first row is at the top
    assert f"axial, z = {world[2]:.0f} mm" in _texts(drawing)


def test_waterfall_has_a_bar_per_contribution(attribution: Attribution) -> None:
    drawing = figures.waterfall(attribution)
    texts = _texts(drawing)
    for text in ("age: 61", "atrial fibrillation: yes", "core: unknown", "image: cta", "+0.90", "-0.50"):
        assert text in texts
    bars = [shape for shape in drawing.shapes if isinstance(shape, BarShape) and shape.height == 16]
    assert [bar.fill for bar in bars] == [figures.RAISES, figures.RAISES, figures.LOWERS, figures.RAISES]
    widths = np.array([bar.width for bar in bars[:3]])
    assert widths / widths[0] == pytest.approx(np.array([0.9, 0.6, 0.4]) / 0.9)


def test_small_contributions_share_one_bar() -> None:
    many = [ClinicalContribution(variable=f"v{n}", value=1.0, contribution=0.5 if n < 2 else 0.01) for n in range(20)]
    texts = _texts(figures.waterfall(Attribution(base=0, total=1.18, clinical=many, imaging=[]), limit=2))
    assert "18 smaller ones" in texts
    assert "+0.18" in texts


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


def test_every_figure_has_its_table(attribution: Attribution) -> None:
    parts = [
        RegionContribution(region=region, modality=Channel.CTA, contribution=part, side=side)
        for region, part, side in (("other", -0.05, None), ("left MCA M1", 0.65, "affected"))
    ]
    image = figures.GridVolume(np.full((24, 28, 24), 40.0), AFFINE)
    others = np.linspace(-2, 2, 10)
    drawings = {
        figures.overlay(image, (0, 80), image, "cta", parts): [
            ("left MCA M1", "affected", "cta", "+0.650"),
            ("outside the named regions", "", "cta", "-0.050"),
        ],
        figures.waterfall(attribution): [
            ("age", "61", "+0.900"),
            ("image: cta", "", "+0.600"),
            ("atrial fibrillation", "yes", "-0.400"),
            ("core", "unknown", "+0.000"),
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
            assert f">{cell}</td>" in page.report(finished_prediction(attribution), {"a figure": drawing}, "")


def test_quantities_have_names_and_units() -> None:
    assert named_quantity("perfusion.core_ml", 22.944, "mL") == "core 22.9 mL"
    assert named_quantity("perfusion.hypoperfusion_intensity_ratio", 0.4123, "1") == "HIR 0.412"
    assert named_quantity("systolic_bp", 150.0, "mmHg") == "systolic BP 150 mmHg"
    assert truncated("perfusion: core 22.9 mL, Tmax > 6 s 99 mL", 20) == "perfusion: core 22.."


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
    html = page.report(prediction, {"Perfusion": drawing}, "card <script>")
    assert "38 %" in html
    assert "Research use only" in html
    assert "<b>S1</b>" not in html
    assert "<script" not in html
    assert not re.search(r"""(src|href)=(?!["']?data:)""", html)


def test_report_summarises_the_contributions(prediction: Prediction) -> None:
    html = page.report(prediction, {}, "")
    assert "Raised most by age 61 (+0.90) and image: cta (+0.60)." in html
    assert "Lowered most by atrial fibrillation yes (-0.40)." in html


def test_report_names_the_spread_of_the_folds_without_a_level(prediction: Prediction) -> None:
    html = page.report(prediction, {}, "")
    assert "; spread of the folds 20 % to 50 %." in html
    assert "interval" not in html


def test_report_names_a_calibrated_interval_with_level_and_coverage(prediction: Prediction) -> None:
    interval = CalibratedInterval(level=0.9, coverage=0.88, low=0.2, high=0.5)
    html = page.report(prediction.model_copy(update={"interval": interval}), {}, "")
    assert "; 90 % interval (measured coverage 88 %) 20 % to 50 %." in html


def test_report_of_a_single_fold_has_no_spread(prediction: Prediction) -> None:
    html = page.report(prediction.model_copy(update={"interval": None, "attribution": None}), {}, "")
    assert "spread" not in html
    assert "Contributions" not in html


DOUBTFUL = [
    Flag(code="imputed", detail="age: not given"),
    Flag(code="alignment-poor", detail="cta: the alignment is poor"),
]


def test_report_shows_a_withheld_decision_first_and_says_what_to_do(prediction: Prediction) -> None:
    withheld = {"decision": None, "withheld": ["alignment-poor"], "flags": DOUBTFUL, "summary": "Decision withheld: x."}
    html = page.report(prediction.model_copy(update=withheld), {}, "")
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
    html = page.report(prediction.model_copy(update={"flags": DOUBTFUL, "accept_warnings": True}), {}, "")
    assert "The decision was given in spite of these warnings." in html
    assert "threshold is 22 %" in html


def test_report_without_warnings_has_no_alert(prediction: Prediction) -> None:
    html = page.report(prediction, {}, "")
    assert "role=alert" not in html
    assert "<p class=first>Refractory: the probability of 38 % is above the threshold of 22 %.</p>" in html
