"""Pretrains the path that marks the clot: whether a cell has clot, whether that is calcified, and how dense it is.

Design notes:
- The clot fills a thousandth of the box, and a quarter of the clots are calcified. So the loss of the calcification is
  the mean over the cells with clot plus the mean over the cells without; in one mean over all cells nothing was learned
  (docs/experiments.md).
- The path is trained alone: the losses of ``pretraining.LessonTask`` hold far more, and drown these.
- Boxes are stored once, because they are a tenth of the images.
- Some heads keep only a part of their channels, most often the NCCT alone, which must mark the clot without a CTA.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from app.network.resnet import MARKED, MarkPath
from app.training.dataset import LATENTS, Bits
from app.training.tasks import Rows, TrainingContext, batches, count_batches, latent_loss
from app.training.trainer import Recipe
from app.training.transfer import to_device

CLOT_FULL, CLOT_POSITIVE = 0.06, 20.0
"""Share of a cell that the clot fills where it is whole in it; weight of the cells with clot."""
CALCIFIED_WEIGHT, SUMMARY_WEIGHT = 2.0, 2.0  # of the losses; those of clot and density have the weight 1
SUMMARY = {"truncal": 0.5, "intensity": 0.3, "tmax6_ml": 0.1, "core_ml": 0.1}  # weights of latents; others 1
PARTIAL_SHARE = 0.3  # of the heads: some channels missing
KEPT = (("ncct",), ("ncct",), ("ncct",), ("cta", "vessels"), ("ncct", "cta", "vessels"), ("ncct", "tmax", "rcbf"))
"""Channels that such a head may keep; one of these with equal chance."""

MARK_RECIPE = Recipe(epochs=6, batch=32, rate=5e-3, patience=6, decay=1e-3)


def cut_boxes(
    context: TrainingContext, box: tuple[slice, ...], advance: Callable[[int], None] = lambda _: None
) -> Tensor:
    """The box of every head as the network sees it, (n, c, x, y, z) float16."""
    parts = []
    for rows in np.array_split(np.arange(len(context.data)), max(len(context.data) // 64, 1)):
        parts.append(context.images(rows, context.data.presence[rows])[:, :, *box].half())
        advance(len(rows))
    return torch.cat(parts)


def clots_in(context: TrainingContext, rows: Rows, box: tuple[slice, ...]) -> Tensor | None:
    """How far the clot fills each cell of the box, from 0 to 1 (whole in it): (n, x/2, y/2, z/2); None if unknown."""
    clots = context.clots(rows)
    if clots is None:
        return None
    return (clots[:, *(slice(part.start // 2, part.stop // 2) for part in box)] / CLOT_FULL).clamp(0, 1)


def clot_loss(logits: Tensor, clots: Tensor) -> Tensor:
    """Cross-entropy of the logits (n, x, y, z) that clot is in a cell, with ``clots`` of ``clots_in``."""
    weight = logits.new_full((), CLOT_POSITIVE)
    return functional.binary_cross_entropy_with_logits(logits, clots, pos_weight=weight)


def marked_loss(signs: Tensor, clots: Tensor, latents: Tensor) -> Tensor:
    """Loss of the ``MARKED`` signs (n, 3, x, y, z).

    ``clots`` (n, x, y, z) are those of ``clots_in``, ``latents`` (n, k) as in ``LATENTS``.
    """
    calcified, density = (latents[:, LATENTS.index(name), None, None, None] for name in MARKED[1:])
    inside, outside = (clots > 0.5).float(), (clots == 0).float()
    each = functional.binary_cross_entropy_with_logits(signs[:, 1], clots * (calcified > 0), reduction="none")
    error = functional.smooth_l1_loss(signs[:, 2], density.expand_as(clots), reduction="none")
    return (
        clot_loss(signs[:, 0], clots)
        + CALCIFIED_WEIGHT * (_mean(each, inside) + _mean(each, outside))
        + _mean(error, inside)
    )


def _mean(values: Tensor, weights: Tensor) -> Tensor:
    return (values * weights).sum() / (weights.sum() + 1)


class MarkTask:
    """Training task: the marks of ``path`` on ``boxes`` of phantoms with known clots (``trainer.Task``).

    Raises:
        ValueError: The place of the clots is not known.
    """

    def __init__(
        self,
        path: MarkPath,
        context: TrainingContext,
        boxes: Tensor,
        box: tuple[slice, ...],
        train: Rows,
        validate: Rows,
        advance: Callable[[int], None] = lambda _: None,
    ) -> None:
        parts = np.array_split(np.arange(len(context.data)), max(len(context.data) // 64, 1))
        clots = [known for rows in parts if (known := clots_in(context, rows, box)) is not None]
        if not clots:
            raise ValueError("the marks need phantoms whose clots are known")
        self._clots = torch.cat(clots)
        outputs = path.marks.sums.out_channels
        head = nn.Sequential(nn.BatchNorm1d(outputs), nn.Linear(outputs, len(LATENTS)))
        self.module = nn.ModuleDict({"path": path, "head": head}).to(context.device)
        self._context, self._boxes, self._train, self._validate = context, boxes, train, validate
        self._advance = advance

    def steps(self, batch: int) -> int:
        """Number of batches in one epoch."""
        return count_batches(len(self._train), batch)

    def _predict(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The signs (n, 3, x, y, z) of the cells, and the latents (n, k) from the summed marks."""
        path = self.module["path"]
        assert isinstance(path, MarkPath)
        marks = path.marks
        signs = marks.signs(torch.relu(marks.hidden(path.block1(path.stem(images)))))
        return signs, self.module["head"](torch.relu(marks.sums(signs)).mean(dim=(2, 3, 4)))

    def _drawn(self, count: int, rng: np.random.Generator) -> Bits:
        """Channels (n, c) that each head of a batch keeps."""
        kept = np.array([[channel in names for channel in self._context.channels] for names in KEPT])
        partial = rng.random(count) < PARTIAL_SHARE
        drawn: NDArray[np.bool_] = np.where(partial[:, None], kept[rng.integers(len(kept), size=count)], True)
        return drawn

    def losses(self, batch: int, rng: np.random.Generator) -> Iterator[Tensor]:
        """Loss of the signs, and weighted squared error of the latents."""
        for rows in batches(self._train, batch, rng):
            present = to_device(self._drawn(len(rows), rng), self._context.device)
            places = to_device(rows, self._context.device)
            images = self._boxes[places].float() * present[:, :, None, None, None]
            latents = self._context.latents(rows)
            signs, summary = self._predict(images.contiguous(memory_format=torch.channels_last_3d))
            weights = to_device(np.array([SUMMARY.get(name, 1.0) for name in LATENTS], np.float32), latents.device)
            loss = marked_loss(signs, self._clots[places], latents)
            yield loss + SUMMARY_WEIGHT * latent_loss(summary, latents, weights)
            self._advance(1)

    @torch.no_grad()
    def score(self, module: nn.Module) -> float:
        """Negative loss of the signs on the validation rows, on all channels and on the NCCT alone equally."""
        del module  # it is self.module
        losses = []
        for rows in np.array_split(self._validate, max(len(self._validate) // 64, 1)):
            images, latents = self._boxes[rows].float().to(self._context.device), self._context.latents(rows)
            for names in (self._context.channels, KEPT[0]):
                present = torch.tensor([channel in names for channel in self._context.channels])
                seen = images * present.to(images)[:, None, None, None]
                losses.append(float(marked_loss(self._predict(seen)[0], self._clots[rows], latents)))
        return -float(np.mean(losses))
