"""Ensemble of the folds of one model version: logits, features, value function and image attribution.

Design notes:
- ``NetworkFolds`` and ``LogisticFolds`` have one interface. Only the load of a version distinguishes them.
- Inputs and outputs are numpy arrays; only this module, app/network and training use tensors.
- A value function keeps the features of one patient's images, because an explanation evaluates hundreds of clinical
  vectors with the images and without them.
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
from app.inference.attribution.integrated_gradients import DEFAULT_STEPS, exact_modality_shares, integrated_gradients
from app.network.backends import Backend, Precision, select_backend
from app.network.ensemble import Ensemble
from app.network.tail_evaluator import TailEvaluator

Array = NDArray[np.float64]
Image = NDArray[np.float32]  # (c, x, y, z)
Vector = NDArray[np.float32]  # (v,)

# Mean logits (n,) of clinical vectors (n, v); (n,) bool: whether the images are present.
ValueFunction = Callable[[NDArray[np.float32], NDArray[np.bool_]], Array]


class VoxelRule(StrEnum):
    """Method of the voxel maps."""

    RESCALE = "rescale"
    GRADIENTS = "integrated-gradients"


class ModalityRule(StrEnum):
    """Method of the modalities' shares: sums of their maps, or exact Shapley values over every subset."""

    MAPS = "maps"
    EXACT = "exact"


@dataclass(frozen=True)
class ExplanationMethod:
    """How an explanation is computed; the default is the fast method.

    ``steps`` are the quadrature nodes of integrated gradients. ``budget`` is the largest number of evaluations of the
    clinical game; if all coalitions need more, permutations are sampled.
    """

    maps: VoxelRule = VoxelRule.RESCALE
    modalities: ModalityRule = ModalityRule.MAPS
    steps: int = DEFAULT_STEPS
    budget: int = 768


EXACT_METHOD = ExplanationMethod(VoxelRule.GRADIENTS, ModalityRule.EXACT, budget=16384)
"""The method of ``explain=exact``."""


@dataclass(frozen=True)
class ImageShares:
    """Raw shares of the mean logit: channels (c,) and voxels (c, x, y, z), not smoothed; voxels only from networks.

    ``value_function`` is that of the same images, if their features are known.
    """

    channels: Array
    voxels: torch.Tensor | None
    value_function: ValueFunction | None = None


class EnsembleOutput(NamedTuple):
    """Each fold's logit, (folds,), and, if requested, the mean pooled features (8 f,) of the last block."""

    logits: Array
    penultimate: Array | None


class EnsemblePredictor(Protocol):
    """The folds of one version; ``precision`` is that of the trunks, ``bytes`` the memory that they keep."""

    @property
    def precision(self) -> Precision: ...

    @property
    def bytes(self) -> int: ...

    def logits(self, image: Image, clinical: Vector, /) -> Array:
        """Compute each fold's logit, (folds,), for one patient."""

    def predict(self, image: Image, clinical: Vector, /, *, with_features: bool = False) -> EnsembleOutput:
        """Compute the logits and, with ``with_features``, the pooled features, in one pass over the images."""

    def head_inputs(self, image: Image, clinical: Vector, /) -> Array:
        """Compute what each fold's last linear layer reads, (folds, c), for one patient."""

    def warm_up(self) -> None:
        """Do the one-time work now, so that the first prediction is not slower."""

    def warm_up_explanation(self) -> None:
        """Do the one-time work of an explanation, which a swap of versions leaves out."""

    def value_function(self, image: Image, /) -> ValueFunction:
        """Prepare mean logits of many clinical vectors of one patient."""

    def image_shares(
        self, image: Image, clinical: Vector, bits: slice, present: Sequence[int], method: ExplanationMethod, /
    ) -> ImageShares:
        """Share imaging's part of the mean logit among channels and voxels.

        ``bits`` are the positions of the presence bits in ``clinical``; ``present`` are the present channels.
        """


