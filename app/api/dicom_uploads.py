"""DICOM archives of a submission: kept in a private folder until they are converted, then deleted.

Design notes:
- The archive holds the identity of the patient, so nothing of it stays: the folder is deleted with the request, and a
  service that starts deletes what a killed one has left.
- Volumes of the archive pass the same checks as uploaded NIfTI files.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from app.core.config import Settings
from app.core.filesystem import private_folder
from app.dicom.conversion import Conversion
from app.dicom.errors import DicomLimits
from app.dicom.isolated import ZIP, convert_isolated
from app.dicom.spare import SpareProcesses
from app.sdk.errors import FieldError, InvalidRequest
from app.sdk.series import SeriesRole
from app.sdk.types import Input
from app.storage.errors import storage_errors

__all__ = ["STUDY", "ZIP", "StudyArchives", "clear", "roles"]

STUDY = "study"
_NAME = r"[0-9.]{1,64}"
_ROLES_RULE = 'must be a JSON object of series and roles, such as {"3": "ncct"}; a series by its number or UID'


class StudyArchives:
    """The archives of one submission, by the name of their part."""

    def __init__(self, settings: Settings, conversions: SpareProcesses) -> None:
        self._settings = settings
        self._conversions = conversions
        self._folder: Path | None = None
        self._paths: dict[str, Path] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the parts that are archives."""
        return tuple(self._paths)

    def open(self, name: str) -> ArchiveFile:
        """Open the file of a part."""
        with storage_errors():
            if self._folder is None:
                root = incoming(self._settings)
                private_folder(root)
                self._folder = Path(tempfile.mkdtemp(dir=root))
            self._paths[name] = self._folder / f"{name}.zip"
            return ArchiveFile(self._paths[name])

    def convert(self, name: str, overrides: Mapping[str, SeriesRole]) -> Conversion:
        """Convert an archive; its volumes lie in the folder until ``discard``.

        Args:
            name: name of the part.
            overrides: roles that the caller states; only for a whole study.

        Returns:
            The volumes, and what each series was taken for.

        Raises:
            RlvoError: the archive cannot be used; the errors of ``convert_isolated``.
        """
        path = self._paths[name]
        target = path.with_suffix("")
        with storage_errors():
            target.mkdir()
        settings = self._settings
        conversion = convert_isolated(
            path,
            target,
            overrides=overrides if name == STUDY else {},
            only=None if name == STUDY else Input(name),
            limits=limits_of(settings),
            timeout_s=settings.dicom_timeout,
            addressed=bool(settings.dicom_return_key),
            spare=self._conversions,
        )
        path.unlink()
        return conversion

    def discard(self) -> None:
        """Delete the archives and their volumes; further calls do nothing."""
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None


class ArchiveFile:
    """File that an archive is written to, with its sha-256."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("xb")
        self._hash = hashlib.sha256()

    def write(self, chunk: bytes) -> None:
        """Append the next bytes. Raises StorageFull."""
        self._hash.update(chunk)
        with storage_errors():
            self._file.write(chunk)

    def close(self) -> str:
        """End the file; returns its sha-256."""
        with storage_errors():
            self._file.close()
        return self._hash.hexdigest()


def limits_of(settings: Settings) -> DicomLimits:
    """Limits of a study by the settings."""
    return DicomLimits(
        max_file_bytes=settings.max_volume_bytes,
        max_study_bytes=4 * settings.max_volume_bytes,
        max_voxels=settings.max_voxels,
    )


def incoming(settings: Settings) -> Path:
    """Folder of the archives that are being received."""
    return settings.incoming


def clear(settings: Settings) -> None:
    """Delete the archives that a killed service has left; those of a request in progress are younger."""
    oldest = time.time() - settings.receive_timeout - settings.dicom_timeout - 60
    root = incoming(settings)
    for folder in root.iterdir() if root.is_dir() else ():
        if folder.stat().st_mtime < oldest:
            shutil.rmtree(folder, ignore_errors=True)


def roles(content: bytes) -> dict[str, SeriesRole]:
    """Read the field ``series_roles``.

    Args:
        content: a JSON object of series (number or UID) and roles.

    Returns:
        The roles.

    Raises:
        InvalidRequest: the content is something else.
    """
    try:
        document = json.loads(content)
        if not isinstance(document, dict) or not all(re.fullmatch(_NAME, name) for name in document):
            raise ValueError
        return {name: SeriesRole(role) for name, role in document.items()}
    except (ValueError, TypeError, RecursionError):
        known = ", ".join(SeriesRole)
        rule = f"{_ROLES_RULE}; roles: {known}"
        raise InvalidRequest(f"The field series_roles {rule}.", errors=[FieldError("series_roles", rule)]) from None


def without(conversion: Conversion, sent: frozenset[Input]) -> Conversion:
    """A conversion without the inputs that were also sent as files of their own; those files are used."""
    series = [
        each.model_copy(update={"used": False, "reason": "The input was also sent as a file, which is used."})
        if each.used and each.role.value in sent
        else each
        for each in conversion.series
    ]
    volumes = {name: path for name, path in conversion.volumes.items() if name not in sent}
    return replace(conversion, volumes=volumes, series=tuple(series))
