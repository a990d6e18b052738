"""Who answers for a version: its folds, whatever they are, asked the same four questions.

Notable choices:
- ``NetworkFolds`` and ``LogisticFolds`` are told apart when a version is loaded, and never again.
- Arrays of numpy go in and out; only this room and training hold tensors.
- Images and clinical side are asked separately (``value_function``), because an explanation asks about hundreds of clinical
  vectors of one patient, with the images and without them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from app.inference.attribution import deeplift
from app.inference.attribution.integrated_gradients import FINE_STEPS, modality_shares_exact, path_gradients, smooth
from app.network.backends import Backend, Precision, pick
from app.network.ensemble import Ensemble
from app.network.tail_evaluator import TailEvaluator

Array = NDArray[np.float64]
Image = NDArray[np.float32]  # (c, x, y, z)
Vector = NDArray[np.float32]  # (v,)

# Mean logits (n,) of clinical vectors (n, v), each with the images or without: (n,) bool.
ValueFunction = Callable[[NDArray[np.float32], NDArray[np.bool_]], Array]


class VoxelRule(StrEnum):
    """How voxels get their shares: by the rescale rule, or by integrated gradients."""

    RESCALE = "rescale"
    GRADIENTS = "integrated-gradients"


class ModalityRule(StrEnum):
    """How imaging's value is shared among modalities: by the sums of their maps, or over every subset of them."""

    MAPS = "maps"
    EXACT = "exact"


@dataclass(frozen=True)
class ExplanationMethod:
    """How an explanation is computed: quick by default, finer on request.

    ``steps``: of the integrated gradients. ``budget``: most evaluations of the clinical game; beyond it, orders of
    entry take the place of every coalition, at least one for each background patient.
    """

    maps: VoxelRule = VoxelRule.RESCALE
    modalities: ModalityRule = ModalityRule.MAPS
    steps: int = FINE_STEPS
    budget: int = 768


EXACT_METHOD = ExplanationMethod(VoxelRule.GRADIENTS, ModalityRule.EXACT, budget=16384)
"""What ``explain=exact`` asks for."""


@dataclass(frozen=True)
class ImageShares:
    """Raw shares of the mean logit: (c,) of the channels, and (c, x, y, z) of their voxels, where there are any.

    ``value_function``: where the trunk's features came along, who answers for them without another pass.
    """

    channels: Array
    voxels: torch.Tensor | None
    value_function: ValueFunction | None = None


class EnsembleOutput(NamedTuple):
    """Each fold's logit, (folds,), and the features that the out-of-distribution statistics describe, where wanted."""

    logits: Array
    penultimate: Array | None


class EnsemblePredictor(Protocol):
    """The folds of one version. ``precision``: of what depends on the device; ``bytes``: of the weights."""

    @property
    def precision(self) -> Precision: ...

    @property
    def bytes(self) -> int: ...

    def logits(self, image: Image, clinical: Vector, /) -> Array:
        """Each fold's logit, (folds,), for one patient."""

    def answer(self, image: Image, clinical: Vector, /, *, watch: bool = False) -> EnsembleOutput:
        """The same, and with ``watch`` the features that lead to it; the images are looked at once."""

    def warm_up(self) -> None:
        """Have paid now what the first case would pay."""

    def value_function(self, image: Image, /) -> ValueFunction:
        """Mean logits for many clinical vectors of one patient."""

    def image_shares(
        self, image: Image, clinical: Vector, bits: slice, present: Sequence[int], method: ExplanationMethod, /
    ) -> ImageShares:
        """Where imaging's part of the mean logit comes from. ``bits``: the presence bits in ``clinical``."""


