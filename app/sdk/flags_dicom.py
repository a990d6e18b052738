"""Flags of a study that was sent as DICOM; a part of the catalogue in ``flags.py``."""

from __future__ import annotations

from typing import Final

from .flag_kinds import FlagKind, Severity

_INFO, _WARNING = Severity.INFO, Severity.WARNING

DICOM: Final = {
    "files-kept-out": FlagKind(
        _INFO,
        "Some DICOM files of the study are damaged or incomplete; they were kept out.",
        "Every file of the study.",
        "None if the series in use are complete; a series with missing slices is refused.",
    ),
    "lossy-compression": FlagKind(
        _INFO,
        "The series was compressed with loss, so its values are not those of the scanner.",
        "Transfer syntax and Lossy Image Compression of the DICOM files.",
        "Send the series without lossy compression if the archive has it.",
    ),
    "series-role-doubtful": FlagKind(
        _WARNING,
        "No word in the DICOM headers says what the series is; a general rule decided.",
        "Series description, protocol name, body part and contrast agent.",
        "Check the series in the answer; state the role with series_roles if it is wrong.",
    ),
    "slices-interpolated": FlagKind(
        _INFO,
        "The slices have uneven distances and were interpolated between their true positions.",
        "Image positions along the slice normal.",
        "None. A reconstruction with even distances shows more detail.",
    ),
    "study-uid-differs": FlagKind(
        _INFO,
        "The study_instance_uid that was sent is not that of the DICOM files; FHIR bundle and list show the one sent.",
        "Study Instance UID of the DICOM files.",
        "Check that the images are those of the study; a gateway that replaces UIDs can explain it.",
    ),
    "times-interpolated": FlagKind(
        _INFO,
        "The slices of the perfusion series were acquired at uneven times and were interpolated on one time axis.",
        "Acquisition times of the slices.",
        "None.",
    ),
}
