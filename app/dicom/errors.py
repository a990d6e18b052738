"""Errors of the way from DICOM files to volumes, and the limits that are checked before memory is allocated."""

from __future__ import annotations

from dataclasses import dataclass

from app.sdk.errors import DecompressedTooLarge, FieldError, InvalidDicom, PatientMismatch

__all__ = [
    "DEFAULT",
    "ArchiveFailed",
    "DicomLimits",
    "OtherUids",
    "Unreadable",
    "mismatch",
    "no_archive",
    "refused",
    "too_large",
]


@dataclass(frozen=True)
class DicomLimits:
    """Limits of one study.

    Attributes:
        max_files: files of a folder or an archive.
        max_file_bytes: size of one file, inflated.
        max_study_bytes: size of all files, inflated.
        max_voxels: voxels of one volume.
    """

    max_files: int = 50_000
    max_file_bytes: int = 4 << 30
    max_study_bytes: int = 16 << 30
    max_voxels: int = 512_000_000


DEFAULT = DicomLimits()


class ArchiveFailed(Exception):
    """An archive is away or refuses; the message is a short reason without text of the other side."""


class Unreadable(Exception):
    """A file that is not a usable DICOM instance; it is kept out and counted."""


class OtherUids(Unreadable):
    """A data set with another SOP class or SOP Instance UID than its command or file meta information says."""


def refused(detail: str, field: str = "study") -> InvalidDicom:
    """Error for a study that is refused; ``detail`` is a sentence without values of the patient."""
    return InvalidDicom(detail, errors=[FieldError(field, detail)])


def no_archive() -> InvalidDicom:
    """Error for a file that is not a ZIP archive."""
    return refused("The file is not a ZIP archive that can be read: make it again, or send the series as NIfTI.")


def mismatch(detail: str) -> PatientMismatch:
    """Error for files of several patients or studies."""
    return PatientMismatch(detail, errors=[FieldError("study", detail)])


def too_large(detail: str) -> DecompressedTooLarge:
    """Error for a study above a limit."""
    return DecompressedTooLarge(detail, errors=[FieldError("study", detail)])
