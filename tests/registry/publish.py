"""Helpers that publish a tiny version in a model store."""

from __future__ import annotations

import hashlib
from pathlib import Path

from app.registry.manifest import Manifest, SegmenterManifest, SegmenterRef
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


def publish_with_segmenter(elsewhere: Path) -> Path:
    """Publish a version with a segmenter; return the folder of the version."""
    weights = b"weights of a segmenter"
    reference = SegmenterRef(name="vessels", version="2.0.0", sha256=hashlib.sha256(weights).hexdigest())
    segmenter = SegmenterManifest(**reference.model_dump(), filters=2, file="weights.safetensors", training="none")
    folder = publish(elsewhere, "1.0.0")
    manifest = Manifest.model_validate_json((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(manifest.model_copy(update={"segmenter": reference}).model_dump_json())
    source = elsewhere / "segmenters" / "vessels" / "2.0.0"
    source.mkdir(parents=True)
    (source / "manifest.json").write_text(segmenter.model_dump_json())
    (source / "weights.safetensors").write_bytes(weights)
    return folder
