"""The process that converts one study: reads lines of JSON from standard input, writes the answer to standard output.

A line names files to read before the job is known (``read``), ends this reading (``stop``, answered by an empty line),
or is the job (``source``), which is the last line.
"""

from __future__ import annotations

import json
import math
import os
import resource
import select
import sys
from pathlib import Path
from typing import Any

from app.dicom.convert import convert
from app.dicom.errors import DicomLimits, too_large
from app.dicom.prepared import PIXEL_BYTES, Prepared
from app.sdk.errors import RlvoError
from app.sdk.series import SeriesRole
from app.sdk.types import Input

_BYTES_A_VOXEL = 12  # of the largest volume: as stored, as real values, and interpolated
_BASE_BYTES = 1 << 30
_IN, _OUT = 0, 1
_CHUNK = 1 << 16


def main() -> None:
    """Read files of a study while it arrives, then convert it; the answer holds the volumes, or the error."""
    job, prepared = _received()
    limits = DicomLimits(**job["limits"])
    _bound(limits, job["cpu_s"], kept=0 if prepared is None else PIXEL_BYTES)
    json.dump(_answer(job, limits, prepared), sys.stdout)


def _received() -> tuple[dict[str, Any], Prepared | None]:
    """The job, and what was read before it came. Raises EOFError if the service ends."""
    prepared: Prepared | None = None
    rest = b""
    while True:
        if prepared is not None and prepared.has_work and not select.select([_IN], [], [], 0)[0]:
            prepared.work()
            continue
        if not (chunk := os.read(_IN, _CHUNK)):
            raise EOFError
        *lines, rest = (rest + chunk).split(b"\n")
        for message in map(json.loads, lines):
            if "source" in message:
                return message, prepared
            if "stop" in message:
                if prepared is not None:
                    prepared.stop()
                os.write(_OUT, b"\n")
                continue
            if prepared is None:
                prepared = Prepared(DicomLimits(**message["limits"]))
                _bound(prepared.limits, message["cpu_s"], kept=PIXEL_BYTES)
            prepared.add(map(Path, message["read"]))


def _bound(limits: DicomLimits, cpu_s: float, *, kept: int) -> None:
    """Set the limits of memory, with ``kept`` bytes for prepared pixels, and of the processor time from now."""
    spent = resource.getrusage(resource.RUSAGE_SELF)
    _limit(resource.RLIMIT_DATA, _BASE_BYTES + _BYTES_A_VOXEL * limits.max_voxels + kept)
    _limit(resource.RLIMIT_CPU, math.ceil(spent.ru_utime + spent.ru_stime + cpu_s) + 1)
    _limit(resource.RLIMIT_CORE, 0)


def _answer(job: dict[str, Any], limits: DicomLimits, prepared: Prepared | None) -> dict[str, Any]:
    try:
        conversion = convert(
            Path(job["source"]),
            Path(job["target"]),
            overrides={name: SeriesRole(role) for name, role in job["overrides"].items()},
            only=Input(job["only"]) if job["only"] else None,
            limits=limits,
            addressed=job["addressed"],
            prepared=prepared if prepared is not None and prepared.limits == limits else None,
        )
    except RlvoError as error:
        return _failure(error)
    except MemoryError:
        return _failure(too_large("The study needs more memory than this service allows. Send the series in use only."))
    return conversion.to_json()


def _failure(error: RlvoError) -> dict[str, Any]:
    faults = [[each.field, each.detail] for each in error.errors]
    return {"error": {"code": error.code, "detail": error.detail, "errors": faults}}


def _limit(kind: int, value: int) -> None:
    _, hard = resource.getrlimit(kind)
    resource.setrlimit(kind, (value if hard == resource.RLIM_INFINITY else min(value, hard), hard))


if __name__ == "__main__":
    main()
