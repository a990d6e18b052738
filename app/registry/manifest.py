"""Manifest of one model version: the content of ``manifest.json`` as pydantic models.

Design notes:
- The manifest holds everything that serving needs to repeat the preprocessing of the training.
- The module imports no torch and reads no files, since the API process uses it too.
- ``Architecture`` describes the network; app/network builds it.
- Unknown members are refused: a manifest that this release does not fully understand must not be served.
- Every number outside ``extra`` has bounds, and none is NaN or infinite, so that no number makes a load fail.
- Coordinates are RAS+ millimetres.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from enum import StrEnum
from itertools import pairwise
from typing import Annotated, Any, Final, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from app.core.display_names import label
from app.core.schema import FrozenModel
from app.imaging.model_grid import ChannelSpec, Grid
from app.network.architecture import Architecture, Fusion
from app.registry.own_variable import LARGEST, OWN, Finite, OwnVariable
from app.sdk.clinical import MOST_OWN
from app.sdk.types import Channel, Input

SCHEMA_VERSION: Final = 2
OWN_SCHEMA_VERSION: Final = 3
PARTS_SCHEMA_VERSION: Final = 4
"""Schemas of a manifest with own variables, and of one whose channels divide their voxels. A manifest has the least one
that it needs (``schema_of``), so that earlier releases read it.
"""
NAME_PATTERN = r"^[a-z0-9][a-z0-9-]{0,62}$"
VERSION_PATTERN = r"^[0-9]{1,9}\.[0-9]{1,9}\.[0-9]{1,9}(-[0-9a-z.]{1,30})?$"

SCORES: Final = (-2.326, -1.282, 0.0, 1.282, 2.326)
"""Normal scores of the quantiles .01, .1, .5, .9 and .99, at which input statistics have their knots."""
LEAST_PIVOT: Final = 1e-3  # of the correlation of input statistics, so that it has an inverse

Knots = tuple[Finite, Finite, Finite, Finite, Finite]
Version = Annotated[str, Field(pattern=VERSION_PATTERN)]


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

    name: str = Field(max_length=64)
    kind: VariableKind
    unit: str = "1"
    log: bool = False
    categories: tuple[str, ...] = Field(default=(), max_length=256)
    imputed: Finite = 0.0
    category_means: tuple[Annotated[float, Field(ge=0, le=1)], ...] = ()
    mean: Finite = 0.0
    std: float = Field(default=1.0, ge=1e-9, le=LARGEST)
    required: bool = False
    group: str | None = Field(default=None, description="Variables of one group are one player of the explanation")
    own: OwnVariable | None = Field(default=None, description="Declaration of an own variable; null for a field")

    @property
    def width(self) -> int:
        """Entries of its value in the clinical vector; its missing bit is another one."""
        return len(self.categories) if self.kind is VariableKind.CATEGORY else 1

    @property
    def label(self) -> str:
        """Name for a reader, without unit."""
        return label(self.name) if self.own is None else self.own.label

    @model_serializer(mode="wrap")
    def _only_declared(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out ``own`` of a field of the record, which earlier releases do not know."""
        document: dict[str, Any] = write(self)
        if self.own is None:
            document.pop("own", None)
        return document

    @model_validator(mode="after")
    def _is_declared(self) -> ClinicalVariable:
        if self.name.startswith(OWN) is (self.own is None):
            raise ValueError(f"a variable has a declaration `own` exactly if its name starts with {OWN}")
        if self.own is not None and self.kind is VariableKind.NUMBER and self.own.low >= self.own.high:
            raise ValueError("the range of an own number needs low < high")
        if self.own is not None and self.log and self.own.low < 0:
            raise ValueError("an own number with a logarithm must not be negative")
        return self

    @model_validator(mode="after")
    def _categories_have_means(self) -> ClinicalVariable:
        if self.kind is VariableKind.CATEGORY and len(self.category_means) != len(self.categories):
            raise ValueError("category_means must have one entry per category")
        if len(set(self.categories)) != len(self.categories):
            raise ValueError("a category is listed twice")
        if self.log and self.imputed < 0:
            raise ValueError("a variable with a logarithm must not be imputed by a negative value")
        return self


