"""An image side taught by phantoms: a trunk and a last block that read clot, collaterals and lesion. No label of rLVO.

Notable choices:
- The signs that matter most are a few millimetres large: one part in a thousand of the volume. Averaged over all of
  it, they drown, and a network taught that way learns only what the perfusion maps show (docs/experiments.md). So the
  trunk is taught first on a box around the arteries of the affected side, by ``LatentHead`` heads at every depth that
  look where the arteries run. Half of the boxes are mirrored, and the heads look through the same mirror: the trunk
  itself need not know sides.
- Every head standardises what it sees. Whether a clot is there changes a feature by a hundredth of its size.
- Then the trunk stands, its normalisation is measured on whole heads, and the block learns to read its features of
  whole heads, which are computed once.
- ``unit_spread`` rescales both so that pooled features vary by about one: what is trained on top of them is then well
  conditioned. It changes no other property of the network (a ReLU lets positive factors pass).
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
from app.training import augmentation, trainer
from app.training.dataset import LATENTS, draw_dropout
from app.training.progress import ProgressReporter
from app.training.tasks import Rows, TrainingContext, Views, batches, count_batches, latent_loss, mixed, views
from app.training.trainer import Recipe

NEAR_MM = ((-14.0, 78.0), (-48.0, 44.0), (-42.0, 50.0))  # centres of the box's outermost voxels: right carotid, M1, M2
STRIDE = 8  # the trunk's: a box that starts on a multiple of it has the features that it has in the whole head
CAROTID_MM = 55.0  # the carotid is looked at from here on: its last centimetres, where a clot may be
SHARE = {"shift": 0.35, "incomplete": 0.2}  # of the boxes: moved by a voxel, some modality missing
WEIGHTS = {"clot_hu": 0.6, "tmax6_ml": 0.3, "core_ml": 0.4}  # others 1: these are hard, or in the perfusion numbers

NEAR = Recipe(epochs=8, batch=32, rate=4e-3, patience=8)
BLOCK = Recipe(epochs=10, batch=64, rate=4e-3, patience=10)


def box(grid: Grid) -> tuple[slice, slice, slice]:
    """The voxels around the arteries of the right side, on multiples of ``STRIDE``.

    :raises ValueError: where the grid is too small for it
    """
    found = []
    for axis, (low, high) in enumerate(NEAR_MM):
        origin, spacing = grid.affine[axis][3], grid.spacing_mm[axis]
        start = round((low - origin) / spacing) // STRIDE * STRIDE
        stop = -(-(round((high - origin) / spacing) + 1) // STRIDE) * STRIDE
        if start < 0 or stop > grid.shape[axis]:
            raise ValueError("the grid does not hold the arteries' box")
        found.append(slice(start, stop))
    return found[0], found[1], found[2]


def cells(grid: Grid, near: Sequence[slice], step: int) -> NDArray[np.int64]:
    """Flat indices of the cells of ``step`` voxels, within the box, through which the right side's arteries run."""
    tree = anatomy.arteries()
    own = tree.of("right/ica") & (tree.arc_mm > CAROTID_MM)
    for branch in ("m1", "m2-superior", "m2-inferior"):
        own |= tree.of(f"right/{branch}")
    mm = np.stack(np.unravel_index(tree.index[own], anatomy.SHAPE), axis=1) + anatomy.ORIGIN_MM
    origin = np.array([row[3] for row in grid.affine[:3]])
    voxels = np.rint((mm - origin) / grid.spacing_mm).astype(np.int64) - [part.start for part in near]
    size = np.array([part.stop - part.start for part in near])
    voxels = voxels[((voxels >= 0) & (voxels < size)).all(axis=1)]
    found, count = np.unique(voxels // step, axis=0, return_counts=True)
    return np.asarray(np.ravel_multi_index(tuple(found[count >= 8].T), tuple(size // step)), np.int64)


class LatentHead(nn.Module):
    """The latents (n, k) from the features (n, c, x, y, z) of some cells."""

    def __init__(self, cells: NDArray[np.int64], channels: int) -> None:
        super().__init__()
        self.cells = cells
        size = len(cells) * channels
        self.net = nn.Sequential(nn.BatchNorm1d(size), nn.Linear(size, 64), nn.ReLU(), nn.Linear(64, len(LATENTS)))

    def forward(self, features: Tensor) -> Tensor:
        found: Tensor = self.net(features.float().flatten(2)[:, :, self.cells].flatten(1))
        return found


def _averaged(channels: int) -> nn.Sequential:
    """The latents from pooled features."""
    return nn.Sequential(nn.BatchNorm1d(channels), nn.Linear(channels, len(LATENTS)))


def _loss(guesses: Sequence[Tensor], truth: Tensor) -> Tensor:
    weights = torch.tensor([WEIGHTS.get(name, 1.0) for name in LATENTS], device=truth.device)
    return torch.stack([latent_loss(guess.float(), truth, weights) for guess in guesses]).sum()


def _explained(guess: Tensor, truth: Tensor) -> dict[str, float]:
    error = ((guess - truth) ** 2).mean(0)
    return {n: float(1 - e / v) for n, e, v in zip(LATENTS, error, truth.var(0), strict=True)}


class ArteryBoxTask:
    """Teaches trunk and block on boxes around the arteries; a loop's task."""

    def __init__(self, network: Network, context: TrainingContext, train: Rows, validate: Rows) -> None:
        near = box(context.grid)
        filters = network.architecture.filters
        depths = {"stem": (2, 1), "block1": (2, 1), "block2": (4, 2), "block3": (8, 4)}
        heads = {n: LatentHead(cells(context.grid, near, step), wide * filters) for n, (step, wide) in depths.items()}
        parts = {
            "trunk": network.trunk,
            "block": network.block,
            **{f"at_{name}": head for name, head in heads.items()},
            "pooled": _averaged(4 * filters),
            "last": _averaged(8 * filters),
        }
        self.module = nn.ModuleDict(parts).to(context.device, memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
        self._context, self._train, self._validate = context, train, validate
        self._boxes = self._cut(near)

    def _cut(self, near: tuple[slice, slice, slice]) -> NDArray[np.float16]:
        """Every phantom's box (n, C, x, y, z), a left-sided occlusion mirrored."""
        images = self._context.data.images
        found = np.empty((*images.shape[:2], *(part.stop - part.start for part in near)), np.float16)
        for row, (image, record) in enumerate(zip(images, self._context.data.records, strict=True)):
            seen = image[:, ::-1] if record.occlusion_side is Side.LEFT else image
            found[row] = seen[:, near[0], near[1], near[2]]
        return found

    def steps(self, batch: int) -> int:
        """Batches of one epoch."""
        return count_batches(len(self._train), batch)

    def _read(self, images: Tensor, mirrored: NDArray[np.bool_]) -> list[Tensor]:
        module, turned = self.module, torch.from_numpy(mirrored).to(images.device)[:, None, None, None, None]

        def seen(features: Tensor) -> Tensor:
            return torch.where(turned, features.flip(2), features)

        found, features = [], images.contiguous(memory_format=torch.channels_last_3d)
        for name in ("stem", "block1", "block2", "block3"):
            features = getattr(module["trunk"], name)(features)
            found.append(module[f"at_{name}"](seen(features)))
        return [
            *found,
            module["pooled"](pool(features.float())),
            module["last"](pool(module["block"](features).float())),
        ]

    def losses(self, batch: int, rng: np.random.Generator) -> Iterator[Tensor]:
        """The weighted errors of all heads."""
        context = self._context
        for rows in batches(self._train, batch, rng):
            change = augmentation.draw(len(rows), len(context.channels), context.grid, rng, turn=False)
            still = rng.random(len(rows)) >= SHARE["shift"]
            change = replace(change, shift=np.where(still[:, None], 0, change.shift))
            drop = draw_dropout(context.data.presence[rows], context.channels, context.vectors, rng)
            complete = rng.random(len(rows)) >= SHARE["incomplete"]
            present = np.where(complete[:, None], context.data.presence[rows], drop.present)
            images = augmentation.apply(torch.from_numpy(self._boxes[rows]).to(context.device).float(), change)
            images = images * torch.from_numpy(present).to(context.device)[:, :, None, None, None]
            with torch.autocast(context.device.type, torch.bfloat16, enabled=context.quick):
                guesses = self._read(images, change.mirror)
            yield _loss(guesses, context.latents(rows))

    @torch.no_grad()
    def explained(self) -> dict[str, float]:
        """The share of each latent's variance that the trunk's last features explain where the arteries run."""
        guesses = [
            self._read(torch.from_numpy(self._boxes[r]).to(self._context.device).float(), np.zeros(len(r), bool))[3]
            for r in np.array_split(self._validate, max(len(self._validate) // 32, 1))
        ]
        return _explained(torch.cat(guesses), self._context.latents(self._validate))

    def score(self, module: nn.Module) -> float:
        """Mean explained share of variance."""
        del module  # it is self.module
        return float(np.mean(list(self.explained().values())))


class LastBlockTask:
    """Teaches the block on stored features of whole heads; a loop's task. ``views``: as for ``tasks.TailOnly``."""

    def __init__(self, network: Network, context: TrainingContext, views: Views, train: Rows, validate: Rows) -> None:
        parts = {"block": network.block, "last": _averaged(8 * network.architecture.filters)}
        self.module = nn.ModuleDict(parts).to(context.device)
        self._context, self._views, self._train, self._validate = context, views, train, validate

    def steps(self, batch: int) -> int:
        """Batches of one epoch."""
        return count_batches(len(self._train), batch)

    def _read(self, features: Tensor) -> Tensor:
        found: Tensor = self.module["last"](pool(self.module["block"](features.float())))
        return found

    def losses(self, batch: int, rng: np.random.Generator) -> Iterator[Tensor]:
        """The weighted errors, each row in a view of its own."""
        for rows in batches(self._train, batch, rng):
            features, _ = mixed(self._views, rows, rng)
            with torch.autocast(self._context.device.type, torch.bfloat16, enabled=self._context.quick):
                pooled = pool(self.module["block"](features))
            yield _loss([self.module["last"](pooled.float())], self._context.latents(rows))

    @torch.no_grad()
    def explained(self) -> dict[str, float]:
        """The share of each latent's variance that the pooled block explains in whole heads."""
        parts = np.array_split(self._validate, max(len(self._validate) // 256, 1))
        guesses = [self._read(self._views[0][0][torch.from_numpy(part)]) for part in parts]
        return _explained(torch.cat(guesses), self._context.latents(self._validate))

    def score(self, module: nn.Module) -> float:
        """Mean explained share of variance."""
        del module  # it is self.module
        return float(np.mean(list(self.explained().values())))


@torch.no_grad()
def recalibrate_batchnorm(trunk: Trunk, context: TrainingContext, rows: Rows, seed: int) -> None:
    """Measure the trunk's normalisation on augmented whole heads: on boxes its statistics were others."""
    norms = [part for part in trunk.modules() if isinstance(part, nn.BatchNorm3d)]
    momentum = norms[0].momentum
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # an average over all batches
    trunk.train()
    rng = np.random.default_rng([seed, 13])
    for part in batches(rows, 32, rng):
        trunk(context.augmented(part, rng, turn=False)[0])
    for norm in norms:
        norm.momentum = momentum
    trunk.eval()


@torch.no_grad()
def unit_spread(block: Residual, pooled: Tensor) -> Tensor:
    """Scale a residual block's channels so that their pooled values (n, c), as measured, would spread by one.

    Answers the factors (c,). A channel that hardly moves is not blown up beyond twenty times the median.
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
    """How long to teach, and with what. The last block learns from ``views`` of the first ``whole`` phantoms' heads;
    normalisation and spread are measured on ``measure`` of them.
    """

    near: Recipe = NEAR
    block: Recipe = BLOCK
    whole: int = 4000
    views: int = 2
    measure: int = 640


def teach(
    network: Network,
    context: TrainingContext,
    seed: int,
    board: ProgressReporter,
    lesson: PretrainConfig = PretrainConfig(),
    *,
    folder: Path | None = None,
) -> dict[str, float]:
    """Teach the network's trunk and last block on a bench of phantoms, in place; a tenth of them is held out.

    Answers the share of each latent's variance that the pooled block explains on those held out.

    :param folder: of the checkpoints, from which a killed lesson goes on
    :raises ValueError: where the grid does not hold the arteries' box
    """
    torch.manual_seed(seed)
    near = ArteryBoxTask(network, context, *_parts(len(context.data)))
    trainer.run(
        near,
        lesson.near,
        seed,
        checkpoint=folder / "near.pt" if folder else None,
        advance=lambda epoch, score: board(f"near the clot, epoch {epoch}: {score:.3f} of the variance explained"),
    )
    some = context.first(lesson.whole)
    train, validate = _parts(len(some.data))
    recalibrate_batchnorm(network.trunk, some, train[: lesson.measure], seed)
    unit_spread(network.trunk.block3, _pooled(network.trunk, some, train[: lesson.measure]))
    with board.stage("whole heads", lesson.views * len(some.data)) as advance:
        seen = views(network, some, lesson.views, seed, lambda: advance(1))
    block = LastBlockTask(network, some, seen, train, validate)
    trainer.run(
        block,
        lesson.block,
        seed,
        checkpoint=folder / "block.pt" if folder else None,
        advance=lambda epoch, score: board(f"whole heads, epoch {epoch}: {score:.3f} of the variance explained"),
    )
    explained = block.explained()
    network.block.eval()
    with torch.no_grad():
        unit_spread(network.block, pool(network.block(seen[0][0][: lesson.measure].float())))
    return explained


def _parts(count: int) -> tuple[Rows, Rows]:
    """The rows that are learnt from, and a tenth that is held out."""
    return np.split(np.arange(count), [count - max(count // 10, 1)])  # type: ignore[return-value]


@torch.no_grad()
def _pooled(trunk: Trunk, context: TrainingContext, rows: Rows) -> Tensor:
    parts = np.array_split(rows, max(len(rows) // 32, 1))
    return torch.cat([pool(trunk(context.images(part, context.data.presence[part]))) for part in parts])
