"""Who answers for a version: its folds, whatever they are, asked the same four questions.

Notable choices:
- ``Networks`` and ``Logistics`` are told apart when a version is loaded, and never again.
- Arrays of numpy go in and out; only this room and training hold tensors.
- Images and clinical side are asked separately (``asker``), because an explanation asks about hundreds of clinical
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

from app.network.attribution import FAST_STEPS, modality_shares_exact, path_gradients, smooth
from app.network.backends import Backend, Precision, pick
from app.network.coalitions import PatientTail
from app.network.ensemble import Ensemble

Array = NDArray[np.float64]
Image = NDArray[np.float32]  # (c, x, y, z)
Vector = NDArray[np.float32]  # (v,)

# Mean logits (n,) of clinical vectors (n, v), each with the images or without: (n,) bool.
Asker = Callable[[NDArray[np.float32], NDArray[np.bool_]], Array]


class Rule(StrEnum):
    """How imaging's value is shared among modalities: along the path, or over every subset of them."""

    PATH = "path"
    EXACT = "exact"


@dataclass(frozen=True)
class Method:
    """How an explanation is computed: quick by default, exact or finer on request.

    ``rule``: for the modalities. ``steps``: of the integrated gradients. ``budget``: most evaluations of the clinical
    game; beyond it, permutations take the place of every coalition.
    """

    rule: Rule = Rule.PATH
    steps: int = FAST_STEPS
    budget: int = 1024


@dataclass(frozen=True)
class ImageShares:
    """Raw shares of the mean logit: (c,) of the channels, and (c, x, y, z) of their voxels, where there are any."""

    channels: Array
    voxels: torch.Tensor | None


class Answer(NamedTuple):
    """Each fold's logit, (folds,), and the features that the out-of-distribution statistics describe, where wanted."""

    logits: Array
    penultimate: Array | None


class Committee(Protocol):
    """The folds of one version. ``precision``: of what depends on the device; ``bytes``: of the weights."""

    @property
    def precision(self) -> Precision: ...

    @property
    def bytes(self) -> int: ...

    def logits(self, image: Image, clinical: Vector, /) -> Array:
        """Each fold's logit, (folds,), for one patient."""

    def answer(self, image: Image, clinical: Vector, /, *, watch: bool = False) -> Answer:
        """The same, and with ``watch`` the features that lead to it; the images are looked at once."""

    def asker(self, image: Image, /) -> Asker:
        """Mean logits for many clinical vectors of one patient."""

    def image_shares(
        self, image: Image, clinical: Vector, bits: slice, present: Sequence[int], method: Method, /
    ) -> ImageShares:
        """Where imaging's part of the mean logit comes from. ``bits``: the presence bits in ``clinical``."""


class Networks:
    """Folds that are networks.

    :param shape: of the images, (c, x, y, z)
    """

    def __init__(self, ensemble: Ensemble, shape: tuple[int, int, int, int]) -> None:
        self.ensemble = ensemble
        self.shape = shape
        self.precision = Precision.BFLOAT16 if ensemble.device.type == "cuda" else Precision.FLOAT32

    @property
    def bytes(self) -> int:
        return sum(weight.nbytes for fold in self.ensemble.folds for weight in fold.parameters())

    def run_on(self, backend: Backend, precision: Precision) -> None:
        """Has the trunks computed by a backend from now on. Raises ModelNotReady where it cannot be had."""
        ensemble = self.ensemble
        ensemble.backend = pick(backend, ensemble.device, ensemble.folds, self.shape, precision)
        if ensemble.backend is not None:
            self.precision = precision

    def logits(self, image: Image, clinical: Vector, /) -> Array:
        return self.answer(image, clinical).logits

    def answer(self, image: Image, clinical: Vector, /, *, watch: bool = False) -> Answer:
        features, vector = self.ensemble.features(torch.from_numpy(image)), torch.from_numpy(clinical)[None]
        return Answer(
            self.ensemble.logits(features, vector)[:, 0].double().numpy(),
            self.ensemble.penultimate(features, vector).double().numpy() if watch else None,
        )

    @cached_property
    def _without(self) -> list[PatientTail]:
        """The tails of a patient without images: the same for everybody, so prepared once."""
        return self.ensemble.tails(self.ensemble.features(torch.zeros(self.shape)))

    def asker(self, image: Image, /) -> Asker:
        tails = self.ensemble.tails(self.ensemble.features(torch.from_numpy(image)))

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
        self, image: Image, clinical: Vector, bits: slice, present: Sequence[int], method: Method, /
    ) -> ImageShares:
        picture, vector = torch.from_numpy(image), torch.from_numpy(clinical)
        by_voxel, by_bit = path_gradients(self.ensemble, picture, vector, bits, steps=method.steps)
        channels = (by_voxel.double().sum(dim=(1, 2, 3)) + by_bit.double()).numpy()
        if method.rule is Rule.EXACT:
            channels[list(present)] = modality_shares_exact(self.ensemble, picture, vector, bits, present)
        return ImageShares(channels, smooth(by_voxel))


class Logistics:
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

    def answer(self, image: Image, clinical: Vector, /, *, watch: bool = False) -> Answer:  # noqa: ARG002
        """There is no layer before the last, and nothing to watch."""
        return Answer(self.logits(image, clinical), None)

    def asker(self, _image: Image, /) -> Asker:
        def ask(clinical: NDArray[np.float32], _imaging: NDArray[np.bool_], /) -> Array:
            found: Array = clinical.astype(np.float64) @ self.coefficients.mean(axis=0) + self.intercepts.mean()
            return found

        return ask

    def image_shares(
        self, _image: Image, clinical: Vector, bits: slice, _present: Sequence[int], _method: Method, /
    ) -> ImageShares:
        return ImageShares(self.coefficients.mean(axis=0)[bits] * clinical[bits], None)
