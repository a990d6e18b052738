"""The three things that are trained: a trunk on known latents, a whole network, and a tail on a trunk that stands.

Notable choices:
- ``Pretraining`` teaches the trunk what phantoms are made of (clot, collaterals, lesion): regression on latents, no
  label of rLVO. Heads are one linear layer on the pooled features, and are thrown away.
- ``EndToEnd`` is the recipe for patients: image augmentation, modality and fact dropout, BCE from the prior's logit,
  and, where latents are known, the same auxiliary heads beside it.
- ``TailOnly`` trains the last block on stored features of a trunk that does not move: minutes instead of hours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from app.manifest import Grid
from app.network.daft import Network, pool
from app.network.resnet import Trunk
from app.sdk.types import Channel
from app.training import augment, ranks
from app.training.dataset import LATENTS, Dataset, Dropout, Vectors, draw_dropout, no_dropout
from app.training.metrics import Array, auc, average_precision

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Bench:
    """What every task works with: the patients, their clinical side, and where the work is done.

    ``given``: the channels that a network is given at all, None for every one. A network of fewer channels is cheaper,
    and says the same, as one to which the others are always absent.
    """

    data: Dataset
    vectors: Vectors
    grid: Grid
    channels: Sequence[Channel]
    device: torch.device
    given: tuple[int, ...] | None = None

    def _taken(self, rows: Rows) -> Tensor:
        """(n, C, X, Y, Z) float32 of the channels given."""
        images = self.data.images[rows]
        chosen = images if self.given is None else images[:, list(self.given)]
        return torch.from_numpy(np.ascontiguousarray(chosen)).to(self.device).float()

    def _present(self, present: NDArray[np.bool_]) -> Tensor:
        """(n, C, 1, 1, 1) of the channels given."""
        chosen = present if self.given is None else present[:, list(self.given)]
        return torch.from_numpy(chosen).to(self.device)[:, :, None, None, None]

    def images(self, rows: Rows, present: NDArray[np.bool_]) -> Tensor:
        """(n, C, X, Y, Z) float32 with absent channels zero."""
        images = self._taken(rows) * self._present(present)
        return images.contiguous(memory_format=torch.channels_last_3d)

    def vectors_of(self, rows: Rows, drop: Dropout) -> Tensor:
        """(n, v) clinical vectors."""
        return torch.from_numpy(self.vectors.joined(rows, drop.present, drop.hidden)).to(self.device)

    def augmented(self, rows: Rows, rng: np.random.Generator, turn: bool) -> tuple[Tensor, Tensor]:
        """A training batch: changed images and clinical vectors, some of each missing."""
        drop = draw_dropout(self.data.presence[rows], self.channels, self.vectors, rng)
        images = self._taken(rows)
        change = augment.draw(len(rows), images.shape[1], self.grid, rng, turn=turn)
        images = augment.apply(images, change) * self._present(drop.present)
        return images.contiguous(memory_format=torch.channels_last_3d), self.vectors_of(rows, drop)

    def labels(self, rows: Rows) -> Tensor:
        return torch.from_numpy(self.data.labels[rows]).to(self.device).float()


def batches(rows: Rows, size: int, rng: np.random.Generator) -> Iterator[Rows]:
    """The rows in a new order; a last batch of less than half the size is left out (batch norm needs company).

    Where a fold is spread over ranks, each gets its share of every batch.
    """
    order = rng.permutation(rows)
    for start in range(0, len(order), size):
        batch = order[start : start + size]
        if len(batch) * 2 >= min(size, len(order)):
            yield ranks.share(np.sort(batch))


def _count(rows: int, size: int) -> int:
    whole, rest = divmod(rows, size)
    return whole + (rest * 2 >= min(size, rows) and rest > 0)


def quality(labels: Rows, scores: Array) -> float:
    """What early stopping watches: AUPRC + AUC."""
    if len(np.unique(labels)) < 2:
        return 0.0
    return average_precision(labels, scores) + auc(labels, scores)


def _latent_loss(guess: Tensor, truth: Tensor) -> Tensor:
    """Mean squared error over the latents that are known (NaN: unknown)."""
    known = torch.isfinite(truth)
    if not known.any():
        return guess.sum() * 0.0
    return functional.mse_loss(guess[known], truth[known])


class Pretraining:
    """Teaches a trunk to read latents; ``module`` is trunk and heads."""

    def __init__(self, network: Network, bench: Bench, train: Rows, validate: Rows, *, turn: bool = False) -> None:
        width = network.block.conv1.in_channels
        self.module = nn.ModuleDict({"trunk": network.trunk, "heads": nn.Linear(width, len(LATENTS))}).to(bench.device)
        self._bench, self._train, self._validate, self._turn = bench, train, validate, turn

    def steps(self, batch: int) -> int:
        """Batches of one epoch."""
        return _count(len(self._train), batch)

    def _truth(self, rows: Rows) -> Tensor:
        return torch.from_numpy(self._bench.data.latents[rows]).to(self._bench.device)

    def losses(self, batch: int, rng: np.random.Generator) -> Iterator[Tensor]:
        """Mean squared errors of the standardised latents."""
        for rows in batches(self._train, batch, rng):
            images, _ = self._bench.augmented(rows, rng, self._turn)
            yield _latent_loss(self.module["heads"](pool(self.module["trunk"](images))), self._truth(rows))

    def explained(self) -> dict[str, float]:
        """The share of each latent's variance that is explained, with every image present."""
        with torch.no_grad():
            guesses = [
                self.module["heads"](pool(self.module["trunk"](self._bench.images(r, self._bench.data.presence[r]))))
                for r in np.array_split(self._validate, max(len(self._validate) // 32, 1))
            ]
        error = ((torch.cat(guesses) - self._truth(self._validate)) ** 2).mean(0)
        return {n: float(1 - e / v) for n, e, v in zip(LATENTS, error, self._truth(self._validate).var(0), strict=True)}

    def score(self, module: nn.Module) -> float:
        """Mean explained share of variance."""
        del module  # it is self.module
        return float(np.mean(list(self.explained().values())))


class EndToEnd:
    """A whole network on one fold, with auxiliary heads where latents are known."""

    def __init__(
        self, network: Network, bench: Bench, train: Rows, validate: Rows, *, turn: bool, auxiliary: float
    ) -> None:
        self.network = network.to(bench.device, memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
        width = network.block.conv1.in_channels
        self._auxiliary = auxiliary if np.isfinite(bench.data.latents).any() else 0.0
        parts: dict[str, nn.Module] = {"network": network}
        if self._auxiliary:
            parts["heads"] = nn.Linear(width, len(LATENTS))
        self.module = nn.ModuleDict(parts).to(bench.device)
        self._bench, self._train, self._validate, self._turn = bench, train, validate, turn
        start_from_prior(network, bench.data.labels[train])

    def steps(self, batch: int) -> int:
        """Batches of one epoch."""
        return _count(len(self._train), batch)

    def losses(self, batch: int, rng: np.random.Generator) -> Iterator[Tensor]:
        """BCE, and a share of the latents' error."""
        bench = self._bench
        halved = bench.device.type == "cuda" and torch.cuda.is_bf16_supported()
        for rows in batches(self._train, batch, rng):
            images, vectors = bench.augmented(rows, rng, self._turn)
            with torch.autocast(bench.device.type, torch.bfloat16, enabled=halved):
                features = self.network.trunk(images)
                logits = self.network.tail(features, vectors)[:, 0]
            loss = functional.binary_cross_entropy_with_logits(logits.float(), bench.labels(rows))
            if self._auxiliary:
                truth = torch.from_numpy(bench.data.latents[rows]).to(bench.device)
                loss = loss + self._auxiliary * _latent_loss(self.module["heads"](pool(features.float())), truth)
            yield loss

    def logits(self, rows: Rows) -> Array:
        """Logits (n,) of rows as they are, nothing augmented."""
        return logits(self.network, self._bench, rows)

    def score(self, module: nn.Module) -> float:
        """AUPRC + AUC on the validation rows."""
        del module  # it is self.module
        return quality(self._bench.data.labels[self._validate], self.logits(self._validate))


class TailOnly:
    """The last block on stored features: ``variants`` augmented views of each row, and the plain one.

    :param views: per view the features (n, 4 f, x, y, z) float16 and clinical vectors (n, v) of all rows; the first
        view is plain
    """

    def __init__(
        self, network: Network, bench: Bench, views: Sequence[tuple[Tensor, Tensor]], train: Rows, validate: Rows
    ) -> None:
        self.network = network.to(bench.device)
        self.module = nn.ModuleDict({name: part for name, part in network.named_children() if name != "trunk"})
        self._bench, self._views, self._train, self._validate = bench, views, train, validate
        start_from_prior(network, bench.data.labels[train])

    def steps(self, batch: int) -> int:
        """Batches of one epoch."""
        return _count(len(self._train), batch)

    def losses(self, batch: int, rng: np.random.Generator) -> Iterator[Tensor]:
        """BCE on a random view of each row."""
        for rows in batches(self._train, batch, rng):
            which = rng.integers(len(self._views), size=len(rows))
            features = torch.stack([self._views[v][0][row] for v, row in zip(which, rows, strict=True)]).float()
            vectors = torch.stack([self._views[v][1][row] for v, row in zip(which, rows, strict=True)])
            logits = self.network.tail(features, vectors)[:, 0]
            yield functional.binary_cross_entropy_with_logits(logits, self._bench.labels(rows))

    def logits(self, rows: Rows) -> Array:
        """Logits (n,) of the plain view of rows."""
        features, vectors = self._views[0]
        with torch.no_grad():
            parts = [
                self.network.tail(features[part].float(), vectors[part])[:, 0]
                for part in np.array_split(rows, max(len(rows) // 256, 1))
            ]
        return torch.cat(parts).double().cpu().numpy()

    def score(self, module: nn.Module) -> float:
        """AUPRC + AUC on the validation rows."""
        del module  # it is self.module
        return quality(self._bench.data.labels[self._validate], self.logits(self._validate))


def start_from_prior(network: Network, labels: Rows) -> None:
    """Set the output's bias to the prior's logit: the first epochs need not learn the prevalence."""
    share = float(np.clip(labels.mean(), 0.01, 0.99))
    with torch.no_grad():
        network.head.bias.fill_(np.log(share / (1 - share)))


@torch.no_grad()
def logits(network: Network, bench: Bench, rows: Rows, batch: int = 32) -> Array:
    """Logits (n,) of a whole network in eval mode, on rows as they are."""
    network.eval()
    found = []
    for part in np.array_split(rows, max(-(-len(rows) // batch), 1)):
        drop = no_dropout(bench.data.presence[part], bench.vectors)
        found.append(network(bench.images(part, drop.present), bench.vectors_of(part, drop))[:, 0])
    return torch.cat(found).double().cpu().numpy()


@torch.no_grad()
def views(
    trunk: Trunk, bench: Bench, count: int, seed: int, advance: Callable[[int], None] = lambda _: None
) -> list[tuple[Tensor, Tensor]]:
    """``count`` views of every row for ``TailOnly``: the plain one, then augmented ones."""
    trunk.eval()
    made = []
    for view in range(count):
        rng = np.random.default_rng([seed, 8, view])
        features, vectors = [], []
        for rows in np.array_split(np.arange(len(bench.data)), max(len(bench.data) // 32, 1)):
            if view:
                images, clinical = bench.augmented(rows, rng, turn=False)
            else:
                drop = no_dropout(bench.data.presence[rows], bench.vectors)
                images, clinical = bench.images(rows, drop.present), bench.vectors_of(rows, drop)
            features.append(trunk(images).half())
            vectors.append(clinical)
            advance(len(rows))
        made.append((torch.cat(features), torch.cat(vectors)))
    return made
