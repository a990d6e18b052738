"""One series of a synthetic DICOM study: as instances in memory, or as files.

Design notes:
- A ``SeriesPlan`` holds everything a header says. ``instances`` gives it to rules without writing files.
- Every file says that it is synthetic: patient's name and id, study and image comments.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.dicom.frames import Frame, Instance, SeriesFacts
from app.dicom.writing import Syntax, encode

__all__ = ["COLOUR", "CT", "DOSE_SR", "ENHANCED_CT", "SeriesPlan", "files", "instances", "planned_slices"]

CT, ENHANCED_CT = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.2.1"
COLOUR, DOSE_SR = "1.2.840.10008.5.1.4.1.1.7", "1.2.840.10008.5.1.4.1.1.88.67"
SYNTHETIC = "SYNTHETIC^PHANTOM"
_LPS = np.array([-1.0, -1.0, 1.0])
_DAY = "20260101"
_START_S = 36_000.0  # time of the study: ten o'clock
_SECONDS_A_DAY = 86_400
_UID_ROOT = "2.25."

Pixels = Callable[[int, int], NDArray[Any]]


@dataclass(frozen=True, eq=False)
class SeriesPlan:
    """A series and its slices.

    Attributes:
        truth: the role that the series has: the name of an input, or ``other``.
        across, down: directions of columns and rows, LPS.
        positions: (n, 3) centre of the first voxel of each slice, LPS mm.
        spacing: distance of rows and of columns, mm.
        start_s: time of the first slice, from the start of the study.
        times_s: acquisition times of the volumes, from ``start_s``.
        pixels: stored values (rows, columns) of a slice at a position and a time point; None for a small empty picture.
        slope, intercept: real value = slope * stored + intercept.
    """

    truth: str
    number: int
    description: str
    protocol: str = ""
    modality: str = "CT"
    sop_class: str = CT
    image_type: tuple[str, ...] = ("ORIGINAL", "PRIMARY", "AXIAL")
    kernel: str = ""
    contrast: str = ""
    body_part: str = "HEAD"
    manufacturer: str = "rlvo phantom"
    thickness: float = 5.0
    across: tuple[float, ...] = (1.0, 0.0, 0.0)
    down: tuple[float, ...] = (0.0, 1.0, 0.0)
    positions: NDArray[np.float64] | None = None
    spacing: tuple[float, float] = (0.5, 0.5)
    start_s: float = 0.0
    times_s: tuple[float, ...] = (0.0,)
    pixels: Pixels | None = None
    slope: float = 1.0
    intercept: float = -1024.0
    colour: bool = False


def planned_slices(data: NDArray[Any], affine: NDArray[np.float64]) -> dict[str, Any]:
    """Arguments of ``SeriesPlan`` that place the voxels of a volume.

    Args:
        data: (X, Y, Z) whole numbers in HU.
        affine: (4, 4), voxel index -> RAS+ mm; it may be sheared by a gantry tilt.

    Returns:
        Directions, positions, spacing and pixels.
    """
    edges = np.linalg.norm(affine[:3, :3], axis=0)
    across, down = (tuple((_LPS * affine[:3, k] / edges[k]).tolist()) for k in (0, 1))
    slices = np.arange(data.shape[2])[:, None]
    positions = (affine[:3, 3] + slices * affine[:3, 2]) * _LPS

    def pixels(number: int, _time: int) -> NDArray[Any]:
        return (data[:, :, number].T.astype(np.int32) + 1024).astype(np.uint16)

    return {
        "across": across,
        "down": down,
        "positions": positions,
        "spacing": (float(edges[1]), float(edges[0])),
        "pixels": pixels,
    }


def uid(*parts: object) -> str:
    """A UID made of a digest of ``parts`` (PS3.5, B.2), the same at each call."""
    digest = hashlib.sha256(repr(parts).encode()).digest()
    return _UID_ROOT + str(int.from_bytes(digest[:15], "big"))


def files(plan: SeriesPlan, study: object, *, syntax: Syntax = Syntax.EXPLICIT) -> Iterator[bytes]:
    """Write the instances of a series, one after the other.

    Args:
        plan: the series.
        study: any value that is the same for all series of a study; UIDs are made of it.
        syntax: transfer syntax.

    Yields:
        The file of each instance.
    """
    if plan.sop_class == ENHANCED_CT:
        yield _enhanced(plan, study, syntax)
        return
    if plan.sop_class == DOSE_SR:
        yield encode(_common(plan, study, 0, 0))
        return
    for time in range(len(plan.times_s)):
        for number in range(_count(plan)):
            yield encode(_slice(plan, study, number, time), _pixels(plan, number, time), syntax)


def instances(plan: SeriesPlan, study: object, first_file: int = 0) -> list[Instance]:
    """The instances of a series as the reader would return them from its files, without writing files.

    Args:
        plan: a series of single slices.
        study: as for ``files``.
        first_file: number of the first file.

    Returns:
        The instances; their digests are made of their UIDs.
    """
    facts = SeriesFacts(
        uid=uid(study, plan.number),
        number=plan.number,
        modality=plan.modality,
        sop_class=plan.sop_class,
        description=plan.description,
        protocol=plan.protocol,
        body_part=plan.body_part,
        contrast=plan.contrast,
        units="",
        manufacturer=plan.manufacturer,
        colour=plan.colour or plan.sop_class == DOSE_SR,
        lossy=False,
    )
    shape = (0, 0) if plan.sop_class == DOSE_SR else _pixels(plan, 0, 0).shape[:2]
    made: list[Instance] = []
    for time in range(len(plan.times_s)):
        for number in range(_count(plan)):
            file = first_file + len(made)
            frames = (_frame(plan, number, time, file, shape),) if shape[0] else ()
            name = uid(study, plan.number, number, time)
            made.append(Instance(file, name, uid(study), {}, name, facts, frames))
    return made


def _frame(plan: SeriesPlan, number: int, time: int, file: int, shape: tuple[int, ...]) -> Frame:
    day = date(int(_DAY[:4]), int(_DAY[4:6]), int(_DAY[6:])).toordinal()
    seconds = day * _SECONDS_A_DAY + _START_S + plan.start_s + plan.times_s[time]
    placed = plan.positions is not None
    x, y, z = (0.0, 0.0, 0.0) if plan.positions is None else (float(part) for part in plan.positions[number])
    ax, ay, az = plan.across
    dx, dy, dz = plan.down
    return Frame(
        file=file,
        index=0,
        rows=shape[0],
        columns=shape[1],
        position=(x, y, z) if placed else None,
        across=(ax, ay, az) if placed else None,
        down=(dx, dy, dz) if placed else None,
        spacing=plan.spacing if placed else None,
        thickness=plan.thickness,
        slope=plan.slope,
        intercept=plan.intercept,
        times_s={"AcquisitionTime": seconds, "ContentTime": seconds},
        order=(0, time + 1, time * _count(plan) + number + 1),
        image_type=plan.image_type,
        kernel=plan.kernel,
    )


def _count(plan: SeriesPlan) -> int:
    return 1 if plan.positions is None else len(plan.positions)


def _pixels(plan: SeriesPlan, number: int, time: int) -> NDArray[Any]:
    if plan.pixels is not None:
        return plan.pixels(number, time)
    return np.zeros((4, 4, 3), np.uint8) if plan.colour else np.full((4, 4), 1024 + number, np.uint16)


def _clock(plan: SeriesPlan, time: int) -> str:
    seconds = _START_S + plan.start_s + plan.times_s[time]
    return f"{int(seconds // 3600):02d}{int(seconds // 60 % 60):02d}{seconds % 60:09.6f}"


def _common(plan: SeriesPlan, study: object, number: int, time: int) -> dict[str, Any]:
    clock = _clock(plan, time)
    return {
        "SpecificCharacterSet": "ISO_IR 192",
        "SOPClassUID": plan.sop_class,
        "SOPInstanceUID": uid(study, plan.number, number, time),
        "StudyInstanceUID": uid(study),
        "SeriesInstanceUID": uid(study, plan.number),
        "FrameOfReferenceUID": uid(study, "frame of reference"),
        "PatientName": SYNTHETIC,
        "PatientID": "SYNTHETIC",
        "PatientComments": "Synthetic data of an rlvo phantom; no patient",
        "StudyDescription": "SYNTHETIC rlvo phantom",
        "Modality": plan.modality,
        "Manufacturer": plan.manufacturer,
        "SeriesDescription": plan.description,
        "ProtocolName": plan.protocol,
        "BodyPartExamined": plan.body_part,
        "SeriesNumber": plan.number,
        "StudyDate": _DAY,
        "StudyTime": f"{int(_START_S // 3600):02d}0000",
        "AcquisitionDate": _DAY,
        "AcquisitionTime": clock,
        "ContentDate": _DAY,
        "ContentTime": clock,
    }


def _slice(plan: SeriesPlan, study: object, number: int, time: int) -> dict[str, Any]:
    attributes = _common(plan, study, number, time) | {
        "ImageType": list(plan.image_type),
        "ImageComments": "Synthetic data of an rlvo phantom",
        "AcquisitionNumber": time + 1,
        "InstanceNumber": time * _count(plan) + number + 1,
        "RescaleSlope": str(plan.slope),
        "RescaleIntercept": str(plan.intercept),
        "SliceThickness": f"{plan.thickness:.6g}",
    }
    if plan.kernel:
        attributes["ConvolutionKernel"] = plan.kernel
    if plan.contrast:
        attributes["ContrastBolusAgent"] = plan.contrast
    if plan.positions is not None:
        attributes |= {
            "ImagePositionPatient": _numbers(plan.positions[number]),
            "ImageOrientationPatient": _numbers((*plan.across, *plan.down)),
            "PixelSpacing": _numbers(plan.spacing),
        }
    return attributes


def _enhanced(plan: SeriesPlan, study: object, syntax: Syntax) -> bytes:
    """All slices in one file, with functional groups (PS3.3, A.38)."""
    assert plan.positions is not None
    frames: list[Mapping[str, Any]] = []
    pixels = []
    for time in range(len(plan.times_s)):
        for number, position in enumerate(plan.positions):
            content = {"FrameAcquisitionDateTime": _DAY + _clock(plan, time), "TemporalPositionIndex": time + 1}
            place = {"ImagePositionPatient": _numbers(position)}
            frames.append({"FrameContentSequence": [content], "PlanePositionSequence": [place]})
            pixels.append(_pixels(plan, number, time))
    spacing = {"PixelSpacing": _numbers(plan.spacing), "SliceThickness": f"{plan.thickness:.6g}"}
    values = {"RescaleSlope": str(plan.slope), "RescaleIntercept": str(plan.intercept), "RescaleType": "HU"}
    shared = {
        "PlaneOrientationSequence": [{"ImageOrientationPatient": _numbers((*plan.across, *plan.down))}],
        "PixelMeasuresSequence": [spacing],
        "PixelValueTransformationSequence": [values],
        "CTImageFrameTypeSequence": [{"FrameType": list(plan.image_type)}],
        "CTReconstructionSequence": [{"ConvolutionKernel": plan.kernel or "STANDARD"}],
    }
    attributes = _common(plan, study, 0, 0) | {
        "ImageType": list(plan.image_type),
        "InstanceNumber": 1,
        "SharedFunctionalGroupsSequence": [shared],
        "PerFrameFunctionalGroupsSequence": frames,
    }
    return encode(attributes, np.stack(pixels), syntax)


def _numbers(values: Sequence[float] | NDArray[np.float64]) -> list[str]:
    """Decimal strings (DS) of at most 16 characters."""
    return [f"{float(each):.10f}"[:16] for each in values]
