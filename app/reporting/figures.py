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
from scipy import ndimage
from scipy.special import expit

from app.core.display_names import channel_label, label, percent, perfusion_value, region_label, truncated
from app.core.explanation_text import BASE, TOTAL, contributions, grouped, points_text, signed_points
from app.reporting.drawing import INK, MUTED, Drawing, FigureTable, Pixels
from app.reporting.grid_volume import GridVolume, peak
from app.sdk.types import Attribution, PerfusionSummary, RegionContribution

RAISES, LOWERS, PEAK_MARK, GRID_LINE = "#d55e00", "#0072b2", "#f0e442", "#d5dde5"
UNITS_PER_MM = 1.2
_PLANES = {"axial": (0, 1, 2), "coronal": (0, 2, 1), "sagittal": (1, 2, 0)}
_ENDS = {0: ("R", "L"), 1: ("P", "A")}
_CONVENTION = "radiological view: the patient's right is on the left of axial and coronal slices"

Plane = NDArray[np.floating]  # (rows, columns); the first row is the lowest


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
) -> Drawing:
    """Draw axial, coronal and sagittal slices through the attribution's peak, and an axial projection.

    ``image`` is the grey background; ``window`` holds its values (HU, s or ratio) for black and white. ``attribution``
    is in log-odds per voxel, on any grid. ``regions`` are the image's contributions for the table.
    """
    peak_voxel, world = peak(attribution)
    largest = float(np.abs(attribution.values[peak_voxel]))
    voxel = np.linalg.inv(image.affine) @ np.append(world, 1.0)
    centre = np.clip(np.rint(voxel[:3]).astype(int), 0, np.array(image.values.shape) - 1)
    size = UNITS_PER_MM * np.abs(np.diag(image.affine)[:3])  # of a voxel, in units
    extent = size * image.values.shape
    tallest, gap = max(extent[1], extent[2]), 14.0
    drawing = Drawing(3 * extent[0] + extent[1] + 5 * gap, tallest + 104, title)
    drawing.table = region_table(regions, total)
    drawing.text(gap, 24, title, size=15)

    def panel(left: float, name: str, grey: Plane, values: Plane, across: int, up: int, clear: float = 0.1) -> None:
        pixels = _blended(grey, values, window, largest, clear)
        mirrored = across == 0  # the x axis runs from left to right
        drawing.image(left, 56, extent[across], extent[up], pixels[:, ::-1] if mirrored else pixels)
        drawing.text(left, 48, name, size=11, fill=MUTED)
        offset = (centre[across] + 0.5) * size[across]
        x, y = left + (extent[across] - offset if mirrored else offset), 56 + extent[up] - (centre[up] + 0.5) * size[up]
        drawing.ring(x, y, 9, PEAK_MARK)
        for mark, at in zip(_ENDS[across], (left + 9, left + extent[across] - 9), strict=True):
            drawing.text(at, 56 + extent[up] - 6, mark, size=11, fill="#ffffff", anchor="middle")

    left = gap
    for name, (across, up, through) in _PLANES.items():
        index = int(centre[through])
        values = _sampled(attribution, image, across, up, through, index)
        panel(
            left,
            f"{name}, {'xyz'[through]} = {world[through]:.0f} mm",
            np.take(image.values, index, through).T,
            values,
            across,
            up,
        )
        left += extent[across] + gap
    strongest = np.take_along_axis(
        attribution.values, np.abs(attribution.values).argmax(axis=2, keepdims=True), axis=2
    )  # along the vertical axis
    flat = GridVolume(strongest, attribution.affine)
    values = _sampled(flat, image, 0, 1, 2, None)
    mean_image = np.clip(image.values, *window).mean(axis=2).T
    panel(left, "axial, largest value at any height", mean_image, values, 0, 1, clear=0.35)
    _legend(drawing, gap, tallest + 74, f"peak {attribution.values[peak_voxel]:+.2g} log-odds per voxel")
    drawing.text(gap, tallest + 94, _CONVENTION, size=12, fill=MUTED)
    return drawing


def contribution_table(attribution: Attribution) -> FigureTable:
    """Return every contribution, those of values that were not given one by one, the largest first."""
    rows = [
        (item.name, item.value, signed_points(attribution.total, item.log_odds), f"{item.log_odds:+.3f}")
        for item in contributions(attribution)
    ]
    return FigureTable(("Variable", "Value", "Points", "Log-odds"), rows)


def region_table(regions: Sequence[RegionContribution], total: float, limit: int = 12) -> FigureTable | None:
    """Return the ``limit`` largest contributions of regions, the largest first; None without regions.

    ``total`` is the log-odds of the probability.
    """
    largest = sorted(regions, key=lambda part: -abs(part.contribution))[:limit]
    rows = [
        (
            region_label(part.region),
            part.side or "",
            channel_label(part.modality),
            signed_points(total, part.contribution),
            f"{part.contribution:+.3f}",
        )
        for part in largest
    ]
    return FigureTable(("Region", "Side", "Image", "Points", "Log-odds"), rows) if rows else None


