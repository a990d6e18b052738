"""The tail on an image side that stands: modulation and head are learnt on stored features, in seconds.

Notable choices:
- Some hundred weights are learnt instead of a hundred thousand; a penalty keeps them near a start where the modulation
  does nothing and the head says the prior.
- Pooled features are far from zero and vary little (a mean of twelve deviations): to scale them is above all to shift
  them, and the product of image and record, which DAFT is for, is a small difference of large numbers. So weights are
  learnt about the mean: scaling turns about the mean features, hidden units and head see deviations from it. It is the
  same family of networks, better conditioned; ``finish`` writes the weights in their plain form.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize

from app.evaluation.metrics import Array
from app.network.daft import Network, pool
from app.training.tasks import Rows, TrainingContext, Views, batches, count_batches, mixed, quality, start_from_prior


class CenteredInput(nn.Module):
    """Weights of a layer over [pooled features, record], which has no bias: what the mean features (c,) give is taken
    off by way of the last columns, the presence bits.
    """

    def __init__(self, mean: Tensor, channels: int) -> None:
        super().__init__()
        self.mean, self.channels = mean, channels

    def _moved(self, weight: Tensor, sign: int) -> Tensor:
        off = sign * (weight[:, : len(self.mean)] @ self.mean)[:, None] / self.channels
        return torch.cat([weight[:, : -self.channels], weight[:, -self.channels :] + off], dim=1)

    def forward(self, free: Tensor) -> Tensor:
        return self._moved(free, -1)

    def right_inverse(self, weight: Tensor) -> Tensor:
        return self._moved(weight, 1)


class CenteredScale(nn.Module):
    """Weights (2 c, hidden) of [scale, shift]: a scale leaves the mean features (c,) where they are."""

    def __init__(self, mean: Tensor) -> None:
        super().__init__()
        self.mean = mean

    def _moved(self, weight: Tensor, sign: int) -> Tensor:
        scale, shift = weight.chunk(2)
        return torch.cat([scale, shift + sign * self.mean[:, None] * scale])

    def forward(self, free: Tensor) -> Tensor:
        return self._moved(free, -1)

    def right_inverse(self, weight: Tensor) -> Tensor:
        return self._moved(weight, 1)


class TailOnly:
    """Modulation and head on stored features; a loop's task.

    :param views: per view the features (n, 4 f, x, y, z) float16 and clinical vectors (n, v) of all rows; the first
        view is plain
    :param pull: penalty on the squared distance of the weights from their start
    """

    def __init__(
        self,
        network: Network,
        context: TrainingContext,
        views: Views,
        train: Rows,
        validate: Rows,
        *,
        l2_to_init: float = 0.0,
    ) -> None:
        self.network = network.to(context.device)
        self.network.block.requires_grad_(False).eval()
        features, vectors = (part[torch.from_numpy(train)] for part in views[0])
        start_tail(network, _mean(pool(part.float()) for part in torch.split(features, 256)))
        start_from_prior(network, context.data.labels[train])
        pairs = zip(torch.split(features, 256), torch.split(vectors, 256), strict=True)
        with torch.no_grad():
            self._middle = _mean(network.penultimate(some.float(), record) for some, record in pairs)
        parts = {name: part for name, part in network.named_children() if name not in ("trunk", "block")}
        self.module = nn.ModuleDict(parts)
        self._start = [parameter.detach().clone() for parameter in self.module.parameters()]
        self._context, self._views, self._train, self._validate, self._l2_to_init = (
            context,
            views,
            train,
            validate,
            l2_to_init,
        )

    def steps(self, batch: int) -> int:
        """Batches of one epoch."""
        return count_batches(len(self._train), batch)

    def _read(self, features: Tensor, vectors: Tensor) -> Tensor:
        pooled = self.network.penultimate(features, vectors).float() - self._middle
        return self.network.classify(pooled, vectors)[:, 0]

    def losses(self, batch: int, rng: np.random.Generator) -> Iterator[Tensor]:
        """BCE on a random view of each row, and the penalty."""
        context = self._context
        for rows in batches(self._train, batch, rng):
            features, vectors = mixed(self._views, rows, rng)
            with torch.autocast(context.device.type, torch.bfloat16, enabled=context.quick):
                logits = self._read(features, vectors).float()
            pairs = zip(self.module.parameters(), self._start, strict=True)
            far = torch.stack([((now - start) ** 2).sum() for now, start in pairs]).sum()
            yield functional.binary_cross_entropy_with_logits(logits, context.labels(rows)) + self._l2_to_init * far

    def logits(self, rows: Rows) -> Array:
        """Logits (n,) of the plain view of rows."""
        features, vectors = self._views[0]
        with torch.no_grad():
            parts = [
                self._read(features[part].float(), vectors[part])
                for part in np.array_split(rows, max(len(rows) // 256, 1))
            ]
        return torch.cat(parts).double().cpu().numpy()

    def score(self, module: nn.Module) -> float:
        """AUPRC + AUC on the validation rows."""
        del module  # it is self.module
        return quality(self._context.data.labels[self._validate], self.logits(self._validate))

    def finish(self) -> None:
        """Write the weights in their plain form: the network then says by itself what it says here."""
        modulation, head = self.network.modulation, self.network.head
        if modulation is not None:
            for layer in (modulation.squeeze, modulation.expand):
                if parametrize.is_parametrized(layer):
                    parametrize.remove_parametrizations(layer, "weight")
        with torch.no_grad():
            head.bias.sub_(head.weight[:, : len(self._middle)] @ self._middle)
        self._middle = torch.zeros_like(self._middle)


def _mean(parts: Iterator[Tensor]) -> Tensor:
    """Mean over the rows of all parts."""
    return torch.cat([part.double() for part in parts]).mean(dim=0).float()


def start_tail(network: Network, mean: Tensor) -> None:
    """Let the modulation do nothing at first, and the head know nothing; weights are about the ``mean`` features (c,).

    The scale begins at one for a patient with every image: the first hidden unit counts the presence bits, which end
    the clinical vector. The others begin at random.
    """
    nn.init.zeros_(network.head.weight)
    modulation, channels = network.modulation, network.architecture.in_channels
    if modulation is None or not modulation.linear or modulation.expand.out_features != 2 * len(mean):
        return
    with torch.no_grad():
        squeeze, expand = modulation.squeeze.weight, modulation.expand.weight
        expand.mul_(0.1)
        expand[len(mean) :] -= mean[:, None] * expand[: len(mean)]
        expand[:, 0] = 0
        expand[: len(mean), 0] = 1
        if modulation.sees_features:
            squeeze[:, -channels:] -= (squeeze[:, : len(mean)] @ mean)[:, None] / channels
        squeeze[0] = 0
        squeeze[0, -channels:] = 1 / channels
    parametrize.register_parametrization(modulation.expand, "weight", CenteredScale(mean))
    if modulation.sees_features:
        parametrize.register_parametrization(modulation.squeeze, "weight", CenteredInput(mean, channels))
