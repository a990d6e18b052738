"""Facts of one DICOM file: its series, its patient as digests, and its frames.

Sources: DICOM PS3.3, C.7.6.2 (image plane), C.7.6.16 (multi-frame functional groups), C.8.2 (CT image), C.8.15
(enhanced CT image).
"""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Iterable
from dataclasses import replace

from pydicom.datadict import tag_for_keyword
from pydicom.dataset import Dataset
from pydicom.uid import UID

from app.dicom.attributes import date_and_time_s, date_time_s, digest, first, floats, integer, text, values
from app.dicom.dataset import PIXEL_DATA, read
from app.dicom.errors import DEFAULT, DicomLimits, Unreadable
from app.dicom.frames import Frame, Instance, SeriesFacts, Vector

__all__ = ["read_instance", "read_parsed"]

_KEYWORDS = [
    "SpecificCharacterSet",
    "ImageType",
    "SOPClassUID",
    "SOPInstanceUID",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "FrameOfReferenceUID",
    "Modality",
    "Manufacturer",
    "SeriesDescription",
    "ProtocolName",
    "BodyPartExamined",
    "ContrastBolusAgent",
    "ConvolutionKernel",
    "SliceThickness",
    "SeriesNumber",
    "AcquisitionNumber",
    "InstanceNumber",
    "TemporalPositionIdentifier",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "PixelSpacing",
    "Rows",
    "Columns",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "NumberOfFrames",
    "BitsAllocated",
    "RescaleSlope",
    "RescaleIntercept",
    "RescaleType",
    "Units",
    "LossyImageCompression",
    "AcquisitionDateTime",
    "AcquisitionDate",
    "AcquisitionTime",
    "TriggerTime",
    "FrameReferenceTime",
    "ContentDate",
    "ContentTime",
    "PatientID",
    "PatientName",
    "PatientBirthDate",
    "PatientSex",
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
]
_TAGS = tuple(tag for name in _KEYWORDS if (tag := tag_for_keyword(name)) is not None)
_MAX_SIDE, _MAX_FRAMES = 8192, 100_000
_LOSSY = ("1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51", "1.2.840.10008.1.2.4.81", "1.2.840.10008.1.2.4.91")
_UNIT_LENGTH = 1e-3  # of a direction, as rounded by a scanner
_GROUPS = {
    "ImagePositionPatient": "PlanePositionSequence",
    "ImageOrientationPatient": "PlaneOrientationSequence",
    "PixelSpacing": "PixelMeasuresSequence",
    "SliceThickness": "PixelMeasuresSequence",
    "RescaleSlope": "PixelValueTransformationSequence",
    "RescaleIntercept": "PixelValueTransformationSequence",
    "FrameAcquisitionDateTime": "FrameContentSequence",
    "FrameReferenceDateTime": "FrameContentSequence",
    "FrameAcquisitionNumber": "FrameContentSequence",
    "TemporalPositionIndex": "FrameContentSequence",
    "FrameType": "CTImageFrameTypeSequence",
    "ConvolutionKernel": "CTReconstructionSequence",
}


def read_instance(data: bytes, file: int, limits: DicomLimits = DEFAULT) -> Instance:
    """Read the facts of one file.

    Args:
        data: the whole file.
        file: number of the file, which its frames carry.
        limits: largest size of an inflated file.

    Returns:
        The instance; without frames if it is not an image.

    Raises:
        Unreadable: the file is not DICOM, is damaged, or lacks its pixels.
    """
    return read_parsed(data, file, limits)[0]


def read_parsed(
    data: bytes, file: int, limits: DicomLimits = DEFAULT, *, tags: Iterable[int] = ()
) -> tuple[Instance, Dataset]:
    """As ``read_instance``; also the data set, which has the attributes ``tags``, too."""
    dataset = read(data, (*_TAGS, PIXEL_DATA, *tags), limits)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom converts values, and warns, when they are read
        return _instance(dataset, data, file), dataset


