"""Pretrains trunk and last block on phantoms to predict their latents (clot, collaterals, lesion), never the outcome.

Design notes:
- The most important signs fill about a thousandth of the volume, so averages over whole heads hide them. The path over
  the box learns them through ``LatentHead`` heads at every depth, and by marking the cells that the clot fills.
- What the clot is made of has a path and a lesson of its own, the first one (``mark_lesson``).
- All heads are trained at once on whole heads with a known side. Half of them lose no channel and are not shifted.
- Then the last block alone is trained on stored features.
- ``unit_spread`` rescales the paths and the block to pooled features with SD 1. Positive factors pass a ReLU, so
  nothing else changes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from app.imaging.model_grid import Grid
from app.network import resnet
from app.network.daft import Network, pool
from app.network.resnet import MarkPath, Marks, MultiPathTrunk, Residual
from app.phantoms import anatomy
from app.training import augmentation, mark_lesson, trainer
from app.training.dataset import LATENTS, draw_dropout
from app.training.progress import ProgressReporter
from app.training.tasks import Rows, TrainingContext, Views, batches, count_batches, latent_loss, mix_views, views
from app.training.trainer import Recipe
from app.training.transfer import to_device

CAROTID_MM = 55.0  # arc length where the used segment of the carotid starts; a clot may lie beyond it
AUGMENTED_SHARE = {"shift": 0.35, "incomplete": 0.2}  # of the heads: shifted by a voxel, modalities missing
LATENT_WEIGHTS = {"tmax6_ml": 0.3, "core_ml": 0.4}  # known from perfusion; others 1
DEPTHS = {"stem": (1, 1), "block1": (2, 2), "block2": (4, 4), "block3": (8, 4)}
"""Parts of the path over the box: voxels of the image per cell of their output, and channels per filter of the stem."""
CLOT_AT = "block1"  # part whose features mark the clot; its cells have two voxels
CLOT_WEIGHT = 2.0  # of the loss of the marked clot
LARGEST = 10.0  # pooled value of a sum of marks after the scaling

LESSON_RECIPE = Recipe(epochs=6, batch=32, rate=4e-3, patience=6)
LAST_BLOCK_RECIPE = Recipe(epochs=10, batch=64, rate=4e-3, patience=10)


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

    cells: Tensor

    def __init__(self, cells: NDArray[np.int64], channels: int) -> None:
        super().__init__()
        self.register_buffer("cells", torch.from_numpy(cells), persistent=False)
        size = len(cells) * channels
        self.net = nn.Sequential(nn.BatchNorm1d(size), nn.Linear(size, 64), nn.ReLU(), nn.Linear(64, len(LATENTS)))

    def forward(self, features: Tensor) -> Tensor:
        latents: Tensor = self.net(features.float().flatten(2)[:, :, self.cells].flatten(1))
        return latents


def _pooled_head(channels: int) -> nn.Sequential:
    """Head that predicts the latents (n, k) from pooled features (n, channels)."""
    return nn.Sequential(nn.BatchNorm1d(channels), nn.Linear(channels, len(LATENTS)))


def _loss(predictions: Sequence[Tensor], truth: Tensor) -> Tensor:
    weights = to_device(np.array([LATENT_WEIGHTS.get(name, 1.0) for name in LATENTS], np.float32), truth.device)
    return torch.stack([latent_loss(prediction.float(), truth, weights) for prediction in predictions]).sum()


def _explained_variance(prediction: Tensor, truth: Tensor) -> dict[str, float]:
    error = ((prediction - truth) ** 2).mean(0)
    return {name: float(1 - e / v) for name, e, v in zip(LATENTS, error, truth.var(0), strict=True)}


class LessonTask:
    """Training task: the paths but the marks, and the last block, on side-aligned heads (``trainer.Task``).

    ``advance`` is called with 1 after each batch.

    Raises:
        ValueError: The network has one image path only.
    """

    def __init__(
        self,
        network: Network,
        context: TrainingContext,
        train: Rows,
        validate: Rows,
        advance: Callable[[int], None] = lambda _: None,
    ) -> None:
        architecture = network.architecture
        if architecture.box is None or not isinstance(network.trunk, MultiPathTrunk):
            raise ValueError("pretraining needs a network with a path over the box around the arteries")
        filters = architecture.box.filters
        self._box = architecture.box.slices
        cells = {name: artery_cells(context.grid, self._box, step) for name, (step, _) in DEPTHS.items()}
        heads = {f"at_{name}": LatentHead(cells[name], width * filters) for name, (_, width) in DEPTHS.items()}
        parts = {
            "whole_path": network.trunk.whole,
            "box_path": network.trunk.box,
            "block": network.block,
            **heads,
            "clot": nn.Conv3d(DEPTHS[CLOT_AT][1] * filters, 1, kernel_size=1),
            "whole": _pooled_head(4 * architecture.filters),
            "last": _pooled_head(architecture.pooled_channels),
        }
        self.module = nn.ModuleDict(parts).to(context.device, memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
        self._trunk = network.trunk.to(context.device)
        self._context, self._train, self._validate, self._advance = context, train, validate, advance

    def steps(self, batch: int) -> int:
        """Number of batches in one epoch."""
        return count_batches(len(self._train), batch)

    def _predict(self, images: Tensor) -> tuple[list[Tensor], Tensor]:
        """Latents (n, k) of every head, the last block's last; and the clot's logits (n, x, y, z) in the box."""
        module, trunk = self.module, self._trunk
        predictions, features = [], images[:, :, *self._box].contiguous(memory_format=torch.channels_last_3d)
        with torch.no_grad():
            marks = [] if trunk.marks is None else [trunk.marks.eval()(features)]
        for name in DEPTHS:
            features = module["box_path"].get_submodule(name)(features)
            predictions.append(module[f"at_{name}"](features))
            if name == CLOT_AT:
                clot = module["clot"](features)[:, 0]
        whole = module["whole_path"](images)
        block = module["block"](trunk.join([whole, features, *marks]))
        return [*predictions, module["whole"](pool(whole.float())), module["last"](pool(block.float()))], clot

    def losses(self, batch: int, rng: np.random.Generator) -> Iterator[Tensor]:
        """Weighted squared error of all heads, and the cross-entropy of the clot's cells."""
        context = self._context
        for rows in batches(self._train, batch, rng):
            change = augmentation.draw(len(rows), len(context.channels), context.grid, rng, rotate=False)
            shifted = rng.random(len(rows)) < AUGMENTED_SHARE["shift"]
            change = replace(change, shift=np.where(shifted[:, None], change.shift, 0))
            drop = draw_dropout(context.data.presence[rows], context.channels, context.vectors, rng)
            incomplete = rng.random(len(rows)) < AUGMENTED_SHARE["incomplete"]
            present = np.where(incomplete[:, None], drop.present, context.data.presence[rows])
            with torch.autocast(context.device.type, torch.bfloat16, enabled=context.use_bfloat16):
                predictions, clot = self._predict(context.changed(rows, change, present))
            yield _loss(predictions, context.latents(rows)) + self._clot_loss(clot.float(), rows, ~shifted)
            self._advance(1)

    def _clot_loss(self, logits: Tensor, rows: Rows, usable: NDArray[np.bool_]) -> Tensor:
        """Cross-entropy of the cells of the ``usable`` heads (n,), those that are not shifted."""
        clots = mark_lesson.clots_in(self._context, rows, self._box)
        if clots is None or not usable.any():
            return logits.sum() * 0.0
        chosen = to_device(np.flatnonzero(usable), logits.device)  # a mask would make the caller wait for its count
        return CLOT_WEIGHT * mark_lesson.clot_loss(logits[chosen], clots[chosen])

    @torch.no_grad()
    def explained_variance(self) -> dict[str, float]:
        """Share of the variance of each latent that the pooled last block explains."""
        return self.explained_by_head()["last"]

    @torch.no_grad()
    def explained_by_head(self) -> dict[str, dict[str, float]]:
        """Share of the variance of each latent that each head explains, on the validation rows as they are."""
        context, parts = self._context, np.array_split(self._validate, max(len(self._validate) // 32, 1))
        predictions = [self._predict(context.images(part, context.data.presence[part]))[0] for part in parts]
        truth = context.latents(self._validate)
        names = [*DEPTHS, "whole", "last"]
        return {
            name: _explained_variance(torch.cat([each[index] for each in predictions]), truth)
            for index, name in enumerate(names)
        }

    def score(self, module: nn.Module) -> float:
        """Mean explained variance on the validation rows."""
        del module  # it is self.module
        return float(np.mean(list(self.explained_variance().values())))


class LastBlockTask:
    """Training task: last block on stored features of whole heads; ``views`` as in ``frozen_trunk.TailOnly``."""

    def __init__(self, network: Network, context: TrainingContext, views: Views, train: Rows, validate: Rows) -> None:
        parts = {"block": network.block, "last": _pooled_head(network.architecture.pooled_channels)}
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
def unit_spread(part: Residual | Marks, pooled: Tensor) -> Tensor:
    """Scale the channels of a path's last part to SD 1 of their ``pooled`` values (n, c); return the factors (c,).

    A factor is at most twenty times that of the median channel. Sums of marks that few patients have would become so
    large in those that half precision cannot hold them; their factor makes the largest value at most ``LARGEST``.
    """
    spread = pooled.std(dim=0)
    varying = spread[spread > 0]
    limit = 0.05 * float(varying.median()) if len(varying) else 1.0
    if isinstance(part, Marks):
        spread = torch.maximum(spread, pooled.amax(dim=0) / LARGEST)
    factors = 1 / spread.clamp_min(limit)
    if isinstance(part, Marks):
        part.sums.weight.mul_(factors[:, None, None, None, None])
        assert part.sums.bias is not None
        part.sums.bias.mul_(factors)
        return factors
    for norm in [part.norm2, *(each for each in part.shortcut.modules() if isinstance(each, nn.BatchNorm3d))]:
        norm.weight.mul_(factors)
        norm.bias.mul_(factors)
    return factors


@dataclass(frozen=True)
class PretrainConfig:
    """Hyperparameters of pretraining.

    The last block is trained on ``views`` of the first ``whole`` phantoms; the spread is measured on ``measure`` of
    them.
    """

    lesson: Recipe = LESSON_RECIPE
    marks: Recipe = mark_lesson.MARK_RECIPE
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
        Share of the variance of each latent that the pooled last block explains, on phantoms that no part was trained
        on.

    Raises:
        ValueError: The network has one image path only, or the grid does not contain the box of the other path.
    """
    torch.manual_seed(seed)
    rows = _split(len(context.data))
    box, marks = network.architecture.box, network.trunk.marks
    if box is not None and isinstance(marks, MarkPath):
        _learn_marks(marks, box.slices, context, rows, seed, reporter, config.marks, folder)
    with reporter.stage("lesson", config.lesson.epochs * count_batches(len(rows[0]), config.lesson.batch)) as advance:
        trainer.fit(
            LessonTask(network, context, *rows, advance),
            config.lesson,
            seed,
            checkpoint=folder / "lesson.pt" if folder else None,
            advance=lambda epoch, score: reporter(f"lesson, epoch {epoch}: explained variance {score:.3f}"),
        )
    whole = context.first(config.whole)
    train, validate = _split(len(whole.data))
    for path, pooled in _pooled(network.trunk, whole, train[: config.measure]):
        unit_spread(path.marks or path.blocks[-1], pooled)
    with reporter.stage("features of whole heads", config.views * len(whole.data)) as advance:
        stored = views(network, whole, config.views, seed, lambda: advance(1))
    block = LastBlockTask(network, whole, stored, train, validate)
    trainer.fit(
        block,
        config.last_block,
        seed,
        checkpoint=folder / "block.pt" if folder else None,
        advance=lambda epoch, score: reporter(f"last block, epoch {epoch}: explained variance {score:.3f}"),
    )
    network.block.eval()
    explained = _explained_on(rows[1], network, block.module["last"].eval(), context)
    with torch.no_grad():
        unit_spread(network.block, pool(network.block(stored[0][0][: config.measure].float())))
    return explained


@torch.no_grad()
def _explained_on(rows: Rows, network: Network, head: nn.Module, context: TrainingContext) -> dict[str, float]:
    """Share of the variance of each latent that ``head`` explains from the pooled last block, on ``rows``."""
    parts = np.array_split(rows, max(len(rows) // 32, 1))
    images = (context.images(part, context.data.presence[part]) for part in parts)
    predictions = [head(pool(network.block(network.trunk(each)).float())) for each in images]
    return _explained_variance(torch.cat(predictions), context.latents(rows))


def _learn_marks(
    path: MarkPath,
    box: tuple[slice, ...],
    context: TrainingContext,
    rows: tuple[Rows, Rows],
    seed: int,
    reporter: ProgressReporter,
    recipe: Recipe,
    folder: Path | None,
) -> None:
    """Train the path that marks the clot; it stays as it is afterwards."""
    with reporter.stage("boxes around the arteries", len(context.data)) as advance:
        boxes = mark_lesson.cut_boxes(context, box, advance)
    with reporter.stage("marks", recipe.epochs * count_batches(len(rows[0]), recipe.batch)) as advance:
        trainer.fit(
            mark_lesson.MarkTask(path, context, boxes, box, *rows, advance),
            recipe,
            seed,
            checkpoint=folder / "marks.pt" if folder else None,
            advance=lambda epoch, score: reporter(f"marks, epoch {epoch}: loss {-score:.3f}"),
        )


def _split(count: int) -> tuple[Rows, Rows]:
    """Training rows, and a tenth that is held out."""
    return np.split(np.arange(count), [count - max(count // 10, 1)])  # type: ignore[return-value]


@torch.no_grad()
def _pooled(
    trunk: resnet.Trunk | MultiPathTrunk, context: TrainingContext, rows: Rows
) -> list[tuple[resnet.ImagePath, Tensor]]:
    """Each path of the trunk with its part of the pooled features (n, c) of ``rows``."""
    parts = np.array_split(rows, max(len(rows) // 32, 1))
    pooled = torch.cat([pool(trunk(context.images(part, context.data.presence[part]))) for part in parts])
    paths = [path for path, _ in trunk.paths]
    widths = [path.marks.sums.out_channels if path.marks else path.blocks[-1].conv2.out_channels for path in paths]
    return list(zip(paths, torch.split(pooled, widths, dim=1), strict=True))
