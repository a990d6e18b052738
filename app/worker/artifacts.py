"""What a prediction leaves for people to look at: maps, figures and the report, each as a named file.

Notable choices:
- Images are shown on one MNI grid of 2 mm, each interpolated once from the stored volume: the model's own grid may be
  too coarse to recognise anything on.
- A map on the patient's own grid can have a hundred million voxels. It is stored in steps of a 127th of its peak, an
  eighth of the bytes and a quarter of the time; exact values stand in ``aligned-attribution-<channel>``.
- The maps are packed beside the drawing of the figures, one after the other: one large copy is held at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.core.concurrency import submit
from app.core.display_names import label, quantity
from app.imaging.io import nifti
from app.imaging.io.nifti import Volume
from app.imaging.model_grid import ChannelSpec, Grid
from app.imaging.resample import to_grid
from app.inference.attribution import atlas
from app.inference.clinical_encoder import width
from app.inference.model_input import ModelInput
from app.inference.model_version import MapVolume
from app.registry.manifest import Manifest, VariableKind
from app.reporting import figures, page
from app.reporting.drawing import Drawing
from app.reporting.figures import CohortPosition, Figure
from app.sdk.types import Channel, Input, Prediction

VIEW = Grid(shape=(91, 109, 91), affine=((2, 0, 0, -90), (0, 2, 0, -126), (0, 0, 2, -72), (0, 0, 0, 1)))
"""The grid that images are shown on: MNI152 at 2 mm."""

MAP, PNG, SVG, HTML = "application/gzip", "image/png", "image/svg+xml", "text/html; charset=utf-8"

_NOTE = "rlvo: log-odds per voxel, research only"
_AIR = {Channel.NCCT: -1000.0, Channel.CTA: -1000.0}
_FINE = {Channel.VESSELS: 100, Channel.TMAX: 100, Channel.RCBF: 1000}
"""Steps a unit in which an image is stored; a CT is stored in whole HU."""


@dataclass(frozen=True)
class ArtifactFile:
    """What a prediction made, under the name that its artifact gets."""

    name: str
    content: bytes
    media_type: str


def files(
    prediction: Prediction,
    case: ModelInput,
    manifest: Manifest,
    maps: Mapping[str, MapVolume],
    read: Callable[[Input], Volume],
    card: str,
) -> Iterator[ArtifactFile]:
    """Everything, maps first, the report last.

    :param prediction: as it will be on record, its attribution included
    :param maps: as `ModelVersion.explain` made them
    :param read: gives an upload of the study
    :param card: the version's model card, Markdown
    """
    assert prediction.attribution is not None
    packed = submit(partial(_packed, maps))
    images: list[ArtifactFile] = []
    drawn: dict[str, tuple[str, Drawing]] = {
        "waterfall": ("What every variable and image adds", figures.waterfall(prediction.attribution))
    }
    for spec, values in zip(manifest.channels, case.image, strict=True):
        if f"aligned-attribution-{spec.name}" in maps:
            shown = _image(spec, values, case, manifest.grid, read)
            images.append(_image_file(spec.name, shown))
            caption = f"{spec.name.upper()}: where it raised and lowered the probability"
            drawn[f"overlay-{spec.name}"] = (caption, _overlay(spec, shown, maps, prediction, manifest.grid))
    yield from packed.result()
    yield from images
    mask = case.sources.get(Channel.VESSELS)
    if mask is not None and mask.computed is not None:
        yield ArtifactFile("maps/vessels.nii.gz", nifti.pack(mask.computed.data, mask.computed.affine), MAP)
    if prediction.perfusion is not None:
        drawn["perfusion"] = ("Perfusion volumes", figures.perfusion(prediction.perfusion))
    if among := list(_among(case, manifest)):
        drawn["position"] = ("This patient among training patients", figures.position(among))
    for name, (_, drawing) in drawn.items():
        yield ArtifactFile(f"figures/{name}.svg", drawing.svg(), SVG)
        yield ArtifactFile(f"figures/{name}.png", drawing.png(), PNG)
    yield ArtifactFile("report.html", page.report(prediction, dict(drawn.values()), card).encode(), HTML)


def _packed(maps: Mapping[str, MapVolume]) -> list[ArtifactFile]:
    return [
        _aligned_map(name, volume) if name.startswith("aligned-") else _patient_map(name, volume)
        for name, volume in maps.items()
    ]


def _aligned_map(name: str, volume: MapVolume) -> ArtifactFile:
    return ArtifactFile(f"maps/{name}.nii.gz", nifti.pack(volume.array, volume.affine, description=_NOTE), MAP)


def _patient_map(name: str, volume: MapVolume) -> ArtifactFile:
    step = max(float(volume.array.max()), -float(volume.array.min())) / 127 or 1.0
    steps = np.empty(volume.array.shape, np.int8, order="F")
    for plane, done in zip(volume.array.T, steps.T, strict=True):  # a plane stays in the cache; the whole would not
        done[:] = np.rint(plane * np.float32(1 / step))
    content = nifti.pack(steps, volume.affine, slope=step, description=_NOTE)
    return ArtifactFile(f"maps/{name}.nii.gz", content, MAP)


def _image(
    spec: ChannelSpec, values: NDArray[np.float32], case: ModelInput, grid: Grid, read: Callable[[Input], Volume]
) -> Figure:
    """A channel's real-world values; where its volume is not known, as the network saw them."""
    source, own = case.sources.get(spec.name), case.grids.get(spec.name)
    if source is None or own is None or (source.computed is None and source.upload is None):
        return Figure(values * spec.std + spec.mean, np.asarray(grid.affine, np.float64))
    volume = read(source.upload) if source.upload is not None else source.computed
    assert volume is not None
    seen = to_grid(volume, VIEW, np.linalg.inv(own.mni_from_world), fill=_AIR.get(spec.name, 0.0))
    return Figure(seen * np.float32(source.factor), np.asarray(VIEW.affine, np.float64))


