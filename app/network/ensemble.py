"""The folds of one model version on one device.

Notable choices:
- Batch normalisation is folded into the convolutions, and tensors are channels-last: the same numbers, faster.
- On CUDA the trunk runs under bf16 autocast; the tail is float32 everywhere, so that an explanation, which asks the
  tail hundreds of questions, adds up to the very number that was predicted.
- The trunks may be computed by another backend (app/network/backends); gradients and the tail are torch's.
- Only the first output is used; auxiliary outputs, if any, serve training.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from app.network.backends import Trunks
from app.network.coalitions import PatientTail
from app.network.daft import Network
from app.network.fused import Convolution


def pick_device(wanted: str) -> torch.device:
    """``auto`` is CUDA where there is one, else the CPU."""
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(wanted)


def folded(network: Network) -> Network:
    """A copy for inference, each batch normalisation folded into the convolution before it."""
    network = copy.deepcopy(network).eval()
    for parent in list(network.modules()):
        for conv, norm in (("conv", "norm"), ("conv1", "norm1"), ("conv2", "norm2")):
            if isinstance(getattr(parent, norm, None), nn.BatchNorm3d):
                setattr(parent, conv, fuse_conv_bn_eval(getattr(parent, conv), getattr(parent, norm)))
                setattr(parent, norm, nn.Identity())
            if isinstance(layer := getattr(parent, conv, None), nn.Conv3d):
                setattr(parent, conv, Convolution.of(layer))
    return network.requires_grad_(requires_grad=False)


class Ensemble:
    """Folds that answer together.

    :param networks: one per fold, as trained (not folded)
    """

    def __init__(self, networks: Sequence[Network], device: str = "cpu") -> None:
        self.device = pick_device(device)
        self.backend: Trunks | None = None
        self.folds = [folded(network).to(self.device) for network in networks]
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

    @torch.no_grad()
    def logits(self, features: Sequence[Tensor], clinical: Tensor) -> Tensor:
        """(folds, n) logits of clinical vectors (n, v), for one patient's features."""
        clinical = clinical.to(self.device, torch.float32)
        rows = [fold.tail(seen.expand(len(clinical), -1, -1, -1, -1), clinical)[:, 0]
                for fold, seen in zip(self.folds, features, strict=True)]  # fmt: skip
        return torch.stack(rows).cpu()

    @torch.no_grad()
    def penultimate(self, features: Sequence[Tensor], clinical: Tensor) -> Tensor:
        """The last block's pooled output, (8 f,), averaged over folds, for one clinical vector (1, v)."""
        clinical = clinical.to(self.device, torch.float32)
        seen = [fold.penultimate(x, clinical)[0] for fold, x in zip(self.folds, features, strict=True)]
        return torch.stack(seen).mean(dim=0).cpu()

    def tails(self, features: Sequence[Tensor]) -> list[PatientTail]:
        """Each fold's tail, prepared for many clinical vectors of one patient."""
        return [PatientTail(fold, seen) for fold, seen in zip(self.folds, features, strict=True)]