def _instance(dataset: Dataset, data: bytes, file: int) -> Instance:
    uid, series_uid = text(dataset, "SOPInstanceUID"), text(dataset, "SeriesInstanceUID")
    if not uid or not series_uid:
        raise Unreadable("has no SOP Instance UID or no Series Instance UID")
    rows, columns = integer(dataset, "Rows"), integer(dataset, "Columns")
    image = rows is not None and columns is not None
    series = _series(dataset, series_uid)
    frames: tuple[Frame, ...] = ()
    if image:
        _check_pixels(dataset, rows or 0, columns or 0, compressed=_compressed(dataset))
        frames = _frames(dataset, file)
    kinds = {"patient id": "PatientID", "birth date": "PatientBirthDate", "name": "PatientName"}
    sex = text(dataset, "PatientSex").upper()
    return Instance(
        file=file,
        uid=uid,
        study_uid=text(dataset, "StudyInstanceUID"),
        patient={kind: digest(text(dataset, name)) for kind, name in kinds.items()}
        | {"sex": sex if sex in ("M", "F") else ""},
        digest=hashlib.sha256(data).hexdigest(),
        series=series,
        frames=frames,
        frame_of_reference=text(dataset, "FrameOfReferenceUID"),
    )


def _series(dataset: Dataset, uid: str) -> SeriesFacts:
    syntax = str(getattr(dataset.file_meta, "TransferSyntaxUID", ""))
    samples = integer(dataset, "SamplesPerPixel")
    photometric = text(dataset, "PhotometricInterpretation")
    return SeriesFacts(
        uid=uid,
        number=integer(dataset, "SeriesNumber"),
        modality=text(dataset, "Modality").upper(),
        sop_class=text(dataset, "SOPClassUID"),
        description=text(dataset, "SeriesDescription"),
        protocol=text(dataset, "ProtocolName"),
        body_part=text(dataset, "BodyPartExamined").upper(),
        contrast=text(dataset, "ContrastBolusAgent"),
        units=(text(dataset, "RescaleType") or text(dataset, "Units")).upper(),
        manufacturer=text(dataset, "Manufacturer"),
        colour=samples not in (None, 1) or not photometric.startswith("MONOCHROME"),
        lossy=syntax in _LOSSY or text(dataset, "LossyImageCompression") == "01",
    )


def _compressed(dataset: Dataset) -> bool:
    syntax = UID(str(getattr(dataset.file_meta, "TransferSyntaxUID", "")))
    return syntax.is_transfer_syntax and syntax.is_encapsulated


def _check_pixels(dataset: Dataset, rows: int, columns: int, *, compressed: bool) -> None:
    frames = _frame_count(dataset)
    if not (1 <= rows <= _MAX_SIDE and 1 <= columns <= _MAX_SIDE and 1 <= frames <= _MAX_FRAMES):
        raise Unreadable("has an impossible number of rows, columns or frames")
    raw = dataset.get_item(PIXEL_DATA) if PIXEL_DATA in dataset else None
    size = len(raw.value or b"") if raw is not None and isinstance(raw.value, bytes) else 0
    bits = integer(dataset, "BitsAllocated") or 0
    samples = integer(dataset, "SamplesPerPixel") or 1
    expected = 2 * frames if compressed else rows * columns * frames * samples * bits // 8
    if not size or size < expected:
        raise Unreadable("has fewer pixels than its header says")


def _frame_count(dataset: Dataset) -> int:
    if not values(dataset, "NumberOfFrames"):
        return 1
    count = integer(dataset, "NumberOfFrames")
    return 0 if count is None else max(count, 0)


def _frames(dataset: Dataset, file: int) -> tuple[Frame, ...]:
    count = _frame_count(dataset)
    shared = _items(dataset, "SharedFunctionalGroupsSequence")[:1]
    single = _items(dataset, "PerFrameFunctionalGroupsSequence")
    if count == 1 and not shared and not single:
        return (_frame(dataset, [dataset], file, 0),)
    if not single and count > 1:  # a multi-frame image of an older kind does not say where each frame lies
        unplaced = replace(_frame(dataset, [dataset], file, 0), position=None)
        return tuple(replace(unplaced, index=index) for index in range(count))
    single = single or [Dataset()]
    if len(single) != count:
        raise Unreadable("has another number of frames than its header describes")
    return tuple(_frame(dataset, [one, *shared, dataset], file, index) for index, one in enumerate(single))


