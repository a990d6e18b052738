"""Training context (patients, clinical vectors, device), batches, and the task that trains a whole network.

Design notes:
- ``EndToEnd`` trains on patients with image augmentation, dropout of modalities and of clinical variables, and binary
  cross-entropy. Rows with known latents also train auxiliary heads.
- ``views`` computes the features of a frozen trunk once; ``frozen_trunk`` and ``pretraining`` train on them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from app.evaluation.metrics import Array, auc, average_precision
from app.imaging.model_grid import Grid
from app.inference.reference_head import ReferenceHead
from app.network import backends
from app.network.daft import Network, pool
from app.network.ensemble import fold_batch_norm
from app.sdk.types import Channel
from app.training import augmentation, distributed
from app.training.dataset import LATENTS, Dataset, Dropout, Vectors, draw_dropout, no_dropout
from app.training.transfer import to_device

Rows = NDArray[np.int64]
Views = Sequence[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class TrainingContext:
    """Patients, their clinical vectors, the grid and the device of a training task.

    ``input_channels``: indices of the channels that the network takes, None for all. A network without the other
    channels is cheaper than, and equivalent to, one where they are always absent. ``reference``: reference head of all
    channels, None for images as they are prepared. ``left`` (n,): whose left side is affected, for ``reference``.
    """

    data: Dataset
    vectors: Vectors
    grid: Grid
    channels: Sequence[Channel]
    device: torch.device
    input_channels: tuple[int, ...] | None = None
    reference: ReferenceHead | None = None
    left: NDArray[np.bool_] | None = None

    def _selected_images(self, rows: Rows) -> Tensor:
        """(n, C, X, Y, Z) float32 of the input channels, mirrored where the reference head asks for it."""
        images = self.data.images[rows]
        chosen = images if self.input_channels is None else images[:, list(self.input_channels)]
        if self.is_side_aligned and self.left is not None:
            left = self.left[rows]
            chosen = np.array(chosen)
            chosen[left] = chosen[left][:, :, ::-1]
        return to_device(chosen, self.device).float()

    @property
    def is_side_aligned(self) -> bool:
        """Whether the affected side of every head is on the right."""
        return self.reference is not None and self.reference.side_aligned

    def _seen(self, images: Tensor, present: NDArray[np.bool_]) -> Tensor:
        """What a network sees of images (n, C, X, Y, Z): relative to the reference head, absent channels zero."""
        if self._mean_and_mask is not None:
            mean, mask = self._mean_and_mask
            images = (images - mean) * mask
        return (images * self._presence_mask(present)).contiguous(memory_format=torch.channels_last_3d)

    @cached_property
    def _mean_and_mask(self) -> tuple[Tensor, Tensor] | None:
        """The reference head of the input channels on the device: mean (C, X, Y, Z) and mask (X, Y, Z)."""
        if self.reference is None:
            return None
        chosen = self.reference if self.input_channels is None else self.reference.only(self.input_channels)
        return to_device(chosen.mean, self.device), to_device(chosen.mask, self.device)

    def _presence_mask(self, present: NDArray[np.bool_]) -> Tensor:
        """(n, C, 1, 1, 1) of the input channels."""
        chosen = present if self.input_channels is None else present[:, list(self.input_channels)]
        return to_device(chosen, self.device)[:, :, None, None, None]

    def images(self, rows: Rows, present: NDArray[np.bool_]) -> Tensor:
        """Images (n, C, X, Y, Z) float32 of ``rows``; channels not ``present`` (n, C) are zero."""
        return self._seen(self._selected_images(rows), present)

    def vectors_of(self, rows: Rows, drop: Dropout) -> Tensor:
        """Clinical vectors (n, v) of ``rows`` after the dropout ``drop``."""
        return to_device(self.vectors.joined(rows, drop.present, drop.hidden), self.device)

    def augmented(self, rows: Rows, rng: np.random.Generator, rotate: bool) -> tuple[Tensor, Tensor]:
        """Training batch: augmented images (n, C, X, Y, Z) and clinical vectors (n, v), both after dropout."""
        drop, change = self._draw(rows, rng, rotate)
        return self.changed(rows, change, drop.present), self.vectors_of(rows, drop)

    def changed(self, rows: Rows, change: augmentation.AugmentationParameters, present: NDArray[np.bool_]) -> Tensor:
        """Images (n, C, X, Y, Z) of ``rows`` after ``change``; it mirrors no side-aligned head."""
        if self.is_side_aligned:
            change = replace(change, mirror=np.zeros(len(rows), bool))
        return self._seen(augmentation.apply(self._selected_images(rows), change), present)

    def augmented_vectors(self, rows: Rows, rng: np.random.Generator, rotate: bool) -> Tensor:
        """The clinical vectors of ``augmented``, by the same draws, without the images."""
        return self.vectors_of(rows, self._draw(rows, rng, rotate)[0])

    def _draw(
        self, rows: Rows, rng: np.random.Generator, rotate: bool
    ) -> tuple[Dropout, augmentation.AugmentationParameters]:
        drop = draw_dropout(self.data.presence[rows], self.channels, self.vectors, rng)
        count = self.data.images.shape[1] if self.input_channels is None else len(self.input_channels)
        return drop, augmentation.draw(len(rows), count, self.grid, rng, rotate=rotate)

    def first(self, count: int) -> TrainingContext:
        """Context of the first ``count`` patients."""
        left = None if self.left is None else self.left[:count]
        return replace(self, data=self.data.first(count), vectors=self.vectors.first(count), left=left)

    @property
    def use_bfloat16(self) -> bool:
        """Whether bfloat16 is faster than float32 on the device: a GPU, or a CPU with AMX."""
        return self.device.type == "cuda" or torch.cpu._is_amx_tile_supported()  # noqa: SLF001 - it has no public name

    def latents(self, rows: Rows) -> Tensor:
        """Standardised latents (n, k) of ``rows``, NaN where unknown."""
        return to_device(self.data.latents[rows], self.device)

    def clots(self, rows: Rows) -> Tensor | None:
        """Share of each cell of two voxels that the clot fills, (n, X/2, Y/2, Z/2); None if unknown."""
        if self.data.clots is None:
            return None
        clots = self.data.clots[rows]
        if self.is_side_aligned and self.left is not None:
            clots = np.where(self.left[rows][:, None, None, None], clots[:, ::-1], clots)
        return to_device(clots, self.device).float()

    def labels(self, rows: Rows) -> Tensor:
        """Labels (n,) float32 of ``rows``."""
        return to_device(self.data.labels[rows], self.device).float()


def batches(rows: Rows, size: int, rng: np.random.Generator) -> Iterator[Rows]:
    """Shuffled rows in batches of ``size``; each rank gets its share of every batch.

    A last batch of less than half the size is left out, because batch-norm statistics would be too noisy, and so is one
    with less than two rows for each rank: there are no statistics of a single row.
    """
    order = rng.permutation(rows)
    for start in range(0, len(order), size):
        batch = order[start : start + size]
        if len(batch) >= _smallest_batch(len(order), size):
            yield distributed.rank_rows(np.sort(batch))


def count_batches(rows: int, size: int) -> int:
    """Number of batches that ``batches`` gives."""
    whole, rest = divmod(rows, size)
    smallest = _smallest_batch(rows, size)
    return whole * (size >= smallest) + (rest >= smallest)


def _smallest_batch(rows: int, size: int) -> int:
    """Rows of the smallest batch that is used, of ``rows`` in batches of ``size``."""
    ranks = distributed.rank_count()
    return max(-(-min(size, rows) // 2), 2 * ranks if ranks > 1 else 1)


def auprc_plus_auc(labels: Rows, scores: Array) -> float:
    """AUPRC + AUC, the score of early stopping; 0 with one class only."""
    if len(np.unique(labels)) < 2:
        return 0.0
    return average_precision(labels, scores) + auc(labels, scores)


def latent_loss(guess: Tensor, truth: Tensor, weights: Tensor | None = None) -> Tensor:
    """Mean squared error over the known latents of ``truth`` (n, k; NaN: unknown), optionally with ``weights`` (k,).

    It is zero if none is known; asking the device whether any is known would wait for all its kernels.
    """
    known = torch.isfinite(truth)
    error = (guess - truth.nan_to_num()) ** 2 * known
    return (error if weights is None else error * weights).sum() / known.sum().clamp_min(1)


class EndToEnd:
    """Training task: a whole network on one fold, with auxiliary heads if latents are known (``trainer.Task``)."""

    def __init__(
        self, network: Network, context: TrainingContext, train: Rows, validate: Rows, *, rotate: bool, auxiliary: float
    ) -> None:
        self.network = network.to(context.device, memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
        width = network.block.conv1.in_channels
        self._auxiliary = auxiliary if np.isfinite(context.data.latents).any() else 0.0
        parts: dict[str, nn.Module] = {"network": network}
        if self._auxiliary:
            parts["heads"] = nn.Linear(width, len(LATENTS))
        self.module = nn.ModuleDict(parts).to(context.device)
        self._context, self._train, self._validate, self._rotate = context, train, validate, rotate
        start_from_prior(network, context.data.labels[train])

    def steps(self, batch: int) -> int:
        """Number of batches in one epoch."""
        return count_batches(len(self._train), batch)

    def losses(self, batch: int, rng: np.random.Generator) -> Iterator[Tensor]:
        """Binary cross-entropy, plus the weighted latent loss."""
        context = self._context
        mixed_precision = context.device.type == "cuda" and torch.cuda.is_bf16_supported()
        for rows in batches(self._train, batch, rng):
            images, vectors = context.augmented(rows, rng, self._rotate)
            with torch.autocast(context.device.type, torch.bfloat16, enabled=mixed_precision):
                features = self.network.trunk(images)
                logits = self.network.tail(features, vectors)[:, 0]
            loss = functional.binary_cross_entropy_with_logits(logits.float(), context.labels(rows))
            if self._auxiliary:
                guess = self.module["heads"](pool(features.float()))
                loss = loss + self._auxiliary * latent_loss(guess, context.latents(rows))
            yield loss

    def logits(self, rows: Rows) -> Array:
        """Logits (n,) of ``rows`` without augmentation."""
        return logits(self.network, self._context, rows)

    def score(self, module: nn.Module) -> float:
        """AUPRC + AUC on the validation rows."""
        del module  # it is self.module
        return auprc_plus_auc(self._context.data.labels[self._validate], self.logits(self._validate))


def mix_views(views: Views, rows: Rows, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Features and clinical vectors of ``rows``, each row from a random view."""
    which = rng.integers(len(views), size=len(rows))
    order = np.concatenate([np.flatnonzero(which == view) for view in range(len(views))])
    device = views[0][0].device
    places = [to_device(rows[which == view], device) for view in range(len(views))]
    parts = [[part[chosen] for part in pair] for chosen, pair in zip(places, views, strict=True)]
    inverse = to_device(np.argsort(order), device)
    features, vectors = (torch.cat(part)[inverse] for part in zip(*parts, strict=True))
    return features.float().contiguous(memory_format=torch.channels_last_3d), vectors


