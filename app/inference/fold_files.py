"""Files of a model version: folds, golden cases and the vessel segmenter, read with their digests and written.

A file's sha-256 is compared with the manifest on the bytes that are then parsed. Files are safetensors or JSON; nothing
is unpickled.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from app.inference import explain
from app.inference.ensemble_predictor import LogisticFolds, NetworkFolds
from app.inference.model_input import ModelInput
from app.inference.reference_head import ReferenceHead
from app.network.daft import Network, build
from app.network.ensemble import Ensemble
from app.network.resnet import has_finite_weights
from app.network.unet import VesselNet
from app.registry.manifest import Manifest
from app.registry.model_store import read_segmenter
from app.sdk.errors import ModelNotReady


@dataclass(frozen=True)
class LogisticFold:
    """One fold of a logistic version: coefficients (v,) of the clinical vector, and the intercept."""

    coefficients: tuple[float, ...]
    intercept: float


def golden_cases(manifest: Manifest, folder: Path) -> Iterator[tuple[ModelInput, tuple[float, ...]]]:
    """Yield the golden cases in ``folder``, each with the folds' logits in the manifest.

    Raises:
        ModelNotReady: A file is missing or differs from the manifest's digest.
    """
    for golden in manifest.golden:
        yield ModelInput.from_bytes(read_verified(folder, golden.file, golden.sha256)), golden.logits


def read_verified(folder: Path, file: str, digest: str) -> bytes:
    """Read a file and compare its sha-256 with the manifest's. Raises ModelNotReady."""
    try:
        content = (folder / file).read_bytes()
    except OSError as error:
        raise ModelNotReady(f"{file} of the model version cannot be read.") from error
    if hashlib.sha256(content).hexdigest() != digest:
        raise ModelNotReady(f"{file} of the model version differs from its manifest (sha-256). Restore the file.")
    return content


def load_vessel_net(folder: Path, manifest: Manifest) -> VesselNet | None:
    """Load the manifest's segmenter from ``segmenters`` in the same model store. Raises ModelNotReady."""
    named = manifest.segmenter
    if named is None:
        return None
    described, weights = read_segmenter(folder.parent.parent, named)
    try:
        return VesselNet.from_bytes(weights, described.filters)
    except ValueError as error:
        raise ModelNotReady("The vessel segmenter of this version is damaged. Restore its file.") from error


def load_reference(folder: Path, manifest: Manifest) -> ReferenceHead | None:
    """Load the reference head that the manifest names. Raises ModelNotReady."""
    named = manifest.reference_head
    if named is None:
        return None
    shape = (len(manifest.channels), *manifest.grid.shape)
    try:
        content = read_verified(folder, named.file, named.sha256)
        return ReferenceHead.from_bytes(content, shape, side_aligned=named.side_aligned)
    except ValueError as error:
        raise ModelNotReady(f"{named.file} of the model version is damaged: {error}. Restore the file.") from error


def load_networks(files: Sequence[bytes], manifest: Manifest, device: str, pause: Callable[[], None]) -> NetworkFolds:
    """The networks of the folds, on a device; ``pause`` is called before each. Raises ModelNotReady."""
    expected, size = explain.presence_bits(manifest).stop, manifest.architecture.clinical_size
    if size != expected:
        raise ModelNotReady(f"The manifest's clinical vector has {expected} entries, but its network takes {size}.")
    folds = []
    for file, fold in zip(files, manifest.folds, strict=True):
        pause()
        network = build(manifest.architecture)
        try:
            network.load_state_dict(load_tensors(file))
        except (SafetensorError, RuntimeError) as error:
            raise ModelNotReady(f"{fold.file} does not hold the weights of the manifest's network.") from error
        if not has_finite_weights(network):
            raise ModelNotReady(f"{fold.file} holds weights that are not finite numbers. Restore the file.")
        folds.append(network)
    return NetworkFolds(Ensemble(folds, device, in_place=True), (len(manifest.channels), *manifest.grid.shape))


def load_logistic(files: Sequence[bytes], manifest: Manifest) -> LogisticFolds:
    """The coefficients of the folds of a logistic version. Raises ModelNotReady."""
    expected = explain.presence_bits(manifest).stop
    try:
        folds = [json.loads(file) for file in files]
        coefficients = np.asarray([fold["coefficients"] for fold in folds], dtype=np.float64)
        intercepts = np.asarray([fold["intercept"] for fold in folds], dtype=np.float64)
    except (ValueError, KeyError, TypeError) as error:
        raise ModelNotReady("A fold file does not hold coefficients and an intercept.") from error
    finite = np.isfinite(coefficients).all() and np.isfinite(intercepts).all()
    if coefficients.shape != (len(files), expected) or intercepts.shape != (len(files),) or not finite:
        raise ModelNotReady(f"A fold file does not hold {expected} finite coefficients and one intercept.")
    return LogisticFolds(coefficients, intercepts)


def write_fold(folder: Path, index: int, fold: Network | LogisticFold) -> tuple[str, str]:
    """Write one fold; return the name of its file and its sha-256."""
    if isinstance(fold, LogisticFold):
        content = json.dumps({"coefficients": fold.coefficients, "intercept": fold.intercept}).encode()
        return write(folder, f"fold-{index}.json", content)
    weights = {name: value.cpu().contiguous() for name, value in fold.state_dict().items()}
    return write(folder, f"fold-{index}.safetensors", save_tensors(weights))


def write(folder: Path, file: str, content: bytes) -> tuple[str, str]:
    """Write and fsync a file; return its name and sha-256."""
    with (folder / file).open("wb") as out:
        out.write(content)
        out.flush()
        os.fsync(out.fileno())
    return file, hashlib.sha256(content).hexdigest()
