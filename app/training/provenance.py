"""Digests of everything that the numbers of a run depend on: rows of the table, images, code, and a reused version.

Design notes:
- A digest covers content and not paths, so a cohort folder can be moved.
- A constant channel (no vessel, no lesion) identifies no patient. Its digest says so.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import fields
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ValidationError

import app
from app.imaging.model_grid import ChannelSpec
from app.inference import defaults, preprocess_cache
from app.registry.manifest import Manifest
from app.sdk.clinical import ClinicalRecord
from app.sdk.types import Input
from app.training.cohort import Cohort, CohortRow
from app.training.dataset import Dataset
from app.training.errors import CohortFault

CONSTANT = "constant"
NUMERIC_PACKAGES = ("evaluation", "imaging", "inference", "network", "phantoms", "registry", "sdk", "training")
NUMERIC_LIBRARIES = ("numpy", "scipy", "scikit-learn", "torch")
NOT_CONTENT = ("row", "volumes", "prepared")  # fields of a row that say where it is; the image digests replace them


def image_digests(
    image: NDArray[np.float16], presence: NDArray[np.bool_], volumes: Mapping[Input, Path]
) -> dict[str, str]:
    """SHA-256 of each present channel of ``image`` (C, X, Y, Z), and of each file (``ncct file``)."""
    digests = {}
    for channel, values, present in zip(defaults.CHANNELS, image, presence, strict=True):
        if present:
            content = hashlib.sha256(np.ascontiguousarray(values).data).hexdigest()
            digests[channel.name.value] = f"{CONSTANT} {values.flat[0]}" if np.ptp(values) == 0 else content
    return digests | {f"{field.value} file": preprocess_cache.file_digest(path) for field, path in volumes.items()}


def data_digest(cohort: Cohort, data: Dataset) -> str:
    """SHA-256 of the cohort: every field of every row, own variables, every image, and the truth of phantoms."""
    document: dict[str, object] = {
        "target": cohort.target,
        "layout": preprocess_cache.layout(),
        "rows": [_content(study) for study in cohort.studies],
        "images": data.digests,
        "perfusion": data.perfusion,
    }
    if cohort.own:
        document["own"] = cohort.own
    digest = hashlib.sha256(json.dumps(document, sort_keys=True, default=_plain).encode())
    for array in (data.labels, data.presence, data.latents, data.oracle):
        digest.update(b"none" if array is None else np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _content(study: CohortRow) -> dict[str, object]:
    return {field.name: getattr(study, field.name) for field in fields(study) if field.name not in NOT_CONTENT}


def _plain(value: object) -> object:
    if not isinstance(value, BaseModel):
        return str(value)
    document = value.model_dump(mode="json")
    if isinstance(value, ClinicalRecord) and value.own is None:
        del document["own"]  # so that a cohort without own variables has the digest of earlier releases
    return document


@lru_cache
def code_digest(packages: tuple[str, ...] = NUMERIC_PACKAGES) -> str:
    """SHA-256 of the source files of ``packages`` of ``app`` and of the versions of the numeric libraries."""
    root = Path(app.__file__).parent
    digest = hashlib.sha256(json.dumps([(name, version(name)) for name in NUMERIC_LIBRARIES]).encode())
    for package in packages:
        for path in sorted((root / package).rglob("*.py")):
            content = hashlib.sha256(path.read_bytes()).hexdigest()
            digest.update(f"{path.relative_to(root).as_posix()}:{content}\n".encode())
    return digest.hexdigest()


def read_manifest(folder: Path) -> Manifest:
    """Manifest of the version in ``folder``.

    Raises:
        CohortFault: If the folder holds no version.
    """
    try:
        return Manifest.model_validate_json((folder / "manifest.json").read_bytes())
    except (OSError, ValidationError):
        raise CohortFault([f"{folder} holds no model version: give model_store/NAME/VERSION"]) from None


def check_layout(manifest: Manifest) -> None:
    """Check that a version has the grid and the channels on which this release prepares a cohort.

    Raises:
        CohortFault: The version has others.
    """
    if manifest.grid != defaults.GRID or tuple(manifest.channels) != defaults.CHANNELS:
        raise _other_layout(manifest)


def channels_of(manifest: Manifest) -> tuple[ChannelSpec, ...]:
    """Channels for which a cohort is prepared before this version predicts it; a logistic regression sees no image.

    Raises:
        CohortFault: The version has another grid, or channels with other names.
    """
    names, usual = ([channel.name for channel in channels] for channels in (manifest.channels, defaults.CHANNELS))
    if manifest.grid != defaults.GRID or names != usual:
        raise _other_layout(manifest)
    return defaults.CHANNELS if manifest.kind == "logistic" else manifest.channels


def _other_layout(manifest: Manifest) -> CohortFault:
    fault = f"{manifest.name} {manifest.version} has another grid or other channels than cohorts of this release"
    return CohortFault([f"{fault}; give a version that this release trained"])


def version_digest(folder: Path) -> str:
    """SHA-256 of the manifest of a version and of the weights that a run reuses.

    Raises:
        CohortFault: If the folder holds no version, or its weights are missing.
    """
    manifest = read_manifest(folder)
    digest = hashlib.sha256((folder / "manifest.json").read_bytes())
    try:
        digest.update((folder / manifest.folds[0].file).read_bytes())
    except OSError as error:
        raise CohortFault([f"{manifest.folds[0].file} of {manifest.name} {manifest.version} is missing"]) from error
    return digest.hexdigest()
