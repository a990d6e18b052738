"""A stored prediction with its files, and a return address: what result objects are made of."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from app.dicom.return_address import InstanceReference, ReturnAddress
from app.imaging.io import nifti
from app.sdk.types import Prediction
from tests.dicom.studies import TILTED

CT = "1.2.840.10008.5.1.4.1.1.2"
ID = "01920000-0000-7000-8000-000000000001"
MODEL_GRID = np.array([[12.0, 0, 0, -90], [0, 14, 0, -123], [0, 0, 12, -78], [0, 0, 0, 1]])
MNI_FROM_WORLD = np.array([[0.99, 0.05, 0, 1], [-0.05, 0.99, 0.1, 2], [0, -0.1, 0.99, 3], [0, 0, 0, 1.0]])
SIGN_VOXEL = (17, 20, 9)
"""Voxel of the image at TILTED where the planted sign lies."""


def address(**changes: object) -> ReturnAddress:
    """The address of a made-up patient."""
    members = {
        "patient_id": "PID-4711",
        "patient_name": "Canary^Anna",
        "birth_date": "19410203",
        "sex": "F",
        "study_instance_uid": "2.25.111",
        "accession_number": "ACC-0815",
        "study_date": "20260101",
        "study_time": "100000",
        "study_id": "S1",
        "referring_physician": "Doe^Jane",
        "study_description": "Stroke CT",
        "frame_of_reference": "2.25.222",
        "instances": tuple(InstanceReference("2.25.333", CT, f"2.25.333{number}") for number in range(16)),
    }
    return ReturnAddress(**members | changes)  # type: ignore[arg-type]


def prediction(prediction_id: str = ID, **changes: object) -> Prediction:
    """A prediction that succeeded, with every kind of member."""
    members = {
        "id": prediction_id,
        "status": "succeeded",
        "model": {"name": "tiny", "version": "1.0.0", "digest": "sha256:" + "ab" * 32},
        "probability": 0.37,
        "interval": {"kind": "fold-spread", "low": 0.31, "high": 0.41},
        "folds": [0.31, 0.35, 0.41, 0.4],
        "decision": None,
        "withheld": ["out-of-distribution"],
        "flags": [
            {"code": "out-of-distribution", "detail": "This patient differs from the training patients"},
            {"code": "imputed", "detail": "nihss: not given, imputed"},
        ],
        "perfusion": {"core_ml": 21.0, "tmax6_ml": 96.0, "mismatch_ratio": 4.6},
        "attribution": {
            "base": -1.63,
            "total": -0.53,
            "clinical": [
                {"variable": "atrial_fibrillation", "value": True, "contribution": -0.41},
                {"variable": "nihss", "value": None, "contribution": 0.1, "imputed": True},
            ],
            "imaging": [{"modality": "ncct", "contribution": 0.79}, {"modality": "cta", "contribution": 0.62}],
            "regions": [
                {"region": "left MCA M1", "modality": "cta", "contribution": 0.34, "side": "affected"},
                {"region": "other", "modality": "cta", "contribution": 0.28},
            ],
            "maps": ["attribution-cta"],
            "method": "fast",
        },
        "inputs": {"cta": {"sha256": "0" * 64, "bytes": 1, "shape": [40, 36, 16], "spacing_mm": [5, 5, 8]}},
        "created": datetime(2026, 1, 1, 11, tzinfo=UTC),
        "finished": datetime(2026, 1, 1, 11, 1, tzinfo=UTC),
    }
    return Prediction.model_validate(members | changes)


def files(folder: Path) -> dict[str, Path]:
    """The files of that prediction, on the tilted grid of the tests."""
    noise = np.random.default_rng(0)
    contents: dict[str, bytes] = {}
    for channel, total in (("ncct", 0.79), ("cta", 0.62)):
        values = noise.normal(size=(16, 16, 16)).astype(np.float32) * (noise.random((16, 16, 16)) < 0.2)
        values *= np.float32(total) / values.sum(dtype=np.float64)
        contents[f"maps/aligned-attribution-{channel}.nii.gz"] = nifti.pack(values, MODEL_GRID)
    grid = {"affine": TILTED.tolist(), "mni_from_world": MNI_FROM_WORLD.tolist()}
    contents["alignment.json"] = json.dumps({"ncct": grid, "cta": grid}).encode()
    for name, size in (("vessels", 0), ("core", 1), ("tmax6", 2)):
        mask = np.zeros((40, 36, 16), np.uint8)
        x, y, z = SIGN_VOXEL
        mask[x - size : x + size + 1, y - size : y + size + 1, z - size : z + size + 1] = 1
        contents[f"maps/{name}.nii.gz"] = nifti.pack(mask, TILTED)
    for name in ("overlay-cta", "waterfall"):
        out = BytesIO()
        Image.new("RGB", (320, 200), (40, 80, 120)).save(out, "PNG")
        contents[f"figures/{name}.png"] = out.getvalue()
    paths = {}
    for name, content in contents.items():
        paths[name] = folder / name.replace("/", "-")
        paths[name].write_bytes(content)
    return paths
