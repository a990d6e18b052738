"""The process that makes the objects of one prediction: reads a job from standard input, writes a ZIP archive."""

from __future__ import annotations

import json
import sys
import warnings
import zipfile
from pathlib import Path

from app.core.logging import error_location
from app.dicom.objects.export import make
from app.dicom.objects.kinds import ObjectKind
from app.dicom.return_address import ReturnAddress
from app.sdk.types import Prediction

_EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest time of a ZIP archive, so that equal objects make equal archives


def main() -> None:
    """Write the objects of one job; after an error, write its type and place, but not its message."""
    warnings.simplefilter("ignore")
    try:
        _write()
    except Exception as error:  # noqa: BLE001 - every error must end without a message that names the patient
        sys.stderr.write(error_location(error))
        sys.exit(1)


def _write() -> None:
    job = json.load(sys.stdin)
    prediction, address = Prediction.model_validate(job["prediction"]), ReturnAddress.from_json(job["address"])
    files = {name: Path(path) for name, path in job["files"].items()}
    with zipfile.ZipFile(job["target"], "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for each in make(prediction, address, files, [ObjectKind(kind) for kind in job["kinds"]]):
            entry = zipfile.ZipInfo(each.name, _EPOCH)
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, each.content)


if __name__ == "__main__":
    main()
