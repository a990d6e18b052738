"""Volumes of the chosen series: decoded, rescaled slice by slice, and placed in RAS+ millimetres."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.dicom.errors import DEFAULT, DicomLimits, Unreadable, refused, too_large
from app.dicom.files import Files
from app.dicom.frames import Frame
from app.dicom.geometry import along_normal, plan
from app.dicom.pixels import decode
from app.dicom.prepared import Prepared
from app.dicom.stacks import Stack
from app.dicom.time_series import plan_times
from app.sdk.types import Flag

__all__ = ["AssembledVolume", "Pixels", "series", "single_volume"]

_INT16 = np.iinfo(np.int16)
Targets = Mapping[tuple[int, int], tuple[int, ...]]


@dataclass(frozen=True, eq=False)
class Pixels:
    """Stored values of the files of a study.

    Attributes:
        files: the files.
        limits: largest sizes, of an inflated file and of a volume.
        prepared: frames that were decoded before.
        digests: sha-256 of the files, by their numbers.
    """

    files: Files
    limits: DicomLimits = DEFAULT
    prepared: Prepared = field(default_factory=Prepared)
    digests: Mapping[int, str] = field(default_factory=dict)

    def of(self, file: int) -> Iterable[NDArray[Any]]:
        """Frames (rows, columns) of a file, in turn. Raises Unreadable."""
        found = self.prepared.take_pixels(self.digests.get(file, ""))
        return decode(self.files.read(file), self.limits) if found is None else found


@dataclass(frozen=True, eq=False)
class AssembledVolume:
    """One input of a prediction.

    Attributes:
        data: (X, Y, Z), or (X, Y, Z, T); real values, int16 if they are whole numbers, else float32.
        affine: (4, 4), voxel index -> RAS+ mm; a gantry tilt is a shear.
        time_step_s: seconds between the volumes of a series.
    """

    data: NDArray[Any]
    affine: NDArray[np.float64]
    flags: tuple[Flag, ...] = ()
    time_step_s: float | None = None


def single_volume(stack: Stack, pixels: Pixels, name: str) -> AssembledVolume:
    """Assemble a stack with one slice at each position.

    Args:
        stack: a placed stack; of several phases, the first is used.
        pixels: the pixels of the study.
        name: the upload field, for messages.

    Returns:
        The volume.

    Raises:
        InvalidDicom: slices are missing, contradict each other or cannot be decoded.
        DecompressedTooLarge: the volume has too many voxels.
    """
    frames = _one_for_each_position(stack, pixels, name)
    if len(frames) < 2:
        raise refused(f"{name}: the series has one slice position only. Send the whole series.")
    slices = plan(frames)
    _check_size(
        (frames[0].rows, frames[0].columns, len(frames) if slices.lower is None else len(slices.lower)), pixels.limits
    )
    targets = {(frame.file, frame.index): (number,) for number, frame in enumerate(frames)}
    stored = _load(frames, targets, (len(frames),), pixels, name)
    flags = (_interpolated(name),) if slices.lower is not None else ()
    return AssembledVolume(slices.volume(stored), slices.affine, flags)


def series(stack: Stack, pixels: Pixels, name: str) -> AssembledVolume:
    """Assemble a stack with many time points at each position; arguments and errors as of ``single_volume``."""
    times = plan_times(stack.groups)
    firsts = [group[0] for group in times.groups]
    slices = plan(firsts)
    points = max(len(group) for group in times.groups)
    rows, columns = firsts[0].rows, firsts[0].columns
    count = len(firsts) if slices.lower is None else len(slices.lower)
    _check_size((rows, columns, count, max(points, len(times.axis_s))), pixels.limits)
    targets = {
        (frame.file, frame.index): (point, number)
        for number, group in enumerate(times.groups)
        for point, frame in enumerate(group)
    }
    frames = [frame for group in times.groups for frame in group]
    data = _load(frames, targets, (points, len(firsts)), pixels, name)
    flags: tuple[Flag, ...] = ()
    if times.resampled:
        even = np.empty((columns, rows, len(times.axis_s), len(firsts)), np.float32, order="F")
        for number, group in enumerate(times.groups):
            even[..., number] = times.at_position(number, data[:, :, : len(group), number])
        data = even
        detail = f"{name}: the slices were acquired at uneven times and were interpolated on one time axis"
        flags = (Flag(code="times-interpolated", detail=detail),)
    if slices.lower is not None:
        flags = (*flags, _interpolated(name))
    volume = np.moveaxis(slices.volume(data), 2, 3)
    return AssembledVolume(volume, slices.affine, flags, times.interval_s)


def _interpolated(name: str) -> Flag:
    detail = f"{name}: the slices have uneven distances and were interpolated between their true positions"
    return Flag(code="slices-interpolated", detail=detail)


def _check_size(shape: tuple[int, ...], limits: DicomLimits) -> None:
    voxels = 1
    for side in shape:
        voxels *= side
    if voxels > limits.max_voxels:
        raise too_large(f"A series has more than {limits.max_voxels} voxels, the limit of this service.")


def _load(
    frames: Sequence[Frame], targets: Targets, places: tuple[int, ...], pixels: Pixels, name: str
) -> NDArray[Any]:
    """Real values (columns, rows, *places) of frames, each at its target."""
    whole = all(frame.slope == 1 and frame.intercept == int(frame.intercept) for frame in frames)
    shape = (frames[0].columns, frames[0].rows, *places)
    out: NDArray[Any] = np.zeros(shape, np.int16 if whole else np.float32, order="F")
    for frame, stored in _decoded(frames, pixels, name):
        values: NDArray[Any]
        if out.dtype == np.int16:
            values = stored.astype(np.int64) + int(frame.intercept)
            if values.min() < _INT16.min or values.max() > _INT16.max:
                out = out.astype(np.float32, order="F")
        else:
            values = stored.astype(np.float64) * frame.slope + frame.intercept
        place: Any = (slice(None), slice(None), *targets[frame.file, frame.index])
        out[place] = values.T
    return out


def _decoded(frames: Iterable[Frame], pixels: Pixels, name: str) -> Iterable[tuple[Frame, NDArray[Any]]]:
    """Frames with their stored values (rows, columns); each file is read once."""
    by_file: dict[int, dict[int, Frame]] = {}
    for frame in frames:
        by_file.setdefault(frame.file, {})[frame.index] = frame
    for file, wanted in by_file.items():
        found = 0
        try:
            for index, stored in enumerate(pixels.of(file)):
                if index in wanted:
                    found += 1
                    yield wanted[index], stored
        except Unreadable as error:
            raise refused(f"{name}: an image of the series {error}. Export the series again.") from error
        if found != len(wanted):
            raise refused(f"{name}: an image of the series has fewer frames than its header says. Export it again.")


def _one_for_each_position(stack: Stack, pixels: Pixels, name: str) -> list[Frame]:
    """One slice for each position: of equal slices any, of several phases those of the first."""
    groups = stack.groups
    several = [group for group in groups if len(group) > 1]
    if several:
        unequal = [group for group in several if not _equal(group, pixels, name)]
        counts = {len(group) for group in groups}
        if unequal and (len(counts) > 1 or not all(_separable(group) for group in groups)):
            along = along_normal([group[0] for group in unequal][:20])
            shown = ", ".join(f"{position:.2f}" for position in along)
            raise refused(
                f"{name}: the series has different slices at one position, at {shown} mm along the slice normal, and "
                "nothing says which belongs to the volume. Send one volume for each series."
            )
    return [min(group, key=_phase) for group in groups]


def _equal(group: Sequence[Frame], pixels: Pixels, name: str) -> bool:
    stored = [
        values.astype(np.float64) * frame.slope + frame.intercept for frame, values in _decoded(group, pixels, name)
    ]
    return all(np.array_equal(each, stored[0]) for each in stored[1:])


def _phase(frame: Frame) -> tuple[object, ...]:
    return (*frame.order[:2], min(frame.times_s.values(), default=0.0))


def _separable(group: Sequence[Frame]) -> bool:
    return len({_phase(frame) for frame in group}) == len(group)