def waterfall(attribution: Attribution, limit: int = 12) -> Drawing:
    """Draw the contributions from base to total, the largest first; those after ``limit`` bars are one bar."""
    items = [
        (f"{item.name}: {item.value}" if item.value else item.name, item.log_odds)
        for item in grouped(contributions(attribution))
    ]
    if len(items) > limit:
        items = [*items[:limit], (f"{len(items) - limit} smaller ones", sum(value for _, value in items[limit:]))]

    row, names_end, width = 26.0, 340.0, 900.0
    stops = np.cumsum([attribution.base, *(value for _, value in items)])
    low, high = float(stops.min()), float(stops.max())
    scale = (width - names_end - 150) / ((high - low) or 1.0)
    bottom = 24 + row * (len(items) + 2)
    drawing = Drawing(width, bottom + 34, f"Contributions from {attribution.base:+.2f} to {attribution.total:+.2f}")
    drawing.table = contribution_table(attribution)

    def x(value: float) -> float:
        return names_end + (value - low) * scale

    for number, (name, value) in enumerate([(BASE, attribution.base), *items, (TOTAL, attribution.total)]):
        middle = 24 + row * (number + 0.5)
        drawing.text(names_end - 12, middle + 4, truncated(name, 52), anchor="end")
        if 0 < number <= len(items):
            start, end = float(stops[number - 1]), float(stops[number])
            drawing.line(x(start), middle - row + 8, x(start), middle - 8, GRID_LINE)
            drawing.bar(
                x(min(start, end)), middle - 8, max(abs(end - start) * scale, 1.5), 16, RAISES if value >= 0 else LOWERS
            )
            written = f"{value:+.2f} ({points_text(attribution.total, value)})"
            drawing.text(x(max(start, end)) + 6, middle + 4, written, size=12)
        else:
            drawing.line(x(value), middle - 10, x(value), middle + 10, INK, 3)
            drawing.text(x(value) + 8, middle + 4, f"{value:+.2f} ({percent(float(expit(value)))})", size=12)
    _legend(drawing, names_end, bottom + 20, "log-odds of a refractory occlusion, with percentage points")
    return drawing


def perfusion(summary: PerfusionSummary) -> Drawing:
    """Draw the volumes of core and of delayed tissue, in mL."""
    volumes = {"core": summary.core_ml, "Tmax > 10 s": summary.tmax10_ml, "Tmax > 6 s": summary.tmax6_ml}
    known = {name: value for name, value in volumes.items() if value is not None}
    row, left, width = 34.0, 110.0, 620.0
    drawing = Drawing(width, 16 + row * max(len(known), 1), "Perfusion volumes in mL")
    measures = {name: value for name, value in summary if value is not None}
    drawing.table = FigureTable(
        ("Measure", "Value"), [(label(name), perfusion_value(name, value)) for name, value in measures.items()]
    )
    scale = (width - left - 90) / max(*known.values(), 1.0, 1.0)
    colours = dict(zip(volumes, ("#cc79a7", "#e69f00", "#f0e442"), strict=True))
    for number, (name, value) in enumerate(known.items()):
        middle = 8 + row * (number + 0.5)
        drawing.text(left - 12, middle + 4, name, anchor="end")
        drawing.bar(left, middle - 10, value * scale, 20, colours[name])
        drawing.text(left + value * scale + 8, middle + 4, f"{value:.0f} mL")
    return drawing


def position(variables: Sequence[CohortPosition]) -> Drawing:
    """Draw the patient's values among the training patients': one row per variable, one dot per patient.

    Without a variable, the drawing says so.
    """
    row, left, width, scale_end = 24.0, 260.0, 860.0, 3.5
    bottom = 20 + row * len(variables)
    drawing = Drawing(width, bottom + 44, "This patient compared with training patients")
    rows = [
        (each.name, each.value_text, percent(float(np.mean(each.others < each.patient))), f"{each.patient:+.1f} SD")
        for each in variables
    ]
    drawing.table = FigureTable(("Variable", "This patient", "Training patients below", "From their mean"), rows)
    if not variables:
        drawing.text(left, bottom, "No number of the record is known, so there is nothing to compare.")
        return drawing
    scale = (width - left - 30) / (2 * scale_end)

    def x(value: float) -> float:
        return left + (min(max(value, -scale_end), scale_end) + scale_end) * scale

    for number in range(-3, 4):
        drawing.line(x(number), 16, x(number), bottom, GRID_LINE)
        drawing.text(
            x(number), bottom + 16, f"{number:+d} SD" if number else "mean", size=11, fill=MUTED, anchor="middle"
        )
    for number, variable in enumerate(variables):
        middle = 20 + row * (number + 0.5)
        drawing.text(left - 12, middle + 4, truncated(variable.name, 36), anchor="end")
        for value in variable.others:
            drawing.disc(x(float(value)), middle, 2.2, "#9bb8cc")
        beyond = abs(variable.patient) > scale_end
        drawing.disc(x(variable.patient), middle, 6, RAISES if beyond else INK)
    drawing.disc(left + 6, bottom + 32, 6, INK)
    drawing.text(left + 18, bottom + 36, "this patient (orange: beyond the scale)", size=11, fill=MUTED)
    drawing.disc(left + 290, bottom + 32, 2.2, "#9bb8cc")
    drawing.text(left + 300, bottom + 36, "a training patient", size=11, fill=MUTED)
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


def _blended(grey: Plane, values: Plane, window: tuple[float, float], largest: float, clear: float) -> Pixels:
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


def _legend(drawing: Drawing, left: float, baseline: float, note: str) -> None:
    drawing.bar(left, baseline - 10, 12, 12, RAISES)
    drawing.text(left + 18, baseline, "raises the probability", size=12, fill=MUTED)
    drawing.bar(left + 160, baseline - 10, 12, 12, LOWERS)
    drawing.text(left + 178, baseline, "lowers it", size=12, fill=MUTED)
    drawing.text(left + 250, baseline, note, size=12, fill=MUTED)
