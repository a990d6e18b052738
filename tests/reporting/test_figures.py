"""Figures: bars, dots, images, texts and tables, in equal bytes and without a cut text."""

from __future__ import annotations

import io
import re
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.text import Text
from PIL import Image

from app.core.display_names import channel_unit
from app.reporting import figures
from app.reporting.drawing import Drawing
from app.reporting.grid_volume import GridVolume, peak
from app.reporting.tables import FigureTable
from app.sdk.types import Attribution, Channel, ClinicalContribution, PerfusionSummary, RegionContribution
from tests.reporting.test_report import finished_prediction, report

AFFINE = np.array([[4.0, 0, 0, -94], [0, 4, 0, -132], [0, 0, 4, -76], [0, 0, 0, 1]])


def _pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)), dtype=np.float64) / 255


def _share(pixels: np.ndarray, red_minus_blue: float) -> float:
    difference = pixels[..., 0] - pixels[..., 2]
    return float(np.mean(difference > red_minus_blue if red_minus_blue > 0 else difference < red_minus_blue))


def _cut(drawing: Drawing) -> list[str]:
    """Texts that reach beyond the edge of the figure."""
    canvas = FigureCanvasAgg(drawing.figure)
    canvas.draw()
    page_box = drawing.figure.bbox.padded(1)
    texts = [text for text in drawing.figure.findobj(Text) if text.get_visible() and text.get_text()]
    boxes = [(text.get_text(), text.get_window_extent()) for text in texts]
    return [
        text for text, box in boxes if box.width and not (page_box.contains(*box.p0) and page_box.contains(*box.p1))
    ]


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
    for number in (0, 1, 3):  # axial, coronal, axial projection
        panel = drawing.figure.axes[number]
        columns = np.nonzero(_orange(panel))[1]
        assert (columns.mean() + 0.5) / _shown(panel).shape[1] == pytest.approx((47 - 10 + 0.5) / 48, abs=0.01)
        (ring,) = panel.lines
        assert ring.get_xdata()[0] > np.mean(panel.get_xlim())
    texts = drawing.texts()
    assert texts.index("R") < texts.index("L")
    assert any(text.startswith("radiological view") for text in texts)


def _shown(panel: Axes) -> np.ndarray:
    return np.asarray(panel.images[0].get_array()).astype(int)


def _orange(panel: Axes) -> np.ndarray:
    return _shown(panel)[..., 0] - _shown(panel)[..., 2] > 80


def test_overlay_resamples_a_coarse_map_correctly() -> None:
    values = np.zeros((24, 28, 24))
    values[15, 10, 12] = 1.0
    coarse = GridVolume(values, AFFINE @ np.diag([2.0, 2, 2, 1]))
    voxel, world = peak(coarse)
    assert voxel == (15, 10, 12)
    assert world == pytest.approx((coarse.affine @ [15, 10, 12, 1])[:3])
    image = GridVolume(np.full((48, 56, 48), 40.0), AFFINE)
    drawing = figures.overlay(image, (0, 80), coarse, "cta")
    axial = drawing.figure.axes[0]
    height, width, _ = _shown(axial).shape
    rows, columns = np.nonzero(_orange(axial))
    place = 48 * (1 - (columns.mean() + 0.5) / width), 56 * (1 - (rows.mean() + 0.5) / height)
    assert place == pytest.approx((30.5, 20.5), abs=0.5)  # mirrored; the first row is the top
    assert f"axial, z = {world[2]:.0f} mm" in drawing.texts()


@pytest.mark.parametrize(
    ("channel", "window", "said"),
    [
        (Channel.NCCT, (0.0, 80.0), "grey scale from 0 (black) to 80 (white) HU"),
        (Channel.TMAX, (0.0, 12.0), "grey scale from 0 (black) to 12 (white) s"),
        (Channel.RCBF, (0.0, 1.5), "grey scale from 0 (black) to 1.5 (white)"),
    ],
)
def test_overlay_says_its_grey_scale(channel: Channel, window: tuple[float, float], said: str) -> None:
    image = GridVolume(np.full((24, 28, 24), 1.0), AFFINE)
    texts = figures.overlay(image, window, image, "an image", unit=channel_unit(channel)).texts()
    assert [text.partition("; ")[2] for text in texts if "grey scale" in text] == [said]


