"""Convert a DICOM study in a process of its own, so that no file can harm the service.

Design notes:
- Decoders are native code that reads files of strangers. A crash, a loop or a bomb ends one process and one request.
- The process has limits of memory, CPU time and time. Its messages are those of this package; its other output is lost.
- This module needs no DICOM library.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from app.dicom.conversion import Conversion
from app.dicom.errors import DEFAULT, DicomLimits, no_archive, refused
from app.dicom.spare import Process, SpareProcesses, installed, started
from app.sdk.errors import FieldError, RlvoError, UnsupportedMedia
from app.sdk.series import SeriesRole
from app.sdk.types import Input

__all__ = ["ZIP", "convert_isolated"]

ZIP = b"PK\x03\x04"


def convert_isolated(
    source: Path,
    target: Path,
    *,
    overrides: Mapping[str, SeriesRole] | None = None,
    only: Input | None = None,
    limits: DicomLimits = DEFAULT,
    timeout_s: float = 120.0,
    addressed: bool = False,
    spare: SpareProcesses | None = None,
    study: str = "",
) -> Conversion:
    """Run ``convert.convert`` in a process of its own.

    Args:
        source: a folder, or a ZIP archive.
        target: folder for the volumes.
        overrides: roles that the caller states.
        only: the input that the archive was sent as.
        limits: largest sizes.
        timeout_s: seconds after which the process is ended.
        addressed: also read the return address.
        spare: its process for the study is used, if it waits, else a new one of it.
        study: name of the study there; empty for an upload.

    Returns:
        The volumes, and what each series was taken for.

    Raises:
        UnsupportedMedia: the DICOM libraries are not installed.
        InvalidDicom: the study cannot be used, or its conversion ended without an answer.
        PatientMismatch: the files belong to several patients or studies.
        DecompressedTooLarge: the study is larger than the limits.
    """
    if not installed():
        raise UnsupportedMedia("This service reads no DICOM: install rlvo-service[dicom], or send NIfTI volumes.")
    if source.is_file() and not _starts_as_archive(source):  # no process is started for it
        raise no_archive()
    job = {
        "source": str(source),
        "target": str(target),
        "overrides": {name: role.value for name, role in (overrides or {}).items()},
        "only": only and only.value,
        "limits": vars(limits),
        "cpu_s": timeout_s,
        "addressed": addressed,
    }
    waiting = spare.take(study) if spare is not None else None
    answer = _answer(waiting, job, timeout_s) if waiting is not None else None
    if answer is None:  # also if the spare process was ended while it waited, for instance for its memory
        answer = _answer(started() if spare is None else spare.start(), job, timeout_s)
    if answer is None:
        detail = "The study could not be converted: a file ended the decoder. Export the study without compression."
        raise refused(detail)
    if "error" in answer:
        raise _error(answer["error"])
    return Conversion.from_json(answer)


def _answer(process: Process, job: Mapping[str, Any], timeout_s: float) -> dict[str, Any] | None:
    """The answer of a process; None if it ended without one. Raises InvalidDicom after ``timeout_s`` seconds."""
    with process:
        try:
            out, _ = process.communicate(json.dumps(job).encode() + b"\n", timeout=timeout_s)
        except subprocess.TimeoutExpired:
            limit = f"within {timeout_s:g} s, the limit of this service (RLVO_DICOM_TIMEOUT)"
            raise refused(f"The study could not be converted {limit}. Send the series in use only.") from None
        finally:
            process.kill()
    try:
        answer: dict[str, Any] = json.loads(out)
    except ValueError:
        return None
    return answer


def _starts_as_archive(source: Path) -> bool:
    with source.open("rb") as file:
        return file.read(len(ZIP)) == ZIP


def _error(members: Mapping[str, object]) -> RlvoError:
    kind = RlvoError.for_code(str(members["code"]))
    errors = members["errors"]
    faults = [FieldError(str(field), str(detail)) for field, detail in errors] if isinstance(errors, list) else []
    return kind(str(members["detail"]), errors=faults)