class NetworkFolds:
    """Folds that are networks.

    :param shape: of the images, (c, x, y, z)
    """

    def __init__(self, ensemble: Ensemble, shape: tuple[int, int, int, int]) -> None:
        self.ensemble = ensemble
        self.shape = shape
        self.precision = Precision.BFLOAT16 if ensemble.device.type == "cuda" else Precision.FLOAT32

    @property
    def bytes(self) -> int:
        """A backend holds the trunks' weights once more."""
        folds = self.ensemble.folds
        held = [*folds, *(fold.trunk for fold in folds if self.ensemble.backend is not None)]
        return sum(weight.nbytes for part in held for weight in part.parameters())

    def run_on(self, backend: Backend, precision: Precision) -> None:
        """Has the trunks computed by a backend from now on. Raises ModelNotReady where it cannot be had."""
        ensemble = self.ensemble
        ensemble.backend = pick(backend, ensemble.device, ensemble.folds, self.shape, precision)
        if ensemble.backend is not None:
            self.precision = precision

    def logits(self, image: Image, clinical: Vector, /) -> Array:
        return self.answer(image, clinical).logits

    def answer(self, image: Image, clinical: Vector, /, *, watch: bool = False) -> EnsembleOutput:
        features, vector = self.ensemble.features(torch.from_numpy(image)), torch.from_numpy(clinical)[None]
        logits, pooled = self.ensemble.ending(features, vector)
        return EnsembleOutput(logits[:, 0].double().numpy(), pooled[0].double().numpy() if watch else None)

    @cached_property
    def _without(self) -> list[TailEvaluator]:
        """The tails of a patient without images: the same for everybody, so prepared once."""
        return self.ensemble.tails(self.ensemble.features(torch.zeros(self.shape)))

    @cached_property
    def _absence(self) -> list[deeplift.AbsentImage]:
        """What the folds see of no image, for the rescale rule: the same for everybody too."""
        blank = self.ensemble.image(torch.zeros(self.shape))
        return [deeplift.absent_image(fold, blank) for fold in self.ensemble.folds]

    def warm_up(self) -> None:
        nobody = np.zeros((2, self.ensemble.folds[0].architecture.clinical_size), np.float32)
        self._asker(self._without)(nobody, np.asarray([True, False]))

    def value_function(self, image: Image, /) -> ValueFunction:
        return self._asker(self.ensemble.tails(self.ensemble.features(torch.from_numpy(image))))

    def _asker(self, tails: Sequence[TailEvaluator]) -> ValueFunction:
        def ask(clinical: NDArray[np.float32], imaging: NDArray[np.bool_], /) -> Array:
            found = np.empty(len(clinical))
            for with_images, asked in ((True, tails), (False, self._without)):
                rows = imaging == with_images
                if rows.any():
                    vectors = torch.from_numpy(clinical[rows]).to(self.ensemble.device)
                    each = torch.stack([tail.logits(vectors)[:, 0] for tail in asked])
                    found[rows] = each.double().mean(dim=0).cpu().numpy()
            return found

        return ask

    def image_shares(
        self, image: Image, clinical: Vector, bits: slice, present: Sequence[int], method: ExplanationMethod, /
    ) -> ImageShares:
        picture, vector = torch.from_numpy(image), torch.from_numpy(clinical)
        features: list[torch.Tensor] = []
        if method.maps is VoxelRule.GRADIENTS:
            by_voxel, by_bit = path_gradients(self.ensemble, picture, vector, bits, steps=method.steps)
        else:
            by_voxel, by_bit, features = self._rescaled(picture, vector, bits)
        channels = (by_voxel.double().sum(dim=(1, 2, 3)) + by_bit.double()).numpy()
        if method.modalities is ModalityRule.EXACT:
            channels[list(present)] = modality_shares_exact(self.ensemble, picture, vector, bits, present)
        # An explanation adds up to what was predicted, so it may only ask about the very features of the prediction.
        same = features and self.ensemble.differentiable
        value_function = self._asker(self.ensemble.tails(features)) if same else None
        return ImageShares(channels, smooth(by_voxel), value_function)

    def _rescaled(
        self, image: torch.Tensor, clinical: torch.Tensor, bits: slice
    ) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
        """Mean shares, over the folds, of the voxels (c, x, y, z) and the presence bits (c,); each fold's features."""
        batch, vector = self.ensemble.image(image), clinical.to(self.ensemble.device, torch.float32)[None]
        slopes, by_bit, features = torch.zeros_like(batch), torch.zeros_like(vector[0, bits]), []
        for found in deeplift.passes(self.ensemble.folds, self._absence, batch, vector, bits):
            slopes += found.voxels
            by_bit += found.bits
            features.append(found.features)
        count = len(self.ensemble.folds)
        return (slopes * batch / count)[0].cpu(), (by_bit * vector[0, bits] / count).cpu(), features


class LogisticFolds:
    """Folds that are logistic regressions on the clinical vector, presence bits included.

    :param coefficients: (folds, v)
    :param intercepts: (folds,)
    """

    def __init__(self, coefficients: Array, intercepts: Array) -> None:
        self.coefficients = coefficients
        self.intercepts = intercepts
        self.precision = Precision.FLOAT32

    @property
    def bytes(self) -> int:
        return self.coefficients.nbytes + self.intercepts.nbytes

    def logits(self, _image: Image, clinical: Vector, /) -> Array:
        found: Array = self.coefficients @ clinical.astype(np.float64) + self.intercepts
        return found

    def answer(self, image: Image, clinical: Vector, /, *, watch: bool = False) -> EnsembleOutput:  # noqa: ARG002
        """There is no layer before the last, and nothing to watch."""
        return EnsembleOutput(self.logits(image, clinical), None)

    def warm_up(self) -> None:
        """Nothing is computed that takes time."""

    def value_function(self, _image: Image, /) -> ValueFunction:
        def ask(clinical: NDArray[np.float32], _imaging: NDArray[np.bool_], /) -> Array:
            found: Array = clinical.astype(np.float64) @ self.coefficients.mean(axis=0) + self.intercepts.mean()
            return found

        return ask

    def image_shares(
        self, _image: Image, clinical: Vector, bits: slice, _present: Sequence[int], _method: ExplanationMethod, /
    ) -> ImageShares:
        return ImageShares(self.coefficients.mean(axis=0)[bits] * clinical[bits], None)
