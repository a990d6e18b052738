"""Studies as the API accepts them: stored, inserted and queued."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from sqlalchemy.orm import Session

from app.database import predictions
from app.database.predictions import NewPrediction
from app.database.session import Database
from app.imaging.io import nifti
from app.registry.model_store import StoredVersion
from app.sdk.types import Input, InputSummary, ModelRef
from app.storage.local import Storage
from app.worker.queue import Queue

MODEL = ModelRef(name="tiny", version="1.0.0", digest="sha256:" + "0" * 64)
AFFINE = np.array([[12.0, 0, 0, -90], [0, 14, 0, -123], [0, 0, 12, -78], [0, 0, 0, 1]])


def new_prediction(caller: str = "pacs", **changes: object) -> NewPrediction:
    """A study without volumes; ``changes`` replace its fields."""
    defaults: dict[str, object] = {
        "id": predictions.new_id(),
        "caller": caller,
        "model": MODEL,
        "subject": "S-1",
        "explain": True,
        "clinical": {"age": 71, "nihss": 14},
        "inputs": {},
    }
    return NewPrediction(**(defaults | changes))  # type: ignore[arg-type]


def store_volume(storage: Storage, folder: Path, seed: int = 0) -> InputSummary:
    """Stores a small CTA as the API does, as an uncompressed .nii."""
    voxels = np.random.default_rng(seed).integers(-1000, 1500, (16, 16, 16)).astype(np.int16)
    path = folder / f"cta-{seed}.nii"
    nifti.write(path, voxels, AFFINE)
    data = path.read_bytes()
    return InputSummary(sha256=storage.put(data), bytes=len(data), shape=[16, 16, 16], spacing_mm=[12, 14, 12])


def volume_bytes(*, shift: float = 0.0) -> bytes:
    """A small CTA as a client sends it, as .nii.gz; ``shift`` moves it by millimetres."""
    voxels = np.random.default_rng(0).integers(-1000, 1000, (8, 9, 10)).astype(np.int16)
    affine = np.array([[2.0, 0, 0, -90 + shift], [0, 2, 0, -120], [0, 0, 3, -70], [0, 0, 0, 1]])
    return nifti.pack(voxels, affine)


def submit(database: Database, queue: Queue, entry: StoredVersion, volume: InputSummary, **changes: object) -> str:
    """Inserts and queues a study of one CTA and returns its id."""
    model = ModelRef(name=entry.name, version=entry.version, digest=entry.digest)
    new = new_prediction(model=model, inputs={Input.CTA: volume}, **changes)
    with database.session() as session:
        add_and_queue(session, queue, new)
    return new.id


def add_and_queue(session: Session, queue: Queue, new: NewPrediction) -> None:
    queue.submit(session, new.id, priority=predictions.add(session, new).queue_position)
