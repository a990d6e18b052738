"""Manifest of one model version: the content of ``manifest.json`` as pydantic models.

Design notes:
- The manifest holds everything that serving needs to repeat the preprocessing of the training.
- The module imports no torch and reads no files, since the API process uses it too.
- ``Architecture`` describes the network; app/network builds it.
- Unknown members are refused: a manifest that this release does not fully understand must not be served.
- Coordinates are RAS+ millimetres.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from app.core.schema import FrozenModel
from app.imaging.model_grid import ChannelSpec, Grid
from app.network.architecture import Architecture
from app.sdk.types import Channel, Input

SCHEMA_VERSION = 1
NAME_PATTERN = r"^[a-z0-9][a-z0-9-]{0,62}$"
VERSION_PATTERN = r"^[0-9]+\.[0-9]+\.[0-9]+(-[0-9a-z.]+)?$"


class VariableKind(StrEnum):
    """Kind of a clinical variable."""

    NUMBER = "number"
    FLAG = "flag"
    CATEGORY = "category"


class ClinicalVariable(FrozenModel):
    """One variable of the clinical vector.

    A number (after its optional log) and a flag (0 or 1) are standardised. A category gives one 0/1 column per entry
    of ``categories``, not standardised. A missing value is replaced by ``imputed`` (raw unit), or by
    ``category_means`` for a category, and its missing bit is 1.
    """

    name: str
    kind: VariableKind
    unit: str = "1"
    log: bool = False
    categories: tuple[str, ...] = ()
    imputed: float = 0.0
    category_means: tuple[float, ...] = ()
    mean: float = 0.0
    std: float = Field(default=1.0, gt=0)
    required: bool = False
    group: str | None = Field(default=None, description="Variables of one group are one player of the explanation")

    @model_validator(mode="after")
    def _categories_have_means(self) -> ClinicalVariable:
        if self.kind is VariableKind.CATEGORY and len(self.category_means) != len(self.categories):
            raise ValueError("category_means must have one entry per category")
        return self


class Clinical(FrozenModel):
    """Layout of the clinical vector: values of ``variables``, their missing bits, one presence bit per channel."""

    variables: tuple[ClinicalVariable, ...]


class Fold(FrozenModel):
    """Weights of one fold of the ensemble."""

    file: str = Field(pattern=r"^[a-z0-9][a-z0-9.-]*\.(safetensors|json)$")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    validation_auc: float | None = None


class Calibration(FrozenModel):
    """Platt scaling of the mean logit of the ensemble: log-odds = slope * logit + intercept.

    With the slope 0, every patient gets the same probability.
    """

    slope: float = Field(default=1.0, ge=0)
    intercept: float = 0.0


class Threshold(FrozenModel):
    """Decision threshold of the calibrated probability and the rule that chose it."""

    value: float = Field(gt=0, lt=1)
    rule: str


class Conformal(FrozenModel):
    """Class-conditional split-conformal quantiles of the probability given to the true class."""

    level: float = Field(gt=0, lt=1)
    quantile_negative: float
    quantile_positive: float


class Background(FrozenModel):
    """Clinical vectors of sampled training patients, which replace an absent player in an explanation.

    ``vectors`` has the shape (patients, clinical size), in network input units, with presence bits.
    """

    vectors: tuple[tuple[float, ...], ...]


class GoldenCase(FrozenModel):
    """Prepared case that is stored with the version, and its expected logits, one per fold, on any device."""

    file: str = Field(pattern=r"^[a-z0-9][a-z0-9.-]*\.safetensors$")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    logits: tuple[float, ...]


class OutOfDistribution(FrozenModel):
    """Mean and precision of the penultimate features; ``limit`` bounds the squared Mahalanobis distance."""

    mean: tuple[float, ...]
    precision: tuple[tuple[float, ...], ...]
    limit: float


class Measured(FrozenModel):
    """Metric with its 95 % interval, which is null for a metric without one."""

    value: float
    low: float | None = None
    high: float | None = None


class Training(FrozenModel):
    """Training data and settings of the version."""

    data: str
    data_sha256: str = ""
    synthetic: bool
    patients: int = 0
    positives: int = 0
    seed: int = 0
    code_version: str = ""
    target: str = "rLVO"
    protocol: str = ""


class SegmenterManifest(FrozenModel):
    """Manifest of a trained vessel segmenter in the model store, ``segmenters/<name>/<version>``."""

    schema_version: Literal[1] = 1
    name: Annotated[str, Field(pattern=NAME_PATTERN)]
    version: Annotated[str, Field(pattern=VERSION_PATTERN)]
    filters: int = Field(ge=1, le=64)
    file: str = Field(pattern=r"^[a-z0-9][a-z0-9.-]*\.safetensors$")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    training: str
    intended_use: str = "Research use only. Not for clinical decisions."
    licence: str = "Apache-2.0"


class SegmenterRef(FrozenModel):
    """Segmenter that a model version was trained with; ``sha256`` is the digest of its weights."""

    name: Annotated[str, Field(pattern=NAME_PATTERN)]
    version: Annotated[str, Field(pattern=VERSION_PATTERN)]
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class Manifest(FrozenModel):
    """Complete manifest of one model version."""

    schema_version: Literal[1] = 1
    name: Annotated[str, Field(pattern=NAME_PATTERN)]
    version: Annotated[str, Field(pattern=VERSION_PATTERN)]
    kind: Literal["network", "logistic"] = "network"
    architecture: Architecture
    grid: Grid
    channels: tuple[ChannelSpec, ...]
    clinical: Clinical
    folds: tuple[Fold, ...] = Field(min_length=1)
    calibration: Calibration = Calibration()
    threshold: Threshold
    conformal: Conformal | None = None
    background: Background
    out_of_distribution: OutOfDistribution | None = None
    segmenter: SegmenterRef | None = Field(
        default=None, description="Trained vessel segmenter, used if no mask is sent; null: the classical one"
    )
    golden: tuple[GoldenCase, ...] = ()
    training: Training
    metrics: dict[str, Measured] = Field(default_factory=dict)
    regions: str = Field(default="rlvo-regions-1", description="Region atlas of the explanation")
    intended_use: str = "Research use only. Not for clinical decisions."
    licence: str = "Apache-2.0"
    extra: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _drop_interval_level(cls, document: object) -> object:
        """Ignore ``interval_level`` of manifests of earlier releases: the spread of the folds has no level."""
        if not isinstance(document, Mapping):
            return document
        return {name: value for name, value in document.items() if name != "interval_level"}

    @model_validator(mode="after")
    def _sizes_agree(self) -> Manifest:
        if self.kind == "network" and len(self.channels) != self.architecture.in_channels:
            raise ValueError("architecture.in_channels must equal the number of channels")
        return self

    @property
    def required_inputs(self) -> list[Input]:
        """Inputs without which this version refuses a study."""
        needs = {
            Channel.NCCT: Input.NCCT,
            Channel.CTA: Input.CTA,
            Channel.VESSELS: Input.VESSELS,
            Channel.TMAX: Input.TMAX,
            Channel.RCBF: Input.CBF,
        }
        return [needs[channel.name] for channel in self.channels if channel.required]
