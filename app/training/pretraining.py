"""Pretrains trunk and last block on phantoms to predict their latents (clot, collaterals, lesion), never the outcome.

Design notes:
- The most important signs fill about a thousandth of the volume, so averages over whole heads hide them. The trunk is
  trained first on a box around the arteries of the affected side, with ``LatentHead`` heads at every depth.
- Half of the boxes are mirrored and the heads mirror the features back, so that the trunk need not know the side.
- Then the batch-norm statistics are measured on whole heads and the last block is trained on stored features of them.
- ``unit_spread`` rescales both to pooled features with SD 1. Positive factors pass a ReLU, so nothing else changes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from app.imaging.model_grid import Grid
from app.network.daft import Network, pool
from app.network.resnet import Residual, Trunk
from app.phantoms import anatomy
from app.sdk.clinical import Side
from app.training import augmentation, distributed, trainer
from app.training.dataset import LATENTS, draw_dropout
from app.training.progress import ProgressReporter
from app.training.tasks import Rows, TrainingContext, Views, batches, count_batches, latent_loss, mix_views, views
from app.training.trainer import Recipe

ARTERY_BOX_MM = ((-14.0, 78.0), (-48.0, 44.0), (-42.0, 50.0))  # MNI; outermost voxel centres around right ICA, M1, M2
STRIDE = 8  # of the trunk; a box that starts on a multiple of it has the same features as in the whole head
CAROTID_MM = 55.0  # arc length where the used segment of the carotid starts; a clot may lie beyond it
AUGMENTED_SHARE = {"shift": 0.35, "incomplete": 0.2}  # of the boxes: shifted by a voxel, modalities missing
LATENT_WEIGHTS = {"clot_hu": 0.6, "tmax6_ml": 0.3, "core_ml": 0.4}  # hard, or known from perfusion; others 1

ARTERY_BOX_RECIPE = Recipe(epochs=8, batch=32, rate=4e-3, patience=8)
LAST_BLOCK_RECIPE = Recipe(epochs=10, batch=64, rate=4e-3, patience=10)


def artery_box(grid: Grid) -> tuple[slice, slice, slice]:
    """Voxel ranges around the arteries of the right side, on multiples of ``STRIDE``.

    Raises:
        ValueError: The grid does not contain the box.
    """
    ranges = []
    for axis, (low, high) in enumerate(ARTERY_BOX_MM):
        origin, spacing = grid.affine[axis][3], grid.spacing_mm[axis]
        start = round((low - origin) / spacing) // STRIDE * STRIDE
        stop = -(-(round((high - origin) / spacing) + 1) // STRIDE) * STRIDE
        if start < 0 or stop > grid.shape[axis]:
            raise ValueError("the grid does not contain the box around the arteries; use a larger grid")
        ranges.append(slice(start, stop))
    return ranges[0], ranges[1], ranges[2]


def artery_cells(grid: Grid, box: Sequence[slice], step: int) -> NDArray[np.int64]:
    """Flat indices of the cells of ``step`` voxels in ``box`` that contain arteries of the right side."""
    tree = anatomy.arteries()
    selected = tree.of("right/ica") & (tree.arc_mm > CAROTID_MM)
    for branch in ("m1", "m2-superior", "m2-inferior"):
        selected |= tree.of(f"right/{branch}")
    mm = np.stack(np.unravel_index(tree.index[selected], anatomy.SHAPE), axis=1) + anatomy.ORIGIN_MM
    origin = np.array([row[3] for row in grid.affine[:3]])
    voxels = np.rint((mm - origin) / grid.spacing_mm).astype(np.int64) - [part.start for part in box]
    size = np.array([part.stop - part.start for part in box])
    voxels = voxels[((voxels >= 0) & (voxels < size)).all(axis=1)]
    occupied, count = np.unique(voxels // step, axis=0, return_counts=True)
    return np.asarray(np.ravel_multi_index(tuple(occupied[count >= 8].T), tuple(size // step)), np.int64)


class LatentHead(nn.Module):
    """Predicts the latents (n, k) from the features (n, c, x, y, z) of ``cells``."""

    def __init__(self, cells: NDArray[np.int64], channels: int) -> None:
        super().__init__()
        self.cells = cells
        size = len(cells) * channels
        self.net = nn.Sequential(nn.BatchNorm1d(size), nn.Linear(size, 64), nn.ReLU(), nn.Linear(64, len(LATENTS)))

    def forward(self, features: Tensor) -> Tensor:
        latents: Tensor = self.net(features.float().flatten(2)[:, :, self.cells].flatten(1))
        return latents


def _pooled_head(channels: int) -> nn.Sequential:
    """Head that predicts the latents (n, k) from pooled features (n, channels)."""
    return nn.Sequential(nn.BatchNorm1d(channels), nn.Linear(channels, len(LATENTS)))


def _loss(predictions: Sequence[Tensor], truth: Tensor) -> Tensor:
    weights = torch.tensor([LATENT_WEIGHTS.get(name, 1.0) for name in LATENTS], device=truth.device)
    return torch.stack([latent_loss(prediction.float(), truth, weights) for prediction in predictions]).sum()


def _explained_variance(prediction: Tensor, truth: Tensor) -> dict[str, float]:
    error = ((prediction - truth) ** 2).mean(0)
    return {name: float(1 - e / v) for name, e, v in zip(LATENTS, error, truth.var(0), strict=True)}


class ArteryBoxTask:
    """Training task: trunk and last block on boxes around the arteries (``trainer.Task``)."""

    def __init__(self, network: Network, context: TrainingContext, train: Rows, validate: Rows) -> None:
        box = artery_box(context.grid)
        filters = network.architecture.filters
        depths = {"stem": (2, 1), "block1": (2, 1), "block2": (4, 2), "block3": (8, 4)}
        cells = {name: artery_cells(context.grid, box, step) for name, (step, _) in depths.items()}
        heads = {name: LatentHead(cells[name], width * filters) for name, (_, width) in depths.items()}
        parts = {
            "trunk": network.trunk,
            "block": network.block,
            **{f"at_{name}": head for name, head in heads.items()},
            "pooled": _pooled_head(4 * filters),
            "last": _pooled_head(8 * filters),
        }
        self.module = nn.ModuleDict(parts).to(context.device, memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
        self._context, self._train, self._validate = context, train, validate
        self._boxes = self._cut(box)

    def _cut(self, box: tuple[slice, slice, slice]) -> NDArray[np.float16]:
        """Box (n, C, x, y, z) of every phantom; phantoms with a left-sided occlusion are mirrored."""
        images = self._context.data.images
        boxes = np.empty((*images.shape[:2], *(part.stop - part.start for part in box)), np.float16)
        for row, (image, record) in enumerate(zip(images, self._context.data.records, strict=True)):
            right_sided = image[:, ::-1] if record.occlusion_side is Side.LEFT else image
            boxes[row] = right_sided[:, box[0], box[1], box[2]]
        return boxes

    def steps(self, batch: int) -> int:
        """Number of batches in one epoch."""
        return count_batches(len(self._train), batch)

    def _predict(self, images: Tensor, mirrored: NDArray[np.bool_]) -> list[Tensor]:
        module, flipped = self.module, torch.from_numpy(mirrored).to(images.device)[:, None, None, None, None]

        def mirrored_back(features: Tensor) -> Tensor:
            return torch.where(flipped, features.flip(2), features)

        predictions, features = [], images.contiguous(memory_format=torch.channels_last_3d)
        for name in ("stem", "block1", "block2", "block3"):
            features = getattr(module["trunk"], name)(features)
            predictions.append(module[f"at_{name}"](mirrored_back(features)))
        return [
            *predictions,
            module["pooled"](pool(features.float())),
            module["last"](pool(module["block"](features).float())),
        ]

    def losses(self, batch: int, rng: np.random.Generator) -> Iterator[Tensor]:
        """Weighted squared error of all heads."""
        context = self._context
        for rows in batches(self._train, batch, rng):
            change = augmentation.draw(len(rows), len(context.channels), context.grid, rng, rotate=False)
            unshifted = rng.random(len(rows)) >= AUGMENTED_SHARE["shift"]
            change = replace(change, shift=np.where(unshifted[:, None], 0, change.shift))
            drop = draw_dropout(context.data.presence[rows], context.channels, context.vectors, rng)
            complete = rng.random(len(rows)) >= AUGMENTED_SHARE["incomplete"]
            present = np.where(complete[:, None], context.data.presence[rows], drop.present)
            images = augmentation.apply(torch.from_numpy(self._boxes[rows]).to(context.device).float(), change)
            images = images * torch.from_numpy(present).to(context.device)[:, :, None, None, None]
            with torch.autocast(context.device.type, torch.bfloat16, enabled=context.use_bfloat16):
                predictions = self._predict(images, change.mirror)
            yield _loss(predictions, context.latents(rows))

    @torch.no_grad()
    def explained_variance(self) -> dict[str, float]:
        """Share of the variance of each latent that the last trunk features at the arteries explain."""
        predictions = [
            self._predict(torch.from_numpy(self._boxes[r]).to(self._context.device).float(), np.zeros(len(r), bool))[3]
            for r in np.array_split(self._validate, max(len(self._validate) // 32, 1))
        ]
        return _explained_variance(torch.cat(predictions), self._context.latents(self._validate))

    def score(self, module: nn.Module) -> float:
        """Mean explained variance on the validation rows."""
        del module  # it is self.module
        return float(np.mean(list(self.explained_variance().values())))


class LastBlockTask:
    """Training task: last block on stored features of whole heads; ``views`` as in ``frozen_trunk.TailOnly``."""

    def __init__(self, network: Network, context: TrainingContext, views: Views, train: Rows, validate: Rows) -> None:
        parts = {"block": network.block, "last": _pooled_head(8 * network.architecture.filters)}
        self.module = nn.ModuleDict(parts).to(context.device)
        self._context, self._views, self._train, self._validate = context, views, train, validate

    def steps(self, batch: int) -> int:
        """Number of batches in one epoch."""
        return count_batches(len(self._train), batch)

    def _predict(self, features: Tensor) -> Tensor:
        latents: Tensor = self.module["last"](pool(self.module["block"](features.float())))
        return latents

    def losses(self, batch: int, rng: np.random.Generator) -> Iterator[Tensor]:
        """Weighted squared error, each row in a random view."""
        for rows in batches(self._train, batch, rng):
            features, _ = mix_views(self._views, rows, rng)
            with torch.autocast(self._context.device.type, torch.bfloat16, enabled=self._context.use_bfloat16):
                pooled = pool(self.module["block"](features))
            yield _loss([self.module["last"](pooled.float())], self._context.latents(rows))

    @torch.no_grad()
    def explained_variance(self) -> dict[str, float]:
        """Share of the variance of each latent that the pooled last block explains on whole heads."""
        parts = np.array_split(self._validate, max(len(self._validate) // 256, 1))
        predictions = [self._predict(self._views[0][0][torch.from_numpy(part)]) for part in parts]
        return _explained_variance(torch.cat(predictions), self._context.latents(self._validate))

    def score(self, module: nn.Module) -> float:
        """Mean explained variance on the validation rows."""
        del module  # it is self.module
        return float(np.mean(list(self.explained_variance().values())))


@torch.no_grad()
def recalibrate_batchnorm(trunk: Trunk, context: TrainingContext, rows: Rows, seed: int) -> None:
    """Measure the batch-norm statistics of the trunk on augmented whole heads; on boxes they differ."""
    norms = [part for part in trunk.modules() if isinstance(part, nn.BatchNorm3d)]
    momentum = norms[0].momentum
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # cumulative average over all batches
    trunk.train()
    rng = np.random.default_rng([seed, 13])
    for part in batches(rows, 32, rng):
        trunk(context.augmented(part, rng, rotate=False)[0])
    for norm in norms:
        norm.momentum = momentum
    distributed.average_buffers(trunk)  # each rank has seen its share of the batches
    trunk.eval()


@torch.no_grad()
def unit_spread(block: Residual, pooled: Tensor) -> Tensor:
    """Scale the channels of a residual block to SD 1 of their ``pooled`` values (n, c); return the factors (c,).

    A factor is at most twenty times that of the median channel.
    """
    spread = pooled.std(dim=0)
    factors = 1 / spread.clamp_min(0.05 * float(spread.median()))
    norms = [block.norm2, *(part for part in block.shortcut.modules() if isinstance(part, nn.BatchNorm3d))]
    for norm in norms:
        norm.weight.mul_(factors)
        norm.bias.mul_(factors)
    return factors


@dataclass(frozen=True)
class PretrainConfig:
    """Hyperparameters of pretraining.

    The last block is trained on ``views`` of the first ``whole`` phantoms; batch-norm statistics and spread are
    measured on ``measure`` of them.
    """

    artery_box: Recipe = ARTERY_BOX_RECIPE
    last_block: Recipe = LAST_BLOCK_RECIPE
    whole: int = 4000
    views: int = 2
    measure: int = 640


def pretrain(
    network: Network,
    context: TrainingContext,
    seed: int,
    reporter: ProgressReporter,
    config: PretrainConfig = PretrainConfig(),
    *,
    folder: Path | None = None,
) -> dict[str, float]:
    """Pretrain trunk and last block of ``network`` in place; a tenth of the phantoms is held out.

    An interrupted run resumes from the checkpoints in ``folder``.

    Returns:
        Share of the variance of each latent that the pooled last block explains on held-out phantoms.

    Raises:
        ValueError: The grid does not contain the box around the arteries.
    """
    torch.manual_seed(seed)
    boxes = ArteryBoxTask(network, context, *_split(len(context.data)))
    trainer.fit(
        boxes,
        config.artery_box,
        seed,
        checkpoint=folder / "near.pt" if folder else None,
        advance=lambda epoch, score: reporter(f"artery box, epoch {epoch}: explained variance {score:.3f}"),
    )
    whole = context.first(config.whole)
    train, validate = _split(len(whole.data))
    recalibrate_batchnorm(network.trunk, whole, train[: config.measure], seed)
    unit_spread(network.trunk.block3, _pooled(network.trunk, whole, train[: config.measure]))
    with reporter.stage("whole heads", config.views * len(whole.data)) as advance:
        stored = views(network, whole, config.views, seed, lambda: advance(1))
    block = LastBlockTask(network, whole, stored, train, validate)
    trainer.fit(
        block,
        config.last_block,
        seed,
        checkpoint=folder / "block.pt" if folder else None,
        advance=lambda epoch, score: reporter(f"whole heads, epoch {epoch}: explained variance {score:.3f}"),
    )
    explained = block.explained_variance()
    network.block.eval()
    with torch.no_grad():
        unit_spread(network.block, pool(network.block(stored[0][0][: config.measure].float())))
    return explained


def _split(count: int) -> tuple[Rows, Rows]:
    """Training rows, and a tenth that is held out."""
    return np.split(np.arange(count), [count - max(count // 10, 1)])  # type: ignore[return-value]


@torch.no_grad()
def _pooled(trunk: Trunk, context: TrainingContext, rows: Rows) -> Tensor:
    parts = np.array_split(rows, max(len(rows) // 32, 1))
    return torch.cat([pool(trunk(context.images(part, context.data.presence[part]))) for part in parts])