class NetworkFolds:
    """Folds that are networks, for images of ``shape`` (c, x, y, z)."""

    def __init__(self, ensemble: Ensemble, shape: tuple[int, int, int, int]) -> None:
        self.ensemble = ensemble
        self.shape = shape
        self.precision = Precision.BFLOAT16 if ensemble.device.type == "cuda" else Precision.FLOAT32

    @property
    def bytes(self) -> int:
        """Weights, those that a backend or bfloat16 holds once more, and activations and tails without images.

        A trunk that folds share counts once.
        """
        ensemble = self.ensemble
        weights = {id(weight): weight.nbytes for fold in ensemble.folds for weight in fold.parameters()}
        trunks = sum(weight.nbytes for fold in ensemble.distinct for weight in fold.trunk.parameters())
        held = sum(weights.values()) + (trunks if ensemble.backend is not None else 0) + ensemble.cast_bytes
        kept: list[deeplift.BaselineActivations] = self.__dict__.get("_baselines", [])
        maps = sum(tensor.nbytes for each in kept for tensor in (*each.rectifier_inputs, each.features))
        tails: list[TailEvaluator] = self.__dict__.get("_tails_without_images", [])
        return held + maps + sum(tail.bytes for tail in tails)

    def run_on(self, backend: Backend, precision: Precision | None = None) -> None:
        """Compute the trunks with a backend, in a precision, from now on; None is the precision of the device.

        Raises:
            ModelNotReady: The backend is not available on this device.
        """
        ensemble, precision = self.ensemble, precision or self.precision
        ensemble.backend = select_backend(backend, ensemble.device, ensemble.distinct, self.shape, precision)
        if ensemble.device.type == "cuda":
            ensemble.mixed = precision is Precision.BFLOAT16
        if ensemble.device.type == "cuda" or ensemble.backend is not None:
            self.precision = precision

    def logits(self, image: Image, clinical: Vector, /) -> Array:
        return self.predict(image, clinical).logits

    def predict(self, image: Image, clinical: Vector, /, *, with_features: bool = False) -> EnsembleOutput:
        features, vector = self.ensemble.features(torch.from_numpy(image)), torch.from_numpy(clinical)[None]
        logits, pooled = self.ensemble.logits_and_features(features, vector)
        return EnsembleOutput(logits[:, 0].double().numpy(), pooled[0].double().numpy() if with_features else None)

    def head_inputs(self, image: Image, clinical: Vector, /) -> Array:
        features, vector = self.ensemble.features(torch.from_numpy(image)), torch.from_numpy(clinical)[None]
        return np.asarray(self.ensemble.penultimates(features, vector)[:, 0].double().numpy())

    @cached_property
    def _tails_without_images(self) -> list[TailEvaluator]:
        """The tails of a patient without images; the same for all patients, so prepared once."""
        return self.ensemble.tails(self.ensemble.features(torch.zeros(self.shape)))

    @cached_property
    def _baselines(self) -> list[deeplift.BaselineActivations]:
        """Each distinct trunk's activations without images, for the rescale rule; the same for all patients."""
        blank = self.ensemble.image(torch.zeros(self.shape))
        return [deeplift.baseline_activations(fold, blank) for fold in self.ensemble.distinct]

    def warm_up(self) -> None:
        blank = np.zeros((2, self.ensemble.folds[0].architecture.clinical_size), np.float32)
        self._value_function(self._tails_without_images)(blank, np.asarray([True, False]))
        if self.ensemble.device.type != "cpu":  # the first use of each kernel on a GPU takes seconds
            self.warm_up_explanation()

    def warm_up_explanation(self) -> None:
        image, bits = np.zeros(self.shape, np.float32), slice(0, self.shape[0])
        blank = np.zeros(self.ensemble.folds[0].architecture.clinical_size, np.float32)
        self.image_shares(image, blank, bits, range(self.shape[0]), ExplanationMethod())

    def value_function(self, image: Image, /) -> ValueFunction:
        return self._value_function(self.ensemble.tails(self.ensemble.features(torch.from_numpy(image))))

    def _value_function(self, tails: Sequence[TailEvaluator]) -> ValueFunction:
        def mean_logits(clinical: NDArray[np.float32], imaging: NDArray[np.bool_], /) -> Array:
            means = np.empty(len(clinical))
            for with_images, evaluators in ((True, tails), (False, self._tails_without_images)):
                rows = imaging == with_images
                if rows.any():
                    vectors = torch.from_numpy(clinical[rows]).to(self.ensemble.device)
                    by_fold = torch.stack([tail.logits(vectors)[:, 0] for tail in evaluators])
                    means[rows] = by_fold.double().mean(dim=0).cpu().numpy()
            return means

        return mean_logits

    def image_shares(
        self, image: Image, clinical: Vector, bits: slice, present: Sequence[int], method: ExplanationMethod, /
    ) -> ImageShares:
        volume, vector = torch.from_numpy(image), torch.from_numpy(clinical)
        features: list[torch.Tensor] = []
        if method.maps is VoxelRule.GRADIENTS:
            by_voxel, by_bit = integrated_gradients(self.ensemble, volume, vector, bits, steps=method.steps)
        else:
            by_voxel, by_bit, features = self._rescaled(volume, vector, bits)
        channels = (by_voxel.double().sum(dim=(1, 2, 3)) + by_bit.double()).numpy()
        if method.modalities is ModalityRule.EXACT:
            channels[list(present)] = exact_modality_shares(self.ensemble, volume, vector, bits, present)
        # An explanation must add up to the prediction, so it may reuse only features that equal the prediction's.
        reusable = features and self.ensemble.differentiable
        value_function = self._value_function(self.ensemble.tails(features)) if reusable else None
        return ImageShares(channels, by_voxel, value_function)

    def _rescaled(
        self, image: torch.Tensor, clinical: torch.Tensor, bits: slice
    ) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
        """Return mean shares of the voxels (c, x, y, z) and the presence bits (c,), and each fold's features."""
        batch, vector = self.ensemble.image(image), clinical.to(self.ensemble.device, torch.float32)[None]
        ensemble, computed = self.ensemble, []
        slopes, by_bit = torch.zeros_like(batch), torch.zeros_like(vector[0, bits])
        for place, baseline in enumerate(self._baselines):
            sharing = [fold for fold, own in zip(ensemble.folds, ensemble.trunk_of, strict=True) if own == place]
            result = deeplift.rescale(sharing, baseline, batch, vector, bits)
            slopes += result.voxels
            by_bit += result.bits
            computed.append(result.features)
        count, features = len(ensemble.folds), [computed[place] for place in ensemble.trunk_of]
        return (slopes * batch / count)[0].cpu(), (by_bit * vector[0, bits] / count).cpu(), features


