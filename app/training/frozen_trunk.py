"""Trains modulation and head on stored features of a frozen trunk and last block.

Design notes:
- Only some hundred weights are trained. An L2 penalty keeps them near a start where the modulation changes nothing and
  the head predicts the prior.
- Pooled features have a large mean and a small spread. Scaling them mostly shifts them, which hides the product of
  image and record that DAFT learns. So the weights are parametrised about the mean features; ``finish`` undoes this.
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
from app.training import tasks
from app.training.tasks import Rows, TrainingContext, Views


class CenteredInput(nn.Module):
    """Weights of a layer without bias over [pooled features, record], parametrised about the ``mean`` features (c,).

    The offset goes into the last columns, whose inputs are the presence bits.
    """

    def __init__(self, mean: Tensor, channels: int) -> None:
        super().__init__()
        self.mean, self.channels = mean, channels

    def _shifted(self, weight: Tensor, sign: int) -> Tensor:
        offset = sign * (weight[:, : len(self.mean)] @ self.mean)[:, None] / self.channels
        return torch.cat([weight[:, : -self.channels], weight[:, -self.channels :] + offset], dim=1)

    def forward(self, free: Tensor) -> Tensor:
        return self._shifted(free, -1)

    def right_inverse(self, weight: Tensor) -> Tensor:
        return self._shifted(weight, 1)


class CenteredScale(nn.Module):
    """Weights (2 c, hidden) of [scale, shift]; the scale acts on the deviation from the ``mean`` features (c,)."""

    def __init__(self, mean: Tensor) -> None:
        super().__init__()
        self.mean = mean

    def _shifted(self, weight: Tensor, sign: int) -> Tensor:
        scale, shift = weight.chunk(2)
        return torch.cat([scale, shift + sign * self.mean[:, None] * scale])

    def forward(self, free: Tensor) -> Tensor:
        return self._shifted(free, -1)

    def right_inverse(self, weight: Tensor) -> Tensor:
        return self._shifted(weight, 1)


class TailOnly:
    """Training task: modulation and head on stored features (``trainer.Task``).

    ``views``: features (n, 4 f, x, y, z) float16 and clinical vectors (n, v) of all rows; the first view is plain.
    ``l2_to_init``: penalty on the squared distance of the weights from their start.
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
        tasks.start_from_prior(network, context.data.labels[train])
        pairs = zip(torch.split(features, 256), torch.split(vectors, 256), strict=True)
        with torch.no_grad():
            self._penultimate_mean = _mean(network.penultimate(part.float(), record) for part, record in pairs)
        parts = {name: part for name, part in network.named_children() if name not in ("trunk", "block")}
        self.module = nn.ModuleDict(parts)
        self._start = [parameter.detach().clone() for parameter in self.module.parameters()]
        self._context, self._views, self._l2_to_init = context, views, l2_to_init
        self._train, self._validate = train, validate

    def steps(self, batch: int) -> int:
        """Number of batches in one epoch."""
        return tasks.count_batches(len(self._train), batch)

    def _logits(self, features: Tensor, vectors: Tensor) -> Tensor:
        pooled = self.network.penultimate(features, vectors).float() - self._penultimate_mean
        return self.network.classify(pooled, vectors)[:, 0]

    def losses(self, batch: int, rng: np.random.Generator) -> Iterator[Tensor]:
        """Binary cross-entropy on a random view of each row, plus the penalty."""
        context = self._context
        for rows in tasks.batches(self._train, batch, rng):
            features, vectors = tasks.mix_views(self._views, rows, rng)
            with torch.autocast(context.device.type, torch.bfloat16, enabled=context.use_bfloat16):
                logits = self._logits(features, vectors).float()
            pairs = zip(self.module.parameters(), self._start, strict=True)
            distance = torch.stack([((value - start) ** 2).sum() for value, start in pairs]).sum()
            loss = functional.binary_cross_entropy_with_logits(logits, context.labels(rows))
            yield loss + self._l2_to_init * distance

    def logits(self, rows: Rows) -> Array:
        """Logits (n,) of ``rows`` on the view that is not augmented."""
        features, vectors = self._views[0]
        with torch.no_grad():
            parts = [
                self._logits(features[part].float(), vectors[part])
                for part in np.array_split(rows, max(len(rows) // 256, 1))
            ]
        return torch.cat(parts).double().cpu().numpy()

    def score(self, module: nn.Module) -> float:
        """AUPRC + AUC on the validation rows."""
        del module  # it is self.module
        return tasks.auprc_plus_auc(self._context.data.labels[self._validate], self.logits(self._validate))

    def finish(self) -> None:
        """Remove the parametrisation; the network then gives the same logits without this task."""
        modulation, head = self.network.modulation, self.network.head
        if modulation is not None:
            for layer in (modulation.squeeze, modulation.expand):
                if parametrize.is_parametrized(layer):
                    parametrize.remove_parametrizations(layer, "weight")
        with torch.no_grad():
            head.bias.sub_(head.weight[:, : len(self._penultimate_mean)] @ self._penultimate_mean)
        self._penultimate_mean = torch.zeros_like(self._penultimate_mean)


def _mean(parts: Iterator[Tensor]) -> Tensor:
    """Mean over the rows of all parts."""
    return torch.cat([part.double() for part in parts]).mean(dim=0).float()


def start_tail(network: Network, mean: Tensor) -> None:
    """Initialise modulation and head, and parametrise the modulation about the ``mean`` features (c,).

    The head starts at zero. The scale starts at one for a patient with all images: the first hidden unit is the mean of
    the presence bits, which are the last entries of the clinical vector. The other hidden units start at random.
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
