"""The pictures of one prediction: overlays, the waterfall of contributions, perfusion, the patient among others.

Notable choices:
- Orange raises the probability and blue lowers it (Okabe and Ito 2008: told apart by the colour-blind).
- Neurological view, left is left, and every slice says where it lies in MNI millimetres.
- A plane is sampled where it is shown, never the whole volume.
- Figures are made from arrays on a common world frame; nothing here reads a file.
- Every figure carries its table.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from app.core.display_names import label, outside, percent, shortened, shown, volume
from app.reporting.drawing import INK, QUIET, Drawing, FigureTable, Pixels
from app.sdk.types import Attribution, PerfusionSummary, RegionContribution

RAISES, LOWERS, MARK, FAINT = "#d55e00", "#0072b2", "#f0e442", "#d5dde5"
UNITS_PER_MM = 1.2
_PLANES = {"axial": (0, 1, 2), "coronal": (0, 2, 1), "sagittal": (1, 2, 0)}
_ENDS = {0: ("L", "R"), 1: ("P", "A")}

Plane = NDArray[np.floating]
"""(up, across): the first row is the lowest."""


@dataclass(frozen=True)
class Figure:
    """A volume (X, Y, Z) with its affine (4, 4), voxel to MNI RAS+ mm; the affine of an image is axis-aligned."""

    values: NDArray[np.floating]
    affine: NDArray[np.float64]


@dataclass(frozen=True)
class CohortPosition:
    """A patient's value of one variable among those of training patients, all in standard deviations from the mean.

    ``said``: the value with its unit, as the record has it.
    """

    name: str
    said: str
    patient: float
    others: NDArray[np.floating]


def peak(attribution: Figure) -> tuple[tuple[int, int, int], NDArray[np.float64]]:
    """Voxel of the largest absolute attribution, and where it lies in MNI mm."""
    flat = int(np.argmax(np.abs(attribution.values)))
    i, j, k = (int(n) for n in np.unravel_index(flat, attribution.values.shape))
    return (i, j, k), (attribution.affine @ np.array([i, j, k, 1.0]))[:3]


def overlay(
    image: Figure,
    window: tuple[float, float],
    attribution: Figure,
    title: str,
    regions: Sequence[RegionContribution] = (),
) -> Drawing:
    """Axial, coronal and sagittal slices through the attribution's peak, and all of it from above.

    :param image: what lies below, shown between ``window``'s ends (HU, s or ratio)
    :param attribution: log-odds a voxel, on any grid
    :param regions: this image's, for the table
    """
    at, world = peak(attribution)
    most = float(np.abs(attribution.values[at]))
    voxel = np.linalg.inv(image.affine) @ np.append(world, 1.0)
    centre = np.clip(np.rint(voxel[:3]).astype(int), 0, np.array(image.values.shape) - 1)
    size = UNITS_PER_MM * np.abs(np.diag(image.affine)[:3])  # of a voxel, in units
    extent = size * image.values.shape
    tallest, gap = max(extent[1], extent[2]), 14.0
    drawing = Drawing(3 * extent[0] + extent[1] + 5 * gap, tallest + 84, title)
    drawing.table = by_region(regions)
    drawing.text(gap, 24, title, size=15)

    def panel(left: float, name: str, grey: Plane, values: Plane, across: int, up: int, clear: float = 0.1) -> None:
        drawing.photo(left, 56, extent[across], extent[up], _blended(grey, values, window, most, clear))
        drawing.text(left, 48, name, size=11, fill=QUIET)
        x, y = left + (centre[across] + 0.5) * size[across], 56 + extent[up] - (centre[up] + 0.5) * size[up]
        drawing.ring(x, y, 9, MARK)
        for mark, side in zip(_ENDS[across], (left + 9, left + extent[across] - 9), strict=True):
            drawing.text(side, 56 + extent[up] - 6, mark, size=11, fill="#ffffff", anchor="middle")

    left = gap
    for name, (across, up, through) in _PLANES.items():
        where = int(centre[through])
        values = _sampled(attribution, image, across, up, through, where)
        panel(
            left,
            f"{name}, {'xyz'[through]} = {world[through]:.0f} mm",
            np.take(image.values, where, through).T,
            values,
            across,
            up,
        )
        left += extent[across] + gap
    strongest = np.take_along_axis(
        attribution.values, np.abs(attribution.values).argmax(axis=2, keepdims=True), axis=2
    )  # on every line from above
    flat = Figure(strongest, attribution.affine)
    values = _sampled(flat, image, 0, 1, 2, None)
    shadow = np.clip(image.values, *window).mean(axis=2).T
    panel(left, "from above, the strongest at any height", shadow, values, 0, 1, clear=0.35)
    _legend(drawing, gap, tallest + 74, f"peak {attribution.values[at]:+.2g} log-odds a voxel")
    return drawing


def contributions(attribution: Attribution) -> list[tuple[str, str, float]]:
    """Every contribution as a name, a value in words and its log-odds, the largest first."""
    items = [
        (label(item.variable), "unknown" if item.imputed else shown(item.value), item.contribution)
        for item in attribution.clinical
    ] + [(f"image: {item.modality}", "", item.contribution) for item in attribution.imaging]
    return sorted(items, key=lambda item: -abs(item[2]))


def by_region(regions: Sequence[RegionContribution], most: int = 12) -> FigureTable | None:
    """The ``most`` regions that weigh most, the largest first; None where there are none."""
    best = sorted(regions, key=lambda part: -abs(part.contribution))[:most]
    rows = [(outside(part.region), part.side or "", str(part.modality), f"{part.contribution:+.3f}") for part in best]
    return FigureTable(("Region", "Side", "Image", "Log-odds"), rows) if rows else None


def waterfall(attribution: Attribution, most: int = 12) -> Drawing:
    """From the base to the total, the largest contribution first; what is past ``most`` bars is one bar."""
    every = contributions(attribution)
    items = [(f"{name}: {value}" if value else name, part) for name, value, part in every]
    if len(items) > most:
        items = [*items[:most], (f"{len(items) - most} smaller ones", sum(value for _, value in items[most:]))]

    row, names_end, width = 26.0, 340.0, 900.0
    stops = np.cumsum([attribution.base, *(value for _, value in items)])
    low, high = float(stops.min()), float(stops.max())
    scale = (width - names_end - 80) / ((high - low) or 1.0)
    bottom = 24 + row * (len(items) + 2)
    drawing = Drawing(width, bottom + 34, f"Contributions from {attribution.base:+.2f} to {attribution.total:+.2f}")
    drawing.table = FigureTable(("Variable", "Value", "Log-odds"), [(*said, f"{part:+.3f}") for *said, part in every])

    def x(value: float) -> float:
        return names_end + (value - low) * scale

    for number, (name, value) in enumerate(
        [("average training patient", attribution.base), *items, ("this patient", attribution.total)]
    ):
        middle = 24 + row * (number + 0.5)
        drawing.text(names_end - 12, middle + 4, shortened(name, 52), anchor="end")
        if 0 < number <= len(items):
            start, end = float(stops[number - 1]), float(stops[number])
            drawing.line(x(start), middle - row + 8, x(start), middle - 8, FAINT)
            drawing.bar(
                x(min(start, end)), middle - 8, max(abs(end - start) * scale, 1.5), 16, RAISES if value >= 0 else LOWERS
            )
            drawing.text(x(max(start, end)) + 6, middle + 4, f"{value:+.2f}", size=12)
        else:
            drawing.line(x(value), middle - 10, x(value), middle + 10, INK, 3)
            drawing.text(x(value) + 8, middle + 4, f"{value:+.2f}", size=12)
    _legend(drawing, names_end, bottom + 20, "log-odds of a refractory occlusion")
    return drawing


def perfusion(summary: PerfusionSummary) -> Drawing:
    """Volumes of core and of delayed tissue, in mL."""
    wanted = {"core": summary.core_ml, "Tmax > 10 s": summary.tmax10_ml, "Tmax > 6 s": summary.tmax6_ml}
    known = {name: value for name, value in wanted.items() if value is not None}
    row, left, width = 34.0, 110.0, 620.0
    drawing = Drawing(width, 16 + row * max(len(known), 1), "Perfusion volumes in mL")
    every = {name: value for name, value in summary if value is not None}
    drawing.table = FigureTable(
        ("Measure", "Value"), [(label(name), volume(name, value)) for name, value in every.items()]
    )
    scale = (width - left - 90) / max(*known.values(), 1.0, 1.0)
    colours = dict(zip(wanted, ("#cc79a7", "#e69f00", "#f0e442"), strict=True))
    for number, (name, value) in enumerate(known.items()):
        middle = 8 + row * (number + 0.5)
        drawing.text(left - 12, middle + 4, name, anchor="end")
        drawing.bar(left, middle - 10, value * scale, 20, colours[name])
        drawing.text(left + value * scale + 8, middle + 4, f"{value:.0f} mL")
    return drawing


def position(variables: Sequence[CohortPosition]) -> Drawing:
    """Where the patient stands among training patients: one line a variable, a dot for each of them."""
    row, left, width, reach = 24.0, 260.0, 860.0, 3.5
    bottom = 20 + row * len(variables)
    drawing = Drawing(width, bottom + 44, "This patient among training patients")
    rows = [
        (each.name, each.said, percent(float(np.mean(each.others < each.patient))), f"{each.patient:+.1f} SD")
        for each in variables
    ]
    drawing.table = FigureTable(("Variable", "This patient", "Training patients below", "From their mean"), rows)
    scale = (width - left - 30) / (2 * reach)

    def x(value: float) -> float:
        return left + (min(max(value, -reach), reach) + reach) * scale

    for number in range(-3, 4):
        drawing.line(x(number), 16, x(number), bottom, FAINT)
        drawing.text(
            x(number), bottom + 16, f"{number:+d} SD" if number else "mean", size=11, fill=QUIET, anchor="middle"
        )
    for number, variable in enumerate(variables):
        middle = 20 + row * (number + 0.5)
        drawing.text(left - 12, middle + 4, shortened(variable.name, 36), anchor="end")
        for value in variable.others:
            drawing.disc(x(float(value)), middle, 2.2, "#9bb8cc")
        beyond = abs(variable.patient) > reach
        drawing.disc(x(variable.patient), middle, 6, RAISES if beyond else INK)
    drawing.disc(left + 6, bottom + 32, 6, INK)
    drawing.text(left + 18, bottom + 36, "this patient (orange: beyond the scale)", size=11, fill=QUIET)
    drawing.disc(left + 290, bottom + 32, 2.2, "#9bb8cc")
    drawing.text(left + 300, bottom + 36, "a training patient", size=11, fill=QUIET)
    return drawing


def _sampled(attribution: Figure, image: Figure, across: int, up: int, through: int, where: int | None) -> Plane:
    """The attribution on the image's plane ``where`` along the axis ``through``; None: that axis does not count."""
    rows, columns = np.indices((image.values.shape[up], image.values.shape[across]), dtype=np.float64)
    voxels = np.ones((4, rows.size))
    voxels[across], voxels[up], voxels[through] = columns.ravel(), rows.ravel(), where or 0
    at = (np.linalg.inv(attribution.affine) @ image.affine @ voxels)[:3]
    if where is None:
        at[through] = 0
    found: Plane = ndimage.map_coordinates(attribution.values, at, order=1, mode="constant").reshape(rows.shape)
    return found


