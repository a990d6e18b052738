"""Files of one prediction that are stored with its answer: maps, alignment and the data of the figures.

Design notes:
- Images are shown on one MNI grid of 2 mm, interpolated once from the stored volume; the grid of the model can be too
  coarse to show anatomy.
- A map on the patient's grid can have 10^8 voxels. It is stored as int8, in steps of 1/127 of its peak;
  ``aligned-attribution-<channel>`` has the exact values.
- One thread packs the maps one after the other while the images are interpolated, so memory holds one large copy at a
  time.
- The figures and the report are drawn later, from these files (`app.worker.drawing_data`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.core.concurrency import submit
from app.core.display_names import channel_label, format_quantity
from app.core.explanation_text import OUTSIDE, points_text
from app.imaging.io import nifti
from app.imaging.io.nifti import Volume
from app.imaging.model_grid import ChannelSpec, Grid
from app.imaging.resample import to_grid
from app.inference.attribution import atlas
from app.inference.model_input import ModelInput
from app.inference.model_version import MapVolume
from app.registry.manifest import Manifest, VariableKind
from app.reporting.grid_volume import GridVolume, peak
from app.sdk import published_scores
from app.sdk.clinical import ClinicalRecord
from app.sdk.types import Channel, Input, Prediction
from app.worker.drawing_data import DATA, DrawingData, OverlayData, PositionData, ScoreData

VIEW = Grid(shape=(91, 109, 91), affine=((2, 0, 0, -90), (0, 2, 0, -126), (0, 0, 2, -72), (0, 0, 0, 1)))
"""Grid of the shown images: MNI152 at 2 mm."""

MAP, JSON = "application/gzip", "application/json"

_NOTE = "rlvo: log-odds per voxel, research only"
_AIR = {Channel.NCCT: -1000.0, Channel.CTA: -1000.0}
_STEPS_PER_UNIT = {Channel.VESSELS: 100, Channel.TMAX: 100, Channel.RCBF: 1000}
"""Stored steps per unit of an image; a CT is stored in whole HU."""


@dataclass(frozen=True)
class ArtifactFile:
    """One file of a prediction; ``map_name`` is the name of a map in `Attribution.maps`, None for other files."""

    name: str
    content: bytes
    media_type: str
    map_name: str | None = None


def files(
    prediction: Prediction,
    model_input: ModelInput,
    manifest: Manifest,
    maps: Mapping[str, MapVolume],
    read: Callable[[Input], Volume],
    card: str,
    record: ClinicalRecord,
) -> Iterator[ArtifactFile]:
    """Makes all files, the maps first and the data of the figures last.

    Args:
        prediction: The prediction as the database will have it, with its attribution.
        model_input: Output of `prepare`.
        manifest: Manifest of the model version.
        maps: Maps of `ModelVersion.explain`: ``aligned-...`` on the grid of the model, others on the patient's grid.
        read: Returns a volume of the study.
        card: Model card of the version, Markdown.
        record: Clinical record, for the published scores.
    """
    assert prediction.attribution is not None
    packed = submit(partial(_map_files, maps))
    images: list[ArtifactFile] = []
    overlays: list[OverlayData] = []
    for spec, values in zip(manifest.channels, model_input.image, strict=True):
        if f"aligned-attribution-{spec.name}" in maps:
            shown = _image(spec, values, model_input, manifest.grid, read)
            images.append(_image_file(spec.name, shown))
            overlays.append(
                OverlayData(channel=spec.name, window=spec.window, title=_title(spec, maps, prediction, manifest.grid))
            )
    yield from packed.result()
    yield from images
    mask = model_input.sources.get(Channel.VESSELS)
    if mask is not None and mask.computed is not None:
        yield _map_file("vessels", nifti.pack(mask.computed.data, mask.computed.affine))
    for name, lesion in model_input.lesions.items():
        yield _map_file(name, nifti.pack(lesion.data, lesion.affine))
    yield ArtifactFile("alignment.json", _alignment(model_input), JSON)
    positions = list(_cohort_positions(model_input, manifest))
    scores = [
        ScoreData(name=one.name, points=one.text, missing=one.missing, source=one.source)
        for one in published_scores.of_record(record)
    ]
    data = DrawingData(prediction=prediction, overlays=overlays, positions=positions, card=card, scores=scores)
    yield ArtifactFile(DATA, data.model_dump_json().encode(), JSON)


def _alignment(model_input: ModelInput) -> bytes:
    """Affine and map to MNI space of each channel that has a grid of the patient, as JSON."""
    matrices = {
        channel.value: {"affine": grid.affine, "mni_from_world": grid.mni_from_world}
        for channel, grid in model_input.grids.items()
    }
    return json.dumps(
        {
            channel: {name: np.asarray(matrix, np.float64).tolist() for name, matrix in both.items()}
            for channel, both in matrices.items()
        }
    ).encode()


def _map_files(maps: Mapping[str, MapVolume]) -> list[ArtifactFile]:
    return [
        _map_file(name, _pack_exact(volume) if name.startswith("aligned-") else _pack_int8(volume))
        for name, volume in maps.items()
    ]


def _map_file(name: str, content: bytes) -> ArtifactFile:
    return ArtifactFile(f"maps/{name}.nii.gz", content, MAP, map_name=name)


def _pack_exact(volume: MapVolume) -> bytes:
    return nifti.pack(volume.array, volume.affine, description=_NOTE)


def _pack_int8(volume: MapVolume) -> bytes:
    step = max(float(volume.array.max()), -float(volume.array.min())) / 127 or 1.0
    steps = np.empty(volume.array.shape, np.int8, order="F")
    for source, target in zip(volume.array.T, steps.T, strict=True):  # one plane fits the processor cache
        target[:] = np.rint(source * np.float32(1 / step))
    return nifti.pack(steps, volume.affine, slope=step, description=_NOTE)


def _image(
    spec: ChannelSpec, values: NDArray[np.float32], model_input: ModelInput, grid: Grid, read: Callable[[Input], Volume]
) -> GridVolume:
    """Image of a channel in its physical unit; the input of the network if the volume is unknown."""
    source, patient_grid = model_input.sources.get(spec.name), model_input.grids.get(spec.name)
    if source is None or patient_grid is None or (source.computed is None and source.upload is None):
        return GridVolume(values * spec.std + spec.mean, np.asarray(grid.affine, np.float64))
    volume = read(source.upload) if source.upload is not None else source.computed
    assert volume is not None
    values = to_grid(volume, VIEW, np.linalg.inv(patient_grid.mni_from_world), fill=_AIR.get(spec.name, 0.0))
    return GridVolume(values * np.float32(source.factor), np.asarray(VIEW.affine, np.float64))


def _image_file(channel: Channel, image: GridVolume) -> ArtifactFile:
    steps: NDArray[Any] = np.rint(image.values * _STEPS_PER_UNIT.get(channel, 1)).clip(-32768, 32767).astype(np.int16)
    return _map_file(f"aligned-{channel}", nifti.pack(steps, image.affine, slope=1 / _STEPS_PER_UNIT.get(channel, 1)))


def _title(spec: ChannelSpec, maps: Mapping[str, MapVolume], prediction: Prediction, grid: Grid) -> str:
    """Title of an overlay: the contribution of the image, and where its attribution has its peak."""
    assert prediction.attribution is not None
    voxel, _ = peak(GridVolume(*maps[f"aligned-attribution-{spec.name}"]))
    region = atlas.NAMES[atlas.labels(grid.shape, grid.affine)[voxel]]
    share = next(each.contribution for each in prediction.attribution.imaging if each.modality == spec.name)
    place = "outside the brain" if region == OUTSIDE else f"in the {region}"
    total = prediction.attribution.total
    return f"{channel_label(spec.name)} adds {share:+.2f} log-odds ({points_text(total, share)}); the peak is {place}"


def _cohort_positions(model_input: ModelInput, manifest: Manifest) -> Iterator[PositionData]:
    """Known numbers of the clinical vector, with the values of the background patients."""
    variables = manifest.clinical.variables
    background = np.asarray(manifest.background.vectors, np.float32)
    missing = sum(variable.width for variable in variables)
    column = 0
    for index, variable in enumerate(variables):
        if variable.kind is VariableKind.NUMBER and not model_input.clinical[missing + index]:
            known = background[background[:, missing + index] == 0]
            value = model_input.shown.get(variable.name)
            text = "" if value is None else format_quantity(value, variable.unit)
            yield PositionData(
                name=variable.label,
                value_text=text,
                patient=float(model_input.clinical[column]),
                others=known[:, column].tolist(),
            )
        column += variable.width
