"""The description of one model version: what ``manifest.json`` holds, and the words every room uses for it.

Notable choices:
- Preprocessing, weights and recipe are one thing: all that serving needs to repeat training is written here.
- No torch and no file access: the API process reads manifests too.
- Modes are named. ``Architecture`` says in words what the network is; app/network builds it.
- Unknown members are refused: a manifest this code does not fully understand must not serve.
- Coordinates are RAS+ millimetres throughout.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from app.core.schema import FrozenModel
from app.imaging.model_grid import ChannelSpec, Grid
from app.network.architecture import Architecture
from app.sdk.types import Channel, Input

SCHEMA_VERSION = 1


class VariableKind(StrEnum):
    NUMBER = "number"
    FLAG = "flag"
    CATEGORY = "category"


class ClinicalVariable(FrozenModel):
    """One variable of the clinical vector.

    A number is transformed (log or identity), then standardised; a flag is 0 or 1, standardised too; a category
    gives one 0/1 column per entry of ``categories`` (standardised by nothing). A missing one takes ``imputed`` (in
    raw units, or a category's frequencies by ``category_means``), and its missing bit is set.
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
            raise ValueError("a category needs one mean per category")
        return self


class Clinical(FrozenModel):
    """The clinical vector: values of ``variables`` in order, then one missing bit each, then one presence bit per
    channel (1 = the patient has it).
    """

    variables: tuple[ClinicalVariable, ...]


class Fold(FrozenModel):
    file: str = Field(pattern=r"^[a-z0-9][a-z0-9.-]*\.(safetensors|json)$")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    validation_auc: float | None = None


class Calibration(FrozenModel):
    """Platt scaling of the ensemble's mean logit: log-odds = slope * logit + intercept."""

    slope: float = Field(default=1.0, gt=0)
    intercept: float = 0.0


class Threshold(FrozenModel):
    value: float = Field(gt=0, lt=1)
    rule: str


class Conformal(FrozenModel):
    """Class-conditional split-conformal quantiles of the probability given to the true class."""

    level: float = Field(gt=0, lt=1)
    quantile_negative: float
    quantile_positive: float


class Background(FrozenModel):
    """What an absent player is replaced by in an explanation: a sample of training patients' clinical vectors.

    ``vectors``: (n, clinical size), as the network sees them, presence bits included.
    """

    vectors: tuple[tuple[float, ...], ...]


class GoldenCase(FrozenModel):
    """A prepared case stored with the version, and the per-fold logits it must give on any device."""

    file: str = Field(pattern=r"^[a-z0-9][a-z0-9.-]*\.safetensors$")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    logits: tuple[float, ...]


class OutOfDistribution(FrozenModel):
    """Reference statistics of the penultimate features, for a Mahalanobis distance (squared) beyond ``limit``."""

    mean: tuple[float, ...]
    precision: tuple[tuple[float, ...], ...]
    limit: float


class Measured(FrozenModel):
    """A metric with its interval (2000-fold stratified bootstrap unless the card says otherwise)."""

    value: float
    low: float | None = None
    high: float | None = None


class Training(FrozenModel):
    """Where the version comes from."""

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
    """A trained vessel segmenter in the model store, ``segmenters/<name>/<version>``."""

    schema_version: Literal[1] = 1
    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")]
    version: Annotated[str, Field(pattern=r"^[0-9]+\.[0-9]+\.[0-9]+(-[0-9a-z.]+)?$")]
    filters: int = Field(ge=1, le=64)
    file: str = Field(pattern=r"^[a-z0-9][a-z0-9.-]*\.safetensors$")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    training: str
    intended_use: str = "Research use only. Not for clinical decisions."
    licence: str = "Apache-2.0"


class SegmenterRef(FrozenModel):
    """Which segmenter a model version was trained with; ``sha256`` is that of its weights."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")]
    version: Annotated[str, Field(pattern=r"^[0-9]+\.[0-9]+\.[0-9]+(-[0-9a-z.]+)?$")]
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class Manifest(FrozenModel):
    """One model version, complete."""

    schema_version: Literal[1] = 1
    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")]
    version: Annotated[str, Field(pattern=r"^[0-9]+\.[0-9]+\.[0-9]+(-[0-9a-z.]+)?$")]
    kind: Literal["network", "logistic"] = "network"
    architecture: Architecture
    grid: Grid
    channels: tuple[ChannelSpec, ...]
    clinical: Clinical
    folds: tuple[Fold, ...] = Field(min_length=1)
    calibration: Calibration = Calibration()
    threshold: Threshold
    interval_level: float = Field(default=0.9, gt=0, lt=1)
    conformal: Conformal | None = None
    background: Background
    out_of_distribution: OutOfDistribution | None = None
    segmenter: SegmenterRef | None = Field(
        default=None, description="The trained vessel segmenter used where no mask is sent; null: the classical one"
    )
    golden: tuple[GoldenCase, ...] = ()
    training: Training
    metrics: dict[str, Measured] = Field(default_factory=dict)
    regions: str = Field(default="rlvo-regions-1", description="The region atlas that the explanation uses")
    intended_use: str = "Research use only. Not for clinical decisions."
    licence: str = "Apache-2.0"
    extra: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _sizes_agree(self) -> Manifest:
        if self.kind == "network" and len(self.channels) != self.architecture.in_channels:
            raise ValueError("the architecture's channels are not the manifest's")
        return self

    @property
    def required_inputs(self) -> list[Input]:
        """The uploads without which this version refuses a study."""
        needs = {
            Channel.NCCT: Input.NCCT,
            Channel.CTA: Input.CTA,
            Channel.VESSELS: Input.VESSELS,
            Channel.TMAX: Input.TMAX,
            Channel.RCBF: Input.CBF,
        }
        return [needs[channel.name] for channel in self.channels if channel.required]