def _blended(grey: Plane, values: Plane, window: tuple[float, float], most: float, clear: float) -> Pixels:
    """The grey plane with its overlay; what lies under a share ``clear`` of the peak stays clear."""
    low, high = window
    light = np.clip((grey - low) / (high - low), 0, 1)[..., None] * 255
    share = np.abs(values)[..., None] / (most or 1.0)
    opacity = np.clip((share - clear) / 0.4, 0, 0.85)
    colour = np.where(values[..., None] >= 0, _rgb(RAISES), _rgb(LOWERS))
    blended: Pixels = np.rint(light * (1 - opacity) + colour * opacity).astype(np.uint8)[::-1]
    return blended


def _rgb(colour: str) -> NDArray[np.uint8]:
    return np.frombuffer(bytes.fromhex(colour[1:]), np.uint8)


def _legend(drawing: Drawing, left: float, baseline: float, note: str) -> None:
    drawing.bar(left, baseline - 10, 12, 12, RAISES)
    drawing.text(left + 18, baseline, "raises the probability", size=12, fill=QUIET)
    drawing.bar(left + 160, baseline - 10, 12, 12, LOWERS)
    drawing.text(left + 178, baseline, "lowers it", size=12, fill=QUIET)
    drawing.text(left + 250, baseline, note, size=12, fill=QUIET)