class LogisticFolds:
    """Folds that are logistic regressions on the clinical vector: coefficients (folds, v), intercepts (folds,)."""

    def __init__(self, coefficients: Array, intercepts: Array) -> None:
        self.coefficients = coefficients
        self.intercepts = intercepts
        self.precision = Precision.FLOAT32

    @property
    def bytes(self) -> int:
        return self.coefficients.nbytes + self.intercepts.nbytes

    def logits(self, _image: Image, clinical: Vector, /) -> Array:
        logits: Array = self.coefficients @ clinical.astype(np.float64) + self.intercepts
        return logits

    def predict(self, image: Image, clinical: Vector, /, *, with_features: bool = False) -> EnsembleOutput:  # noqa: ARG002
        """Compute the logits; a logistic regression has no features."""
        return EnsembleOutput(self.logits(image, clinical), None)

    def head_inputs(self, _image: Image, clinical: Vector, /) -> Array:
        return np.tile(clinical.astype(np.float64), (len(self.intercepts), 1))

    def warm_up(self) -> None:
        """Do nothing: a logistic regression has no one-time work."""

    def warm_up_explanation(self) -> None:
        """Do nothing: a logistic regression has no one-time work."""

    def value_function(self, _image: Image, /) -> ValueFunction:
        def mean_logits(clinical: NDArray[np.float32], _imaging: NDArray[np.bool_], /) -> Array:
            means: Array = clinical.astype(np.float64) @ self.coefficients.mean(axis=0) + self.intercepts.mean()
            return means

        return mean_logits

    def image_shares(
        self, _image: Image, clinical: Vector, bits: slice, _present: Sequence[int], _method: ExplanationMethod, /
    ) -> ImageShares:
        return ImageShares(self.coefficients.mean(axis=0)[bits] * clinical[bits], None)
