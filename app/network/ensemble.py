"""The folds of one model version on one device.

Design notes:
- Batch normalisation is folded into the convolutions, and tensors are channels-last: the same numbers, faster.
- On CUDA the trunk runs under bfloat16 autocast, unless ``mixed`` is false. The tail is float32 everywhere, so that an
  explanation adds up to exactly the predicted number. It needs `forbid_tf32`: TF32 rounds like bfloat16.
- On CUDA the trunks hold their weights once more in bfloat16, because autocast would cast them again at every call.
- Another backend may compute the trunks (app/network/backends.py); torch computes gradients and the tail.
- One thread computes a small tail, because threads would wait for each other at each layer (docs/experiments.md).
- Folds that were trained on one frozen trunk share it: it is held in memory once and computed once for all of them.
- Only the first output is used; auxiliary outputs are for training.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from app.network.backends import Trunks
from app.network.conv import Convolution
from app.network.daft import Network
from app.network.tail_evaluator import TailEvaluator
from app.sdk.errors import ModelNotReady

SMALL_TAIL = 10**8  # most multiply-adds of one fold's tail that one thread computes


def forbid_tf32() -> None:
    """Make float32 exact on a GPU, in the whole process from now on; the program that owns the process calls this."""
    torch.backends.cudnn.allow_tf32 = False  # on by default for convolutions
    torch.backends.cuda.matmul.allow_tf32 = False


def select_device(wanted: str) -> torch.device:
    """Return the device; ``auto`` is CUDA if available, else the CPU.

    Raises:
        ModelNotReady: CUDA is wanted, but torch finds no device.
    """
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    elif wanted.startswith("cuda") and not torch.cuda.is_available():
        raise ModelNotReady("RLVO_DEVICE=cuda, but torch finds no CUDA device on this machine; use cpu or auto")
    return torch.device(wanted)


def fold_batch_norm(network: Network) -> Network:
    """Return a copy for inference, with each batch normalisation folded into the convolution before it."""
    return fold_batch_norm_in_place(copy.deepcopy(network))


@torch.no_grad()
def fold_batch_norm_in_place(network: Network) -> Network:
    """Change the network itself as ``fold_batch_norm`` changes the copy."""
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
                setattr(parent, conv, Convolution(layer))
    return network.requires_grad_(requires_grad=False)


def _equal(one: nn.Module, other: nn.Module) -> bool:
    """Whether two modules of one architecture have the same weights."""
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


class Ensemble:
    """The networks of all folds, prepared for inference.

    Attributes:
        folds: The networks; folds with equal trunks hold one trunk object.
        distinct: The folds whose trunks differ: the first fold of each group that shares a trunk.
        trunk_of: For each fold, the position of its trunk's fold in ``distinct``.

    Args:
        networks: One per fold, as trained (batch normalisation not folded in).
        in_place: Change ``networks`` instead of copying them, which shortens a load.
    """

    def __init__(self, networks: Sequence[Network], device: str = "cpu", *, in_place: bool = False) -> None:
        self.device = select_device(device)
        self.backend: Trunks | None = None
        self.mixed = self.device.type == "cuda"
        fold = fold_batch_norm_in_place if in_place else fold_batch_norm
        self.folds = [fold(network).to(self.device) for network in networks]
        for network in self.folds:
            for weight in network.parameters():
                if weight.dim() == 5:
                    weight.data = weight.data.contiguous(memory_format=torch.channels_last_3d)
        self.distinct: list[Network] = []
        self.trunk_of: list[int] = []
        for network in self.folds:
            same = [place for place, other in enumerate(self.distinct) if _equal(network.trunk, other.trunk)]
            if same:
                network.trunk = self.distinct[same[0]].trunk
            else:
                self.distinct.append(network)
            self.trunk_of.append(same[0] if same else len(self.distinct) - 1)

    @property
    def differentiable(self) -> bool:
        """Whether float32 torch computes ``features``, as it computes the gradients."""
        return self.device.type == "cpu" and self.backend is None

    def image(self, image: Tensor) -> Tensor:
        """Return one image (c, x, y, z) as a batch (1, c, x, y, z) on the device, channels last."""
        return image[None].to(self.device, torch.float32).contiguous(memory_format=torch.channels_last_3d)

    @torch.no_grad()
    def features(self, image: Tensor) -> list[Tensor]:
        """Compute each fold's trunk features (1, t, ., ., .) of one image (c, x, y, z)."""
        if self.backend is not None:
            computed = self.backend(image)
        elif self.mixed:
            batch = self.image(image).bfloat16()
            computed = [trunk(batch).float() for trunk in self._cast_trunks]
        else:
            computed = [self.trunk(fold, self.image(image)) for fold in self.distinct]
        return [computed[place] for place in self.trunk_of]

    @cached_property
    def _cast_trunks(self) -> list[nn.Module]:
        return [copy.deepcopy(fold.trunk).bfloat16() for fold in self.distinct]

    @property
    def cast_bytes(self) -> int:
        """Bytes of the weights that are held once more in bfloat16."""
        cast = self.__dict__.get("_cast_trunks", ())
        return sum(weight.nbytes for trunk in cast for weight in trunk.parameters())

    def trunk(self, fold: Network, batch: Tensor) -> Tensor:
        """Compute one fold's trunk features of a batch (n, c, x, y, z) in the device's precision; differentiable."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.mixed):
            features: Tensor = fold.trunk(batch)
        return features.float()

    def logits(self, features: Sequence[Tensor], clinical: Tensor) -> Tensor:
        """Compute logits (folds, n) of clinical vectors (n, v), for one patient's features."""
        return self.logits_and_features(features, clinical)[0]

    @torch.no_grad()
    def logits_and_features(self, features: Sequence[Tensor], clinical: Tensor) -> tuple[Tensor, Tensor]:
        """Compute logits (folds, n), and the pooled output of the last block, (n, 8 f), averaged over folds."""
        clinical = clinical.to(self.device, torch.float32)
        rows, pooled = [], []
        with self._limit_threads(len(clinical) * features[0][0, 0].numel()):
            for fold, own in zip(self.folds, features, strict=True):
                pooled.append(fold.penultimate(own.expand(len(clinical), -1, -1, -1, -1), clinical))
                rows.append(fold.classify(pooled[-1], clinical)[:, 0])
        return torch.stack(rows).cpu(), torch.stack(pooled).mean(dim=0).cpu()

    @torch.no_grad()
    def penultimates(self, features: Sequence[Tensor], clinical: Tensor) -> Tensor:
        """Compute each fold's pooled output of the last block, (folds, n, 8 f), as in ``logits_and_features``."""
        clinical = clinical.to(self.device, torch.float32)
        with self._limit_threads(len(clinical) * features[0][0, 0].numel()):
            pairs = zip(self.folds, features, strict=True)
            pooled = [fold.penultimate(own.expand(len(clinical), -1, -1, -1, -1), clinical) for fold, own in pairs]
        return torch.stack(pooled).cpu()

    def tails(self, features: Sequence[Tensor]) -> list[TailEvaluator]:
        """Prepare each fold's tail for many clinical vectors of one patient."""
        return [TailEvaluator(fold, own) for fold, own in zip(self.folds, features, strict=True)]

    @contextmanager
    def _limit_threads(self, voxels: int) -> Iterator[None]:
        """Use one thread, in the calling thread only, while a small tail is computed on ``voxels`` voxels."""
        weights = sum(weight.numel() for weight in self.folds[0].block.parameters() if weight.dim() == 5)
        usual, small = torch.get_num_threads(), self.device.type == "cpu" and weights * voxels <= SMALL_TAIL
        if small:
            torch.set_num_threads(1)
        try:
            yield
        finally:
            if small:
                torch.set_num_threads(usual)
