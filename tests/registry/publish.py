"""Helper that publishes a tiny version in a model store."""

from __future__ import annotations

import hashlib
from pathlib import Path

from tests.factory import tiny_manifest


def publish(store: Path, version: str, name: str = "tiny") -> Path:
    """Write the folder of a version, with a manifest and one fold; return the folder."""
    weights = f"weights of {version}".encode()
    manifest = tiny_manifest(name=name, version=version, folds=1)
    fold = manifest.folds[0].model_copy(update={"sha256": hashlib.sha256(weights).hexdigest()})
    folder = store / name / version
    folder.mkdir(parents=True)
    (folder / fold.file).write_bytes(weights)
    (folder / "manifest.json").write_text(manifest.model_copy(update={"folds": (fold,)}).model_dump_json())
    return folder