def _items(dataset: Dataset, name: str) -> list[Dataset]:
    try:
        return list(dataset.get(name) or ())
    except Exception as error:
        raise Unreadable("has a damaged sequence") from error


def _holder(places: list[Dataset], name: str) -> Dataset:
    """The data set that holds an attribute: the functional group of the frame, the shared one, or the image itself."""
    for place in places[:-1]:
        group = _items(place, _GROUPS[name])[:1] if name in _GROUPS else []
        if group and name in group[0]:
            return group[0]
    return places[-1]


def _frame(dataset: Dataset, places: list[Dataset], file: int, index: int) -> Frame:
    position = floats(_holder(places, "ImagePositionPatient"), "ImagePositionPatient", 3)
    directions = floats(_holder(places, "ImageOrientationPatient"), "ImageOrientationPatient", 6)
    spacing = floats(_holder(places, "PixelSpacing"), "PixelSpacing", 2)
    if spacing is not None and not min(spacing) > 0:
        spacing = None
    across, down = (_unit(directions[:3]), _unit(directions[3:])) if directions else (None, None)
    slope = first(_holder(places, "RescaleSlope"), "RescaleSlope")
    intercept = first(_holder(places, "RescaleIntercept"), "RescaleIntercept")
    content = _holder(places, "TemporalPositionIndex")
    return Frame(
        file=file,
        index=index,
        rows=integer(dataset, "Rows") or 0,
        columns=integer(dataset, "Columns") or 0,
        position=None if position is None else (position[0], position[1], position[2]),
        across=across,
        down=down,
        spacing=None if spacing is None else (spacing[0], spacing[1]),
        thickness=first(_holder(places, "SliceThickness"), "SliceThickness"),
        slope=1.0 if slope in (None, 0.0) else float(slope or 1.0),
        intercept=0.0 if intercept is None else intercept,
        times_s=_times(dataset, places),
        order=(
            integer(content, "TemporalPositionIndex") or integer(dataset, "TemporalPositionIdentifier") or 0,
            integer(dataset, "AcquisitionNumber") or 0,
            integer(dataset, "InstanceNumber") or 0,
        ),
        image_type=tuple(
            each.upper() for each in values(_holder(places, "FrameType"), "FrameType") or values(dataset, "ImageType")
        ),
        kernel=text(_holder(places, "ConvolutionKernel"), "ConvolutionKernel"),
    )


def _unit(vector: tuple[float, ...]) -> Vector | None:
    length = math.sqrt(sum(part * part for part in vector))
    if abs(length - 1) > _UNIT_LENGTH * 10:
        return None
    x, y, z = (part / length for part in vector)
    return x, y, z


def _times(dataset: Dataset, places: list[Dataset]) -> dict[str, float]:
    """Candidate acquisition times, the most trusted attribute first."""
    frame = _holder(places, "FrameAcquisitionDateTime")
    candidates = {
        "FrameAcquisitionDateTime": date_time_s(text(frame, "FrameAcquisitionDateTime")),
        "FrameReferenceDateTime": date_time_s(text(frame, "FrameReferenceDateTime")),
        "AcquisitionDateTime": date_time_s(text(dataset, "AcquisitionDateTime")),
        "AcquisitionTime": date_and_time_s(dataset, "AcquisitionDate", "AcquisitionTime"),
        "TriggerTime": _milliseconds(dataset, "TriggerTime"),
        "FrameReferenceTime": _milliseconds(dataset, "FrameReferenceTime"),
        "ContentTime": date_and_time_s(dataset, "ContentDate", "ContentTime"),
    }
    return {name: seconds for name, seconds in candidates.items() if seconds is not None}


def _milliseconds(dataset: Dataset, name: str) -> float | None:
    value = first(dataset, name)
    return None if value is None else value / 1000