class Clinical(FrozenModel):
    """Layout of the clinical vector: values of ``variables``, their missing bits, one presence bit per channel."""

    variables: tuple[ClinicalVariable, ...] = Field(max_length=512)

    @model_validator(mode="after")
    def _names_differ(self) -> Clinical:
        if len({variable.name for variable in self.variables}) != len(self.variables):
            raise ValueError("a clinical variable is listed twice")
        if len(self.own) > MOST_OWN:
            raise ValueError(f"a version has at most {MOST_OWN} own variables")
        return self

    @property
    def own(self) -> tuple[ClinicalVariable, ...]:
        """Its own variables."""
        return tuple(variable for variable in self.variables if variable.own is not None)

    @property
    def size(self) -> int:
        """Entries of the values and the missing bits in the clinical vector, without the presence bits."""
        return sum(variable.width + 1 for variable in self.variables)


class Fold(FrozenModel):
    """Weights of one fold of the ensemble."""

    file: str = Field(pattern=r"^[a-z0-9][a-z0-9.-]*\.(safetensors|json)$")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    validation_auc: float | None = Field(default=None, ge=0, le=1)


class Calibration(FrozenModel):
    """Platt scaling of the mean logit of the ensemble: log-odds = slope * logit + intercept.

    With the slope 0, every patient gets the same probability.
    """

    slope: float = Field(default=1.0, ge=0, le=1e4)
    intercept: float = Field(default=0.0, ge=-1e4, le=1e4)


class Threshold(FrozenModel):
    """Decision threshold of the calibrated probability and the rule that chose it."""

    value: float = Field(gt=0, lt=1)
    rule: str


class Conformal(FrozenModel):
    """Class-conditional split-conformal quantiles of the probability given to the true class."""

    level: float = Field(gt=0, lt=1)
    quantile_negative: float = Field(ge=-1, le=2)
    quantile_positive: float = Field(ge=-1, le=2)


class Background(FrozenModel):
    """Clinical vectors of sampled training patients, which replace an absent player in an explanation.

    ``vectors`` has the shape (patients, clinical size), in network input units, with presence bits.
    """

    vectors: tuple[tuple[Finite, ...], ...] = Field(min_length=1, max_length=100_000)


class GoldenCase(FrozenModel):
    """Prepared case that is stored with the version, and its expected logits, one per fold, on any device."""

    file: str = Field(pattern=r"^[a-z0-9][a-z0-9.-]*\.safetensors$")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    logits: tuple[Annotated[float, Field(ge=-1e4, le=1e4)], ...]


class ReferenceHeadFile(FrozenModel):
    """File of the intracranial mask and the mean head that the network sees images relative to.

    With ``side_aligned``, heads with a left-sided occlusion are mirrored before the network.
    """

    file: str = Field(default="reference-head.safetensors", pattern=r"^[a-z0-9][a-z0-9.-]*\.safetensors$")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    side_aligned: bool = True


def _is_positive_definite(matrix: Sequence[Sequence[float]]) -> bool:
    """Whether a square matrix is symmetric and the pivots of its Cholesky factor are large enough."""
    factor: list[list[float]] = []
    for place, row in enumerate(matrix):
        if any(abs(value - matrix[other][place]) > 1e-9 for other, value in enumerate(row[:place])):
            return False
        lower: list[float] = []
        for other in range(place):
            known = sum(a * b for a, b in zip(lower, factor[other], strict=False))
            lower.append((row[other] - known) / factor[other][other])
        pivot = row[place] - sum(value**2 for value in lower)
        if pivot < LEAST_PIVOT:
            return False
        factor.append([*lower, math.sqrt(pivot)])
    return True


