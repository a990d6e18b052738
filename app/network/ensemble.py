"""The folds of one model version on one device.

Notable choices:
- Batch normalisation is folded into the convolutions, and tensors are channels-last: the same numbers, faster.
- On CUDA the trunk runs under bf16 autocast; the tail is float32 everywhere, so that an explanation, which asks the
  tail hundreds of questions, adds up to the very number that was predicted.
- The trunks may be computed by another backend (app/network/backends); gradients and the tail are torch's.
- A small tail is computed in one thread: of two, on cores that a backend's own threads have just used, one waits for
  the other at each of its dozen layers (docs/experiments.md).
- Only the first output is used; auxiliary outputs, if any, serve training.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from app.network.backends import Trunks
from app.network.conv import Convolution
from app.network.daft import Network
from app.network.tail_evaluator import TailEvaluator

SMALL = 10**8
"""Multiply-adds of one fold's tail up to which one thread computes it."""


def pick_device(wanted: str) -> torch.device:
    """``auto`` is CUDA where there is one, else the CPU."""
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(wanted)


def folded(network: Network) -> Network:
    """A copy for inference, each batch normalisation folded into the convolution before it."""
    return fold_in(copy.deepcopy(network))


@torch.no_grad()
def fold_in(network: Network) -> Network:
    """The network itself, changed so."""
    for parent in list(network.eval().modules()):
        for conv, norm in (("conv", "norm"), ("conv1", "norm1"), ("conv2", "norm2")):
            if isinstance(layer := getattr(parent, conv, None), nn.Conv3d):
                if isinstance(after := getattr(parent, norm, None), nn.BatchNorm3d):
                    assert after.running_mean is not None
                    assert after.running_var is not None
                    layer.weight, layer.bias = fuse_conv_bn_weights(
                        layer.weight,
                        layer.bias,
                        after.running_mean,
                        after.running_var,
                        after.eps,
                        after.weight,
                        after.bias,
                    )
                    setattr(parent, norm, nn.Identity())
                setattr(parent, conv, Convolution.of(layer))
    return network.requires_grad_(requires_grad=False)


class Ensemble:
    """Folds that answer together.

    :param networks: one per fold, as trained (not folded)
    :param ours: whether they may be changed; to copy them first is a quarter of a load
    """

    def __init__(self, networks: Sequence[Network], device: str = "cpu", *, ours: bool = False) -> None:
        self.device = pick_device(device)
        self.backend: Trunks | None = None
        self.folds = [(fold_in if ours else folded)(network).to(self.device) for network in networks]
        for fold in self.folds:
            for weight in fold.parameters():
                if weight.dim() == 5:
                    weight.data = weight.data.contiguous(memory_format=torch.channels_last_3d)

    @property
    def differentiable(self) -> bool:
        """Whether ``features`` come from the float32 torch that also gives the gradients."""
        return self.device.type == "cpu" and self.backend is None

    def image(self, image: Tensor) -> Tensor:
        """One image (c, x, y, z) as a batch on the device, channels last."""
        return image[None].to(self.device, torch.float32).contiguous(memory_format=torch.channels_last_3d)

    @torch.no_grad()
    def features(self, image: Tensor) -> list[Tensor]:
        """Each fold's trunk features (1, 4 f, ., ., .) of one image (c, x, y, z)."""
        if self.backend is not None:
            return self.backend(image)
        return [self.trunk(fold, self.image(image)) for fold in self.folds]

    def trunk(self, fold: Network, batch: Tensor) -> Tensor:
        """One fold's trunk under the device's precision; differentiable."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            features: Tensor = fold.trunk(batch)
        return features.float()

    def logits(self, features: Sequence[Tensor], clinical: Tensor) -> Tensor:
        """(folds, n) logits of clinical vectors (n, v), for one patient's features."""
        return self.ending(features, clinical)[0]

    @torch.no_grad()
    def ending(self, features: Sequence[Tensor], clinical: Tensor) -> tuple[Tensor, Tensor]:
        """The same, and the last block's pooled output, (n, 8 f), averaged over folds."""
        clinical = clinical.to(self.device, torch.float32)
        rows, pooled = [], []
        with self._threads_for(len(clinical) * features[0][0, 0].numel()):
            for fold, seen in zip(self.folds, features, strict=True):
                pooled.append(fold.penultimate(seen.expand(len(clinical), -1, -1, -1, -1), clinical))
                rows.append(fold.classify(pooled[-1], clinical)[:, 0])
        return torch.stack(rows).cpu(), torch.stack(pooled).mean(dim=0).cpu()

    def tails(self, features: Sequence[Tensor]) -> list[TailEvaluator]:
        """Each fold's tail, prepared for many clinical vectors of one patient."""
        return [TailEvaluator(fold, seen) for fold, seen in zip(self.folds, features, strict=True)]

    @contextmanager
    def _threads_for(self, voxels: int) -> Iterator[None]:
        """One thread, for whoever calls this alone, while a small tail is computed on so many voxels."""
        weights = sum(weight.numel() for weight in self.folds[0].block.parameters() if weight.dim() == 5)
        usual, small = torch.get_num_threads(), self.device.type == "cpu" and weights * voxels <= SMALL
        if small:
            torch.set_num_threads(1)
        try:
            yield
        finally:
            if small:
                torch.set_num_threads(usual)