def start_from_prior(network: Network, labels: Rows) -> None:
    """Set the output bias to the logit of the prevalence, so that the first epochs need not learn it."""
    share = float(np.clip(labels.mean(), 0.01, 0.99))
    with torch.no_grad():
        network.head.bias.fill_(np.log(share / (1 - share)))


def logits(network: Network, context: TrainingContext, rows: Rows, batch: int = 32) -> Array:
    """Logits (n,) of a whole network in eval mode, without augmentation."""
    return np.asarray(ensemble_logits([network], context, rows, batch)[0])


def share_a_trunk(networks: Sequence[Network]) -> bool:
    """Whether the trunks of all networks have the same weights, so that their features need computing once."""
    weights = [list(network.trunk.state_dict().values()) for network in networks]
    return all(torch.equal(a, b) for other in weights[1:] for a, b in zip(weights[0], other, strict=True))


@torch.no_grad()
def ensemble_logits(networks: Sequence[Network], context: TrainingContext, rows: Rows, batch: int = 32) -> Array:
    """Logits (networks, n) in eval mode, without augmentation; a trunk that all of them share is computed once."""
    for network in networks:
        network.eval()
    shared, parts = share_a_trunk(networks), []
    for part in np.array_split(rows, max(-(-len(rows) // batch), 1)):
        drop = no_dropout(context.data.presence[part], context.vectors)
        images, vectors = context.images(part, drop.present), context.vectors_of(part, drop)
        first = networks[0].trunk(images)
        features = [first if shared or place == 0 else each.trunk(images) for place, each in enumerate(networks)]
        parts.append(torch.stack([each.tail(own, vectors)[:, 0] for each, own in zip(networks, features, strict=True)]))
    return torch.cat(parts, dim=1).double().cpu().numpy()


@torch.no_grad()
def views(
    network: Network, context: TrainingContext, count: int, seed: int, advance: Callable[[], None] = lambda: None
) -> Views:
    """Trunk features and clinical vectors of every row in ``count`` views: the first plain, the others augmented."""
    network.eval()
    shape = (len(context.channels), *context.grid.shape)
    trunk = backends.select_backend(backends.Backend.AUTO, context.device, [fold_batch_norm(network)], shape)
    result = []
    for view in range(count):
        rng = np.random.default_rng([seed, 8, view])
        features, vectors = [], []
        for rows in _view_batches(context):
            if view:
                images, clinical = context.augmented(rows, rng, rotate=False)
            else:
                drop = no_dropout(context.data.presence[rows], context.vectors)
                images, clinical = context.images(rows, drop.present), context.vectors_of(rows, drop)
            batch = network.trunk(images) if trunk is None else torch.cat([trunk(image)[0] for image in images])
            features.append(batch.half())
            vectors.append(clinical)
            for _ in rows:
                advance()
        result.append((torch.cat(features), torch.cat(vectors)))
    return result


def view_vectors(context: TrainingContext, count: int, seed: int) -> list[Tensor]:
    """The clinical vectors of ``views`` alone, by the same draws."""
    result = []
    for view in range(count):
        rng = np.random.default_rng([seed, 8, view])
        parts = []
        for rows in _view_batches(context):
            drop = no_dropout(context.data.presence[rows], context.vectors)
            vectors = context.augmented_vectors(rows, rng, rotate=False) if view else context.vectors_of(rows, drop)
            parts.append(vectors)
        result.append(torch.cat(parts))
    return result


def _view_batches(context: TrainingContext) -> list[Rows]:
    return np.array_split(np.arange(len(context.data)), max(len(context.data) // 32, 1))
