"""Read the return address of a study: what a result object must repeat."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from pydicom.datadict import tag_for_keyword
from pydicom.dataset import Dataset

from app.dicom.attributes import text
from app.dicom.dataset import read
from app.dicom.errors import DEFAULT, DicomLimits, Unreadable
from app.dicom.files import Files
from app.dicom.frames import Instance
from app.dicom.return_address import InstanceReference, ReturnAddress
from app.dicom.roles import Choice
from app.sdk.series import SeriesRole

__all__ = ["read_address"]

_KEYWORDS = {
    "patient_id": "PatientID",
    "patient_name": "PatientName",
    "birth_date": "PatientBirthDate",
    "sex": "PatientSex",
    "study_instance_uid": "StudyInstanceUID",
    "accession_number": "AccessionNumber",
    "study_date": "StudyDate",
    "study_time": "StudyTime",
    "study_id": "StudyID",
    "referring_physician": "ReferringPhysicianName",
    "study_description": "StudyDescription",
    "frame_of_reference": "FrameOfReferenceUID",
}
_TAGS = [tag for name in ("SpecificCharacterSet", *_KEYWORDS.values()) if (tag := tag_for_keyword(name)) is not None]


def read_address(
    files: Files, instances: Sequence[Instance], choices: Sequence[Choice], limits: DicomLimits = DEFAULT
) -> ReturnAddress:
    """Read the return address from the series that a prediction uses.

    Args:
        files: the files of the study.
        instances: facts of the files.
        choices: what each series was taken for.
        limits: largest size of a file.

    Returns:
        The address, with the instances of the used series.
    """
    used = sorted((each for each in choices if each.used), key=lambda choice: choice.role is not SeriesRole.NCCT)
    numbers = {frame.file for choice in used for frame in choice.stack.frames}
    references = tuple(
        InstanceReference(each.series.uid, each.series.sop_class, each.uid)
        for each in instances
        if each.file in numbers
    )
    first = used[0].stack.frames[0].file if used and used[0].stack.frames else None
    found = _attributes(files, first, limits) if first is not None else {}
    return ReturnAddress(**found, instances=references)


def _attributes(files: Files, number: int, limits: DicomLimits) -> dict[str, str]:
    try:
        dataset: Dataset = read(files.read(number), _TAGS, limits)
    except Unreadable:
        return {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {member: text(dataset, keyword) for member, keyword in _KEYWORDS.items()}