def _image_file(channel: Channel, image: Figure) -> ArtifactFile:
    steps: NDArray[Any] = np.rint(image.values * _FINE.get(channel, 1)).clip(-32768, 32767).astype(np.int16)
    content = nifti.pack(steps, image.affine, slope=1 / _FINE.get(channel, 1))
    return ArtifactFile(f"maps/aligned-{channel}.nii.gz", content, MAP)


def _overlay(
    spec: ChannelSpec, image: Figure, maps: Mapping[str, MapVolume], prediction: Prediction, grid: Grid
) -> Drawing:
    assert prediction.attribution is not None
    attribution = Figure(*maps[f"aligned-attribution-{spec.name}"])
    voxel, _ = figures.peak(attribution)
    where = atlas.NAMES[atlas.labels(grid.shape, grid.affine)[voxel]]
    part = next(each.contribution for each in prediction.attribution.imaging if each.modality == spec.name)
    peak = "outside the brain" if where == "other" else f"in the {where}"
    title = f"{spec.name.upper()} adds {part:+.2f}; its peak lies {peak}"
    mine = [each for each in prediction.attribution.regions if each.modality == spec.name]
    return figures.overlay(image, spec.window, attribution, title, mine)


def _among(case: ModelInput, manifest: Manifest) -> Iterator[CohortPosition]:
    """The numbers of the clinical vector that are known, beside those of the background patients."""
    variables = manifest.clinical.variables
    others = np.asarray(manifest.background.vectors, np.float32)
    missing = sum(width(variable) for variable in variables)
    column = 0
    for index, variable in enumerate(variables):
        if variable.kind is VariableKind.NUMBER and not case.clinical[missing + index]:
            known = others[others[:, missing + index] == 0]
            value = case.shown.get(variable.name)
            said = "" if value is None else quantity(value, variable.unit)
            yield CohortPosition(label(variable.name), said, float(case.clinical[column]), known[:, column])
        column += width(variable)