def test_waterfall_has_a_bar_per_contribution(attribution: Attribution) -> None:
    drawing = figures.waterfall(attribution)
    texts = drawing.texts()
    rows = (
        "age: 61 years",
        "atrial fibrillation: yes",
        "values not given (1)",
        "CTA",
        "+0.90 (+18.0 points)",
        "-0.50 (38 %)",
    )
    assert set(rows) <= set(texts)
    assert "background patients without images" in texts
    bars = drawing.figure.axes[0].patches
    colours = [figures.RAISES, figures.RAISES, figures.LOWERS, figures.RAISES]
    assert [to_hex(bar.get_facecolor()) for bar in bars] == colours
    widths = np.array([bar.get_width() for bar in bars[:3]])
    assert widths == pytest.approx([0.9, 0.6, -0.4])
    assert [bar.get_x() for bar in bars[:3]] == pytest.approx([-1.6, -0.7, -0.1])


def test_small_contributions_share_one_bar() -> None:
    many = [ClinicalContribution(variable=f"v{n}", value=1.0, contribution=0.5 if n < 2 else 0.01) for n in range(20)]
    texts = figures.waterfall(Attribution(base=0, total=1.18, clinical=many, imaging=[]), limit=2).texts()
    assert "18 smaller ones" in texts
    assert "+0.18 (+3.4 points)" in texts


def test_position_figure_shows_patient_and_cohort() -> None:
    others = np.linspace(-2, 2, 9)
    drawing = figures.position(
        [figures.CohortPosition("age", "81 years", 1.0, others), figures.CohortPosition("NIHSS", "42", 9.0, others)]
    )
    dots, within, beyond = drawing.figure.axes[0].lines
    assert len(dots.get_xdata()) == 18
    assert (within.get_xdata().tolist(), within.get_ydata().tolist()) == ([1.0], [0])
    assert (beyond.get_xdata().tolist(), beyond.get_ydata().tolist()) == ([3.5], [1])
    assert (beyond.get_color(), beyond.get_marker()) == (figures.RAISES, "D")  # a second sign beside the colour


def test_position_figure_without_a_known_number_says_so() -> None:
    drawing = figures.position([])
    assert drawing.texts() == ["No number of the record is known, so there is nothing to compare."]
    assert drawing.table is not None
    assert drawing.table.rows == []


def test_perfusion_without_a_usable_number_says_so() -> None:
    drawing = figures.perfusion(PerfusionSummary())
    assert drawing.texts() == ["The perfusion maps give no usable numbers; the warnings say why."]
    assert drawing.table is not None
    assert drawing.table.rows == []
    assert "The perfusion maps" not in " ".join(figures.perfusion(PerfusionSummary(core_ml=0.0)).texts())


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
            ("age", "61 years", "+18.0", "+0.900"),
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


def test_letters_with_accents_are_drawn_in_png_and_svg() -> None:
    letters = "AaEeÁáÉéÑñÜüßçåœµΔ±−–≤≥×…"
    drawn = set()
    for letter in letters:
        drawing = Drawing(20, 20, "one letter")
        drawing.text(4, 16, letter)
        drawn |= {drawing.png(), re.sub(rb"<!--.*?-->", b"", drawing.svg())}
    assert len(drawn) == 2 * len(letters)


def test_equal_figures_give_equal_bytes(attribution: Attribution) -> None:
    first, second = (figures.waterfall(attribution) for _ in range(2))
    written = first.svg(), first.png()
    assert (second.svg(), second.png()) == written == (first.svg(), first.png())
    for data in written:
        assert not re.search(rb"matplotlib|20\d\d-\d\d", data[:1500])  # neither a version nor a date


def test_no_text_of_a_figure_is_cut(attribution: Attribution) -> None:
    long = attribution.clinical[0].model_copy(update={"variable": "a_variable_with_a_very_long_name_" * 2})
    wide = attribution.model_copy(update={"clinical": [long, *attribution.clinical], "total": 0.4})
    image = GridVolume(np.full((48, 56, 48), 40.0), AFFINE)
    title = "Vessel mask adds -0.65 log-odds (-12.8 points); the peak is in the left MCA superior division"
    values = [figures.CohortPosition(name, "1", 9.0, np.zeros(3)) for name in ("age", long.variable)]
    drawings = [
        figures.waterfall(wide),
        figures.overlay(image, (0, 80), image, title),
        figures.perfusion(PerfusionSummary(core_ml=1234.0, tmax6_ml=2345.0, tmax10_ml=12.0)),
        figures.position(values),
        figures.position([]),
    ]
    for drawing in drawings:
        assert _cut(drawing) == []


def test_title_and_table_of_a_figure_are_escaped() -> None:
    drawing = Drawing(100, 50, "<script>")
    drawing.table = FigureTable(("a < b",), [("$1 & $2",)])
    drawing.text(10, 20, "$1 < $2")  # no formula
    root = ElementTree.fromstring(drawing.svg())
    assert b"<script" not in drawing.svg()
    assert root.findtext("{http://www.w3.org/2000/svg}title") == "<script>"
    assert root.findtext("{http://www.w3.org/2000/svg}desc") == "a < b\n$1 & $2"
