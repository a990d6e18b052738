"""Make the result objects of a prediction in a process of its own, as one ZIP archive.

Design notes:
- The libraries are large, and the work is Python code: in the service it would delay other requests.
- The process reads its job, with the return address, from standard input. Of its output, only the type and the place of
  an error are logged, so that no log shows a patient.
- This module needs no DICOM library.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from app.dicom.objects.kinds import ObjectKind
from app.dicom.return_address import ReturnAddress
from app.sdk.errors import InternalError
from app.sdk.types import Prediction

__all__ = ["export_isolated", "installed"]

log = logging.getLogger("rlvo.dicom")

_PLACE = re.compile(r"[A-Za-z]{1,64} at [A-Za-z0-9_.:< ]{1,300}")
_LIBRARIES = ("highdicom", "matplotlib")


def installed() -> bool:
    """Whether the libraries of ``rlvo-service[dicom]`` are installed."""
    return all(importlib.util.find_spec(name) is not None for name in _LIBRARIES)


def export_isolated(
    prediction: Prediction,
    address: ReturnAddress,
    files: Mapping[str, Path],
    target: Path,
    *,
    kinds: Sequence[ObjectKind] = tuple(ObjectKind),
    timeout_s: float = 120.0,
) -> None:
    """Run ``export.make`` in a process of its own.

    Args:
        prediction: a prediction that succeeded.
        address: patient and study.
        files: stored files of the prediction by name.
        target: file of the archive.
        kinds: kinds of objects to keep.
        timeout_s: seconds after which the process is ended.

    Raises:
        InternalError: the objects could not be made.
    """
    job = {
        "prediction": prediction.model_dump(mode="json"),
        "address": address.to_json(),
        "files": {name: str(path) for name, path in files.items()},
        "target": str(target),
        "kinds": list(kinds),
    }
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    try:
        ended = subprocess.run(
            [sys.executable, "-m", "app.dicom.objects.export_process"],
            input=json.dumps(job).encode(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=environment,
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise InternalError(f"The DICOM objects could not be made within {timeout_s:g} s.") from None
    if ended.returncode:
        place = ended.stderr.decode("ascii", "replace")
        log.error("the objects of %s: %s", prediction.id, place if _PLACE.fullmatch(place) else "the process ended")
        raise InternalError("The DICOM objects could not be made. The operator can find the cause in the log.")
