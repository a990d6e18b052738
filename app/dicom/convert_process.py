"""The process that converts one study: reads a job from standard input, writes the answer to standard output."""

from __future__ import annotations

import json
import resource
import sys
from pathlib import Path
from typing import Any

from app.dicom.convert import convert
from app.dicom.errors import DicomLimits, too_large
from app.sdk.errors import RlvoError
from app.sdk.series import SeriesRole
from app.sdk.types import Input

_BYTES_A_VOXEL = 12  # of the largest volume: as stored, as real values, and interpolated
_BASE_BYTES = 1 << 30


def main() -> None:
    """Convert one study; the answer holds the volumes, or the error."""
    job = json.load(sys.stdin)
    limits = DicomLimits(**job["limits"])
    _limit(resource.RLIMIT_DATA, _BASE_BYTES + _BYTES_A_VOXEL * limits.max_voxels)
    _limit(resource.RLIMIT_CPU, int(job["cpu_s"]) + 1)
    _limit(resource.RLIMIT_CORE, 0)
    json.dump(_answer(job, limits), sys.stdout)


def _answer(job: dict[str, Any], limits: DicomLimits) -> dict[str, Any]:
    try:
        conversion = convert(
            Path(job["source"]),
            Path(job["target"]),
            overrides={name: SeriesRole(role) for name, role in job["overrides"].items()},
            only=Input(job["only"]) if job["only"] else None,
            limits=limits,
            addressed=job["addressed"],
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