class InputGroup(FrozenModel):
    """Statistics of one input, or of two inputs together, in the training patients (app/inference/input_statistics.py).

    ``knots``: by statistic, its values at the normal scores ``SCORES``. ``correlation`` of the scores, in the order of
    ``knots``; ``limit`` bounds their squared Mahalanobis distance.
    """

    name: str = Field(pattern=r"^[a-z]+(\+[a-z]+)?$", description="``ncct``, or ``tmax+rcbf`` for two inputs")
    knots: dict[str, Knots] = Field(min_length=1, max_length=64)
    correlation: tuple[tuple[Annotated[float, Field(ge=-1, le=1)], ...], ...]
    limit: float = Field(ge=0, le=LARGEST)

    @model_validator(mode="after")
    def _fits(self) -> InputGroup:
        if any(one >= two for knots in self.knots.values() for one, two in pairwise(knots)):
            raise ValueError("the knots of a statistic must increase")
        size = len(self.knots)
        if any(len(row) != size for row in (self.correlation, *self.correlation)):
            raise ValueError("correlation must have one row and one column for each statistic")
        if not _is_positive_definite(self.correlation):
            raise ValueError("correlation must be positive definite")
        return self


class OutOfDistribution(FrozenModel):
    """Mean and precision of the penultimate features; ``limit`` bounds the squared Mahalanobis distance.

    ``inputs``: the statistics of the prepared images; none in versions of earlier releases.
    """

    mean: tuple[Finite, ...]
    precision: tuple[tuple[Finite, ...], ...]
    limit: float = Field(ge=0, le=LARGEST)
    inputs: tuple[InputGroup, ...] = Field(default=(), max_length=64)

    @model_validator(mode="after")
    def _is_square(self) -> OutOfDistribution:
        if any(len(row) != len(self.mean) for row in (self.precision, *self.precision)):
            raise ValueError("precision must have one row and one column for each entry of mean")
        if len({group.name for group in self.inputs}) != len(self.inputs):
            raise ValueError("a group of input statistics is listed twice")
        return self


class Measured(FrozenModel):
    """Metric with its 95 % interval, which is null for a metric without one."""

    value: Finite
    low: Finite | None = None
    high: Finite | None = None


class Training(FrozenModel):
    """Training data and settings of the version."""

    data: str
    data_sha256: str = ""
    synthetic: bool
    patients: int = Field(default=0, ge=0, le=10**9)
    positives: int = Field(default=0, ge=0, le=10**9)
    seed: int = Field(default=0, ge=0, le=2**64)
    code_version: str = ""
    target: str = "rLVO"
    protocol: str = ""


class SegmenterManifest(FrozenModel):
    """Manifest of a trained vessel segmenter in the model store, ``segmenters/<name>/<version>``."""

    schema_version: Literal[1] = 1
    name: Annotated[str, Field(pattern=NAME_PATTERN)]
    version: Version
    filters: int = Field(ge=1, le=64)
    file: str = Field(pattern=r"^[a-z0-9][a-z0-9.-]*\.safetensors$")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    training: str
    intended_use: str = "Research use only. Not for clinical decisions."
    licence: str = "Apache-2.0"


