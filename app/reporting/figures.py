"""Figures of one prediction: overlays, contributions, perfusion, and the patient's position in the cohort.

Design notes:
- Orange raises the probability and blue lowers it (Okabe and Ito 2008: colour-blind people can distinguish them).
- Radiological view, written on the picture: the patient's right is on the left of axial and coronal slices.
- Every slice shows its position in MNI millimetres.
- Only the shown plane of a volume is resampled.
- Every figure carries its table.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage
from scipy.special import expit

from app.core.display_names import NO_MAP_NUMBERS, label, percent, perfusion_value, truncated
from app.core.explanation_text import BASE, TOTAL, contributions, grouped, points_text
from app.reporting.drawing import GRID_LINE, INK, LOWERS, MUTED, RAISES, Drawing
from app.reporting.grid_volume import GridVolume, peak
from app.reporting.tables import FigureTable, contribution_table, region_table
from app.sdk.types import Attribution, PerfusionSummary, RegionContribution

PEAK_MARK, OTHERS = "#f0e442", "#9bb8cc"
PIXELS_PER_MM = 1.2
_FINER = 3  # pixels of a shown image for each voxel and direction
_PLANES = {"axial": (0, 1, 2), "coronal": (0, 2, 1), "sagittal": (1, 2, 0)}
_ENDS = {0: ("R", "L"), 1: ("P", "A")}
_CONVENTION = "radiological view: the patient's right is on the left of axial and coronal slices"

Plane = NDArray[np.floating]  # (rows, columns); the first row is the lowest
Pixels = NDArray[np.uint8]  # (rows, columns, 3) RGB; the first row is at the top


@dataclass(frozen=True)
class CohortPosition:
    """A patient's value of one variable among training patients, in standard deviations from their mean.

    ``value_text`` is the recorded value with its unit.
    """

    name: str
    value_text: str
    patient: float
    others: NDArray[np.floating]


def overlay(
    image: GridVolume,
    window: tuple[float, float],
    attribution: GridVolume,
    title: str,
    regions: Sequence[RegionContribution] = (),
    total: float = 0.0,
    unit: str = "",
) -> Drawing:
    """Draw axial, coronal and sagittal slices through the attribution's peak, and an axial projection.

    ``image`` is the grey background; ``window`` holds its values (HU, s or ratio) for black and white. ``attribution``
    is in log-odds per voxel, on any grid. ``regions`` are the image's contributions for the table. ``unit`` is that of
    the window.
    """
    peak_voxel, world = peak(attribution)
    largest = float(np.abs(attribution.values[peak_voxel]))
    voxel = np.linalg.inv(image.affine) @ np.append(world, 1.0)
    centre = np.clip(np.rint(voxel[:3]).astype(int), 0, np.array(image.values.shape) - 1)
    size = PIXELS_PER_MM * np.abs(np.diag(image.affine)[:3])  # of a voxel
    extent = size * image.values.shape
    tallest, gap = max(extent[1], extent[2]), 14.0
    drawing = Drawing(3 * extent[0] + extent[1] + 5 * gap, tallest + 108, title)
    drawing.table = region_table(regions, total)
    drawing.text(gap, 24, title, size=10.5)

    def panel(left: float, name: str, grey: Plane, values: Plane, across: int, up: int, clear: float = 0.1) -> None:
        pixels = blended(grey, values, window, largest, clear)
        mirrored = across == 0  # the x axis runs from left to right
        drawing.text(left, 48, name, size=8, colour=MUTED)
        axes = drawing.axes(left, 56, extent[across], extent[up])
        axes.set_axis_off()
        shown = np.asarray(
            Image.fromarray(pixels).resize(
                (_FINER * pixels.shape[1], _FINER * pixels.shape[0]), Image.Resampling.BILINEAR
            )
        )
        axes.imshow(
            shown[:, ::-1] if mirrored else shown, extent=(0, extent[across], 0, extent[up]), interpolation="none"
        )
        x, y = (centre[across] + 0.5) * size[across], (centre[up] + 0.5) * size[up]
        axes.plot(extent[across] - x if mirrored else x, y, "o", mfc="none", mec=PEAK_MARK, mew=1.6, ms=13)
        for mark, at in zip(_ENDS[across], (9, extent[across] - 9), strict=True):
            axes.text(at, 6, mark, size=8, color="#ffffff", ha="center")
        axes.set(xlim=(0, extent[across]), ylim=(0, extent[up]))

    left = gap
    for name, (across, up, through) in _PLANES.items():
        index = int(centre[through])
        values = _sampled(attribution, image, across, up, through, index)
        title_of_panel = f"{name}, {'xyz'[through]} = {world[through]:.0f} mm"
        panel(left, title_of_panel, np.take(image.values, index, through).T, values, across, up)
        left += extent[across] + gap
    strongest = np.take_along_axis(
        attribution.values, np.abs(attribution.values).argmax(axis=2, keepdims=True), axis=2
    )  # along the vertical axis
    values = _sampled(GridVolume(strongest, attribution.affine), image, 0, 1, 2, None)
    mean_image = np.clip(image.values, *window).mean(axis=2).T
    panel(left, "axial, largest value at any height", mean_image, values, 0, 1, clear=0.35)
    drawing.key(gap, tallest + 76, f"peak {attribution.values[peak_voxel]:+.2g} log-odds per voxel")
    low, high = window
    grey = f"grey scale from {low:g} (black) to {high:g} (white) {unit}".rstrip()
    drawing.text(gap, tallest + 98, f"{_CONVENTION}; {grey}", colour=MUTED)
    return drawing


def waterfall(attribution: Attribution, limit: int = 12) -> Drawing:
    """Draw the contributions from base to total, the largest first; those after ``limit`` bars are one bar."""
    items = [
        (f"{item.name}: {item.value}" if item.value else item.name, item.log_odds)
        for item in grouped(contributions(attribution))
    ]
    if len(items) > limit:
        items = [*items[:limit], (f"{len(items) - limit} smaller ones", sum(value for _, value in items[limit:]))]

    row, names_end, width, written = 26.0, 340.0, 900.0, 160.0
    rows = len(items) + 2
    drawing = Drawing(width, row * rows + 58, f"Contributions from {attribution.base:+.2f} to {attribution.total:+.2f}")
    drawing.table = contribution_table(attribution)
    axes = drawing.axes(names_end, 12, width - names_end - written, row * rows)
    stops = np.cumsum([attribution.base, *(value for _, value in items)])
    span = float(stops.max() - stops.min()) or 1.0
    axes.set(xlim=(stops.min() - 0.02 * span, stops.max() + 0.02 * span), ylim=(rows - 0.5, -0.5))
    axes.set_yticks(range(rows), [truncated(name, 42) for name in (BASE, *(name for name, _ in items), TOTAL)])
    axes.tick_params(length=0, labelcolor=INK, labelsize=9, pad=8)
    axes.set_xticks([])
    axes.spines[:].set_visible(False)
    places = np.arange(1, rows - 1)
    changes = np.diff(stops)
    axes.barh(places, changes, 0.62, stops[:-1], color=[RAISES if value >= 0 else LOWERS for value in changes])
    axes.vlines(stops, np.arange(rows - 1), [*places, rows - 1], color=GRID_LINE, zorder=0)
    axes.vlines([attribution.base, attribution.total], [-0.36, rows - 1.36], [0.36, rows - 0.64], color=INK, lw=2.2)
    ends = [attribution.base, *np.maximum(stops[:-1], stops[1:]), attribution.total]
    texts = [f"{value:+.2f} ({percent(float(expit(value)))})" for value in (attribution.base, attribution.total)]
    texts[1:1] = [f"{value:+.2f} ({points_text(attribution.total, value)})" for _, value in items]
    for place, (end, text) in enumerate(zip(ends, texts, strict=True)):
        axes.annotate(text, (end, place), (5, 0), textcoords="offset points", va="center", annotation_clip=False)
    drawing.key(24, drawing.height - 16, "log-odds of a refractory occlusion, with percentage points")
    return drawing


def perfusion(summary: PerfusionSummary) -> Drawing:
    """Draw the volumes of core and of delayed tissue, in mL. Without a number, the drawing says so."""
    volumes = {"core": summary.core_ml, "Tmax > 10 s": summary.tmax10_ml, "Tmax > 6 s": summary.tmax6_ml}
    colours = dict(zip(volumes, ("#cc79a7", "#e69f00", "#f0e442"), strict=True))
    known = {name: value for name, value in volumes.items() if value is not None}
    row, left, width = 34.0, 110.0, 620.0
    drawing = Drawing(width, 16 + row * max(len(known), 1), "Perfusion volumes in mL")
    measures = {name: value for name, value in summary if value is not None}
    drawing.table = FigureTable(
        ("Measure", "Value"), [(label(name), perfusion_value(name, value)) for name, value in measures.items()]
    )
    if not measures:
        drawing.text(10, 28, NO_MAP_NUMBERS)
        return drawing
    axes = drawing.axes(left, 8, width - left - 90, row * max(len(known), 1))
    axes.set(xlim=(0, max(*known.values(), 1.0, 1.0)), ylim=(max(len(known), 1) - 0.5, -0.5))
    axes.barh(
        range(len(known)),
        list(known.values()),
        0.6,
        color=[colours[name] for name in known],
        ec=MUTED,
        lw=0.5,
        clip_on=False,
    )
    for place, value in enumerate(known.values()):
        written = f"{value:.0f} mL"
        axes.annotate(written, (value, place), (6, 0), textcoords="offset points", va="center", annotation_clip=False)
    axes.set_yticks(range(len(known)), list(known))
    axes.tick_params(length=0, labelcolor=INK, labelsize=9, pad=8)
    axes.set_xticks([])
    axes.spines[["bottom", "left"]].set_visible(False)
    return drawing


def position(variables: Sequence[CohortPosition]) -> Drawing:
    """Draw the patient's values among the training patients': one row per variable, one dot per patient.

    Without a variable, the drawing says so.
    """
    row, left, width, reach = 24.0, 250.0, 760.0, 3.5
    bottom = 20 + row * max(len(variables), 1)
    drawing = Drawing(width, bottom + 58, "This patient compared with training patients")
    rows = [
        (each.name, each.value_text, percent(float(np.mean(each.others < each.patient))), f"{each.patient:+.1f} SD")
        for each in variables
    ]
    drawing.table = FigureTable(("Variable", "This patient", "Training patients below", "From their mean"), rows)
    if not variables:
        drawing.text(30, 40, "No number of the record is known, so there is nothing to compare.")
        return drawing
    axes = drawing.axes(left, 16, width - left - 30, row * len(variables))
    axes.set(xlim=(-reach - 0.15, reach + 0.15), ylim=(len(variables) - 0.5, -0.5))
    axes.grid(axis="x")
    axes.set_xticks(range(-3, 4), [f"{number:+d} SD" if number else "mean" for number in range(-3, 4)])
    axes.set_yticks(range(len(variables)), [truncated(each.name, 30) for each in variables])
    axes.tick_params(length=0)
    axes.tick_params(axis="y", labelcolor=INK, labelsize=9, pad=8)
    axes.spines[:].set_visible(False)
    places = [np.full(len(each.others), place) for place, each in enumerate(variables)]
    others = np.clip(np.concatenate([each.others for each in variables]), -reach, reach)
    axes.plot(others, np.concatenate(places), "o", color=OTHERS, ms=3.2, mew=0, label="a training patient")
    patient = np.array([each.patient for each in variables])
    beyond = np.abs(patient) > reach
    shown = np.clip(patient, -reach, reach)
    axes.plot(shown[~beyond], np.nonzero(~beyond)[0], "o", color=INK, ms=8, mew=0, label="this patient")
    axes.plot(
        shown[beyond], np.nonzero(beyond)[0], "D", color=RAISES, ms=8, mew=0, label="this patient, beyond the scale"
    )
    handles, labels = axes.get_legend_handles_labels()
    place = 24 / width, 6 / drawing.height
    drawing.figure.legend(
        handles[::-1], labels[::-1], loc="lower left", bbox_to_anchor=place, ncols=3, labelcolor=MUTED
    )
    return drawing


def _sampled(
    attribution: GridVolume, image: GridVolume, across: int, up: int, through: int, index: int | None
) -> Plane:
    """Resample the attribution on the image's plane ``index`` along axis ``through``.

    ``index`` is None for an attribution with one plane along that axis.
    """
    rows, columns = np.indices((image.values.shape[up], image.values.shape[across]), dtype=np.float64)
    voxels = np.ones((4, rows.size))
    voxels[across], voxels[up], voxels[through] = columns.ravel(), rows.ravel(), index or 0
    at = (np.linalg.inv(attribution.affine) @ image.affine @ voxels)[:3]
    if index is None:
        at[through] = 0
    plane: Plane = ndimage.map_coordinates(attribution.values, at, order=1, mode="constant").reshape(rows.shape)
    return plane


def blended(grey: Plane, values: Plane, window: tuple[float, float], largest: float, clear: float) -> Pixels:
    """Blend a grey plane with its overlay; values below the share ``clear`` of the peak are transparent."""
    low, high = window
    brightness = np.clip((grey - low) / (high - low), 0, 1)[..., None] * 255
    share = np.abs(values)[..., None] / (largest or 1.0)
    opacity = np.clip((share - clear) / 0.4, 0, 0.85)
    colour = np.where(values[..., None] >= 0, _rgb(RAISES), _rgb(LOWERS))
    blended: Pixels = np.rint(brightness * (1 - opacity) + colour * opacity).astype(np.uint8)[::-1]
    return blended


def _rgb(colour: str) -> NDArray[np.uint8]:
    return np.frombuffer(bytes.fromhex(colour[1:]), np.uint8)
