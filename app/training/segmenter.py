"""Trains the small U-Net that segments vessels, on patches of phantoms with known arteries.

Design notes:
- Patches have a random rotation, reflection and scale, so that the network does not learn positions.
- Half of the patches are centred on an artery; the others lie anywhere in the head, including skull and scalp.
- Loss: cross-entropy plus Dice (Milletari et al., 3DV 2016) over the whole batch, because many patches have no vessel.
- ``draw`` draws the random parameters, ``cut`` is pure.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save as save_tensors
from scipy import ndimage
from torch import Tensor
from torch.nn import functional

from app.core.filesystem import atomic_directory
from app.network.unet import UNet, scaled
from app.phantoms import anatomy, biology, scene, volumes
from app.registry.manifest import SegmenterManifest

__all__ = ["train"]

Floats = NDArray[np.float32]

EDGE: Final = 40
BATCH: Final = 6
PATIENTS: Final = 16
FILTERS: Final = 8
VISIBLE: Final = 0.4
"""Smallest share of a voxel that an artery fills in a vessel voxel; the same as in ``phantoms.volumes``."""
_CARD: Final = """Segments vessels in CT angiograms. Trained on phantoms only, to demonstrate the interface.
Research use only. Not for clinical decisions."""


@dataclass(frozen=True)
class Patch:
    """``canvas_from_patch`` (4, 4) in voxels, and the noise: SD in HU, smoothing ``grain`` in voxels, seed."""

    canvas_from_patch: NDArray[np.float64]
    noise_hu: float
    grain: float
    seed: int


@dataclass(frozen=True)
class _PhantomVolume:
    """One phantom: HU, share of each voxel that open artery fills, and flat indices of the artery voxels."""

    hu: Floats
    cover: Floats
    artery: NDArray[np.int64]


def train(
    out: Path,
    *,
    steps: int = 400,
    patients: int = PATIENTS,
    seed: int = 0,
    name: str = "vessels-unet",
    version: str = "1.0.0",
    advance: Callable[[], None] = lambda: None,
) -> SegmenterManifest:
    """Train, and write ``manifest.json``, ``weights.safetensors`` and ``card.md`` into the new folder ``out``.

    ``advance`` is called after each of the ``steps`` batches.

    Raises:
        FileExistsError: ``out`` exists; versions never change.
    """
    if out.exists():
        raise FileExistsError(f"version {out.name} exists; versions never change: choose another")
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    phantoms = [_phantom(seed, index) for index in range(patients)]
    network = UNet(FILTERS)
    optimizer = torch.optim.AdamW(network.parameters(), lr=4e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=4e-3, total_steps=steps)
    for _ in range(steps):
        image, truth = _batch(phantoms, rng)
        optimizer.zero_grad()
        _loss(network(image), truth).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        advance()
    content = save_tensors(network.state_dict())
    manifest = SegmenterManifest(
        name=name,
        version=version,
        filters=FILTERS,
        file="weights.safetensors",
        sha256=hashlib.sha256(content).hexdigest(),
        training=f"{patients} phantoms, {steps} steps, seed {seed}",
    )
    with atomic_directory(out) as draft:
        (draft / manifest.file).write_bytes(content)
        (draft / "card.md").write_text(f"# {name} {version}\n\n{_CARD}\n\nTraining: {manifest.training}.\n")
        (draft / "manifest.json").write_text(manifest.model_dump_json(indent=1) + "\n")
    return manifest


def draw(rng: np.random.Generator, centre: NDArray[np.float64]) -> Patch:
    """Draw a patch near ``centre`` (3,) in canvas voxels: any rotation or reflection, voxels of 0.55 to 1.3 mm."""
    rotation, _ = np.linalg.qr(rng.normal(size=(3, 3)))  # a reflection in half of the cases
    matrix = np.eye(4)
    matrix[:3, :3] = rotation @ np.diag(rng.uniform(0.55, 1.3) * rng.uniform(0.85, 1.15, 3))
    matrix[:3, 3] = centre + rng.uniform(-8, 8, 3) - matrix[:3, :3] @ np.full(3, (EDGE - 1) / 2)
    return Patch(matrix, rng.uniform(4, 35), rng.uniform(0, 0.7), int(rng.integers(2**31)))


def cut(hu: Floats, cover: Floats, patch: Patch) -> tuple[Floats, Floats]:
    """Network input and vessel mask (0 or 1) of ``patch``, each (EDGE, EDGE, EDGE), from ``hu`` and ``cover``."""
    matrix, shape = patch.canvas_from_patch, (EDGE,) * 3
    image = ndimage.affine_transform(hu, matrix[:3, :3], matrix[:3, 3], shape, order=1, cval=anatomy.AIR)
    filled = ndimage.affine_transform(cover, matrix[:3, :3], matrix[:3, 3], shape, order=1)
    noise = ndimage.gaussian_filter(np.random.default_rng(patch.seed).standard_normal(shape), patch.grain)
    image = image + patch.noise_hu * noise / noise.std()
    return scaled(image.astype(np.float32)), (filled > VISIBLE).astype(np.float32)


def _phantom(seed: int, index: int) -> _PhantomVolume:
    patient = biology.draw(index + 1, seed)[index]
    head = scene.build(patient, scene.draw_variation(seed, index))
    tree = anatomy.arteries()
    cover = np.zeros(anatomy.SHAPE, np.float32)
    cover.reshape(-1)[tree.index] = tree.cover * head.patency
    return _PhantomVolume(volumes.paint(head, contrast=True), cover, tree.index[head.patency])


def _batch(phantoms: list[_PhantomVolume], rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    images, truths = np.empty((2, BATCH, 1, EDGE, EDGE, EDGE), np.float32)
    for n in range(BATCH):
        phantom = phantoms[rng.integers(len(phantoms))]
        voxel = rng.choice(phantom.artery) if n % 2 == 0 else rng.integers(phantom.hu.size)
        centre = np.array(np.unravel_index(voxel, phantom.hu.shape), float)
        images[n, 0], truths[n, 0] = cut(phantom.hu, phantom.cover, draw(rng, centre))
    return torch.from_numpy(images), torch.from_numpy(truths)


def _loss(logits: Tensor, truth: Tensor) -> Tensor:
    probability = torch.sigmoid(logits)
    dice = 1 - (2 * (probability * truth).sum() + 1) / (probability.sum() + truth.sum() + 1)
    return functional.binary_cross_entropy_with_logits(logits, truth) + dice
