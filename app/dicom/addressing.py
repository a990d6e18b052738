"""Read the return address of a study from the headers of the series that a prediction uses."""

from __future__ import annotations

import re
from collections.abc import Sequence

from pydicom.datadict import tag_for_keyword

from app.dicom.attributes import text
from app.dicom.dataset import read
from app.dicom.errors import DEFAULT, DicomLimits
from app.dicom.files import Files
from app.dicom.frames import Instance
from app.dicom.return_address import InstanceReference, ReturnAddress
from app.dicom.roles import Choice
from app.sdk.series import SeriesRole

__all__ = ["read_address"]

_TEXTS = {
    "patient_id": ("PatientID", 64),
    "accession_number": ("AccessionNumber", 16),
    "study_id": ("StudyID", 16),
    "study_description": ("StudyDescription", 64),
}
_NAMES = {"patient_name": "PatientName", "referring_physician": "ReferringPhysicianName"}
_FORMS = {
    "birth_date": ("PatientBirthDate", r"\d{8}"),
    "sex": ("PatientSex", r"[MFO]"),
    "study_date": ("StudyDate", r"\d{8}"),
    "study_time": ("StudyTime", r"\d{2}(\d{2}(\d{2}(\.\d{1,6})?)?)?"),
}
_KEYWORDS = ("SpecificCharacterSet", "StudyInstanceUID", *_NAMES.values())
_UID = re.compile(r"[0-9]+(\.[0-9]+)*")
_MAX_UID = 64
_NAME_CHARACTERS = 64 * 3 + 2  # three groups of a person name


def read_address(
    choices: Sequence[Choice], instances: Sequence[Instance], files: Files, limits: DicomLimits = DEFAULT
) -> ReturnAddress | None:
    """Read patient and study from the first image of the used series, and name all their instances.

    If the used series have different frames of reference, the address has none: an object that is placed in the wrong
    frame would be shown at a wrong place.

    Args:
        choices: what the series of the study were taken for.
        instances: facts of the files.
        files: the files of the study.
        limits: largest size of a file.

    Returns:
        The address; None without a Study Instance UID.

    Raises:
        Unreadable: a file is damaged.
    """
    used = [choice for choice in choices if choice.used]
    used.sort(key=lambda choice: choice.role is not SeriesRole.NCCT)
    numbers = list(dict.fromkeys(frame.file for choice in used for frame in choice.stack.frames))
    keywords = [*_KEYWORDS, *(name for name, _ in (*_TEXTS.values(), *_FORMS.values()))]
    tags = [tag for name in keywords if (tag := tag_for_keyword(name)) is not None]
    if not numbers:
        return None
    header = read(files.read(numbers[0]), tags, limits)
    if not (study := _uid(text(header, "StudyInstanceUID"))):
        return None
    by_file = {each.file: each for each in instances}
    referenced = [by_file[number] for number in numbers]
    frames = {_uid(each.frame_of_reference) for each in referenced}
    return ReturnAddress(
        study_instance_uid=study,
        frame_of_reference=frames.pop() if len(frames) == 1 else "",
        instances=tuple(
            InstanceReference(*uids)
            for each in referenced
            if all(uids := [_uid(value) for value in (each.series.uid, each.series.sop_class, each.uid)])
        ),
        **{member: _printable(text(header, name), longest) for member, (name, longest) in _TEXTS.items()},
        **{member: _printable(text(header, name), _NAME_CHARACTERS) for member, name in _NAMES.items()},
        **{member: _formed(text(header, name), form) for member, (name, form) in _FORMS.items()},
    )


def _uid(value: str) -> str:
    return value if _UID.fullmatch(value) and len(value) <= _MAX_UID else ""


def _printable(value: str, longest: int) -> str:
    """The text as a DICOM text of one value: no control characters and no backslash."""
    return "".join(each for each in value if each.isprintable() and each != "\\")[:longest].strip()


def _formed(value: str, form: str) -> str:
    return value if re.fullmatch(form, value) else ""
