"""Networks and model stores of the benches: the default network with random weights, and the trained demo version."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from app.imaging.model_grid import Grid
from app.inference.explain import network_image
from app.inference.fold_files import golden_cases, load_reference
from app.inference.model_version import save
from app.network.architecture import Architecture
from app.network.daft import Network, build
from app.registry.model_store import ModelStore

MODEL_STORE = Path(__file__).resolve().parents[1] / "model_store"
DEMO = "rlvo-synthetic"
Tensors = tuple[np.ndarray, np.ndarray]
"""Image (1, c, x, y, z) and clinical vector (1, v), float32."""


def default_network() -> tuple[list[Network], tuple[Tensor, Tensor]]:
    """Return four folds of the default network and random tensors.

    The weights are random: the speed is that of trained ones, and the results only bound the rounding.
    """
    torch.manual_seed(0)
    architecture = Architecture(in_channels=5, clinical_size=49, filters=16)
    tensors = torch.randn(1, 5, 96, 112, 96), torch.randn(1, 49)
    return [build(architecture).eval() for _ in range(4)], tensors


def demo_networks(model_store: Path = MODEL_STORE) -> tuple[list[Network], tuple[Tensor, Tensor]]:
    """Return the folds of the trained demo version and what they see of its golden case."""
    entry = ModelStore(model_store).resolve(DEMO)
    networks = []
    for fold in entry.manifest.folds:
        network = build(entry.manifest.architecture)
        network.load_state_dict(load_file(entry.folder / fold.file))
        networks.append(network.eval())
    case, _ = next(golden_cases(entry.manifest, entry.folder))
    seen = network_image(case, load_reference(entry.folder, entry.manifest))
    return networks, (torch.from_numpy(seen)[None], torch.from_numpy(case.clinical)[None])


def default_store(store: Path) -> Tensors:
    """Save the default network as version ``bench`` and return random tensors for it."""
    demo = ModelStore(MODEL_STORE).resolve(DEMO).manifest
    networks, (image, clinical) = default_network()
    affine = ((1.7, 0, 0, -81), (0, 1.7, 0, -113), (0, 0, 1.7, -78), (0, 0, 0, 1))
    size = demo.architecture.clinical_size
    manifest = demo.model_copy(
        update={
            "name": "bench",
            "version": "1.0.0",
            "grid": Grid(shape=(96, 112, 96), affine=affine),
            "architecture": Architecture(in_channels=5, clinical_size=size, filters=16),
            "out_of_distribution": None,
            "reference_head": None,
        }
    )
    if size != clinical.shape[1]:
        raise SystemExit(
            f"The clinical vector of the demo version has {size} values; the default network expects "
            f"{clinical.shape[1]}. Change clinical_size in bench/model_stores.py."
        )
    save(store / "bench" / "1.0.0", manifest, networks)
    return image.numpy(), clinical.numpy()


def demo_store(store: Path) -> Tensors:
    """Save the trained demo version as version ``bench`` and return the tensors of its golden case."""
    entry = ModelStore(MODEL_STORE).resolve(DEMO)
    networks, _ = demo_networks()
    case, _ = next(golden_cases(entry.manifest, entry.folder))
    manifest = entry.manifest.model_copy(update={"name": "bench", "version": "1.0.0", "out_of_distribution": None})
    reference = load_reference(entry.folder, entry.manifest)
    save(store / "bench" / "1.0.0", manifest, networks, golden=[case], reference=reference)
    return case.image[None], case.clinical[None]


STORES = {"default": default_store, "demo": demo_store}
"""Functions that fill a model store, by the value of ``--model``."""