class SegmenterRef(FrozenModel):
    """Segmenter that a model version was trained with; ``sha256`` is the digest of its weights."""

    name: Annotated[str, Field(pattern=NAME_PATTERN)]
    version: Version
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class Manifest(FrozenModel):
    """Complete manifest of one model version.

    Schema 2 adds ``reference_head`` and the second image path of ``architecture``; a manifest of schema 1 has neither.
    Schema 3 adds own variables, and schema 4 parts of voxels; a manifest without them has schema 2.
    """

    schema_version: Literal[1, 2, 3, 4] = SCHEMA_VERSION
    name: Annotated[str, Field(pattern=NAME_PATTERN)]
    version: Version
    kind: Literal["network", "logistic"] = "network"
    architecture: Architecture
    grid: Grid
    channels: tuple[ChannelSpec, ...] = Field(max_length=len(Channel))
    clinical: Clinical
    folds: tuple[Fold, ...] = Field(min_length=1, max_length=64)
    calibration: Calibration = Calibration()
    threshold: Threshold
    conformal: Conformal | None = None
    background: Background
    out_of_distribution: OutOfDistribution | None = None
    reference_head: ReferenceHeadFile | None = Field(
        default=None, description="What the network sees an image relative to; null: the whole image as it is"
    )
    segmenter: SegmenterRef | None = Field(
        default=None, description="Trained vessel segmenter, used if no mask is sent; null: the classical one"
    )
    golden: tuple[GoldenCase, ...] = Field(default=(), max_length=64)
    training: Training
    metrics: dict[str, Measured] = Field(default_factory=dict)
    regions: str = Field(default="rlvo-regions-3", description="Region atlas of the explanation")
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
    def _parts_differ(self) -> Manifest:
        if len({channel.name for channel in self.channels}) != len(self.channels):
            raise ValueError("a channel is listed twice")
        files = ["manifest.json", *(part.file for part in self.files)]
        if len(set(files)) != len(files):
            raise ValueError("each fold and each golden case needs its own file")
        return self

    @model_validator(mode="after")
    def _sizes_agree(self) -> Manifest:
        size = self.clinical.size + len(self.channels)
        if any(len(case.logits) != len(self.folds) for case in self.golden):
            raise ValueError("each golden case needs one logit per fold")
        if any(len(vector) != size for vector in self.background.vectors):
            raise ValueError(f"background.vectors must have {size} entries each, as the clinical vector")
        for channel in self.channels:
            self.grid.divided(channel.parts)  # raises if it has too many voxels
        if self.kind == "network":
            self._check_network(size)
        return self

    @model_validator(mode="after")
    def _fits_its_schema(self) -> Manifest:
        if self.schema_version == 1 and (self.reference_head is not None or self.architecture.box is not None):
            raise ValueError("a reference head and a second image path need schema_version 2")
        if self.schema_version < OWN_SCHEMA_VERSION and self.clinical.own:
            raise ValueError("own variables need schema_version 3")
        if self.schema_version < PARTS_SCHEMA_VERSION and any(channel.parts > 1 for channel in self.channels):
            raise ValueError("channels with parts of voxels need schema_version 4")
        return self

    def _check_network(self, size: int) -> None:
        network, reference = self.architecture, self.out_of_distribution
        if network.box is not None and any(
            part.stop > length for part, length in zip(network.box.slices, self.grid.shape, strict=True)
        ):
            raise ValueError("architecture.box must lie within the grid")
        if len(self.channels) != network.in_channels:
            raise ValueError("architecture.in_channels must equal the number of channels")
        if network.clinical_size != size:
            raise ValueError(f"architecture.clinical_size must be {size}, the number of entries of the clinical vector")
        if network.fusion in (Fusion.DAFT, Fusion.FILM) and not (network.scale or network.shift):
            raise ValueError("architecture needs a scale, a shift, or both")
        if reference is not None and len(reference.mean) != network.pooled_channels:
            raise ValueError("out_of_distribution.mean must have 8 entries per filter of the architecture")

    @property
    def files(self) -> list[Fold | GoldenCase | ReferenceHeadFile]:
        """Every file of the version that the manifest lists with its digest."""
        return [*self.folds, *self.golden, *([self.reference_head] if self.reference_head else [])]

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


def schema_of(clinical: Clinical, channels: Sequence[ChannelSpec]) -> Literal[2, 3, 4]:
    """Least schema of a manifest with these variables and channels."""
    if any(channel.parts > 1 for channel in channels):
        return PARTS_SCHEMA_VERSION
    return OWN_SCHEMA_VERSION if clinical.own else SCHEMA_VERSION
