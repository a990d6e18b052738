"""Types of the HTTP API: inputs, predictions, attributions, models and problems.

Design notes:
- The service responds with the same types, so that client and server cannot differ.
- ``Input`` names the uploads; ``Channel`` names the channels of a network (``rcbf`` is computed from ``cbf``).
- Responses may have unknown members, because a newer server may add some; requests may not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from .deliveries import Delivery
from .flag_names import name_of
from .flags import Severity, action_of, severity_of
from .followup import ReviewerVerdict
from .published_scores import PatientScores
from .series import SeriesSummary
from .summary import Headline, answer_line, headline

WAITING_FOR_STORAGE = "waiting-for-storage"
NOTICE = "Research use only. Not for clinical decisions."


class Input(StrEnum):
    """Volume that can be uploaded, by the name of its field."""

    NCCT = "ncct"
    CTA = "cta"
    VESSELS = "vessels"
    TMAX = "tmax"
    CBF = "cbf"
    CBV = "cbv"
    MTT = "mtt"
    CTP = "ctp"


class Channel(StrEnum):
    """Image channel of a network, in canonical order."""

    NCCT = "ncct"
    CTA = "cta"
    VESSELS = "vessels"
    TMAX = "tmax"
    RCBF = "rcbf"


class Status(StrEnum):
    """State of a prediction."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def finished(self) -> bool:
        """Whether the state is final."""
        return self not in (Status.QUEUED, Status.RUNNING)


class Priority(StrEnum):
    """Priority in the queue; batch predictions wait until no acute prediction is queued."""

    ACUTE = "acute"
    BATCH = "batch"


class Stage(StrEnum):
    """Stages of a prediction, in order."""

    PREPARE = "prepare"
    PREDICT = "predict"
    EXPLAIN = "explain"
    RECORD = "record"


class FiguresState(StrEnum):
    """State of the figures and the report, which are drawn after the answer is recorded."""

    PENDING = "pending"
    READY = "ready"
    FAILED = "failed"


class _ResponseModel(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", protected_namespaces=())


class ModelRef(_ResponseModel):
    """Model version of a prediction; ``digest`` is the SHA-256 of its manifest, as ``sha256:<hex>``."""

    name: str
    version: str
    digest: str


class FoldSpread(_ResponseModel):
    """Lowest and highest probability of the folds. It has no level: the true chance is often outside of it."""

    kind: Literal["fold-spread"] = "fold-spread"
    low: float
    high: float


class CalibratedInterval(_ResponseModel):
    """Interval of the probability at ``level``; ``coverage`` is the measured share of true chances inside."""

    kind: Literal["calibrated"] = "calibrated"
    low: float
    high: float
    level: float = Field(gt=0, lt=1)
    coverage: float = Field(ge=0, le=1)


Interval = Annotated[FoldSpread | CalibratedInterval, Field(discriminator="kind")]
"""What an answer says about the uncertainty of its probability; ``kind`` tells what it is."""


def read_interval(interval: object, folds: Sequence[float] | None) -> object:
    """Return an interval as this release writes it.

    One of an earlier release has a ``level`` that its ends do not have: it is read as the spread of the ``folds``.
    """
    if not isinstance(interval, Mapping) or "kind" in interval:
        return interval
    low, high = (min(folds), max(folds)) if folds else (interval.get("low"), interval.get("high"))
    return {"kind": "fold-spread", "low": low, "high": high}


class Decision(_ResponseModel):
    """Decision at the threshold of the model version."""

    refractory: bool
    threshold: float
    rule: str
    conformal: list[str] | None = Field(
        default=None, description="The classes that cannot be excluded; with both or none, the headline is undetermined"
    )


class Flag(_ResponseModel):
    """Statement about the inputs or the answer; docs/flags.md explains each code.

    ``severity`` is that of the code in the catalogue, unless the service sent another one.
    """

    code: str
    detail: str
    severity: Severity = Field(
        default_factory=lambda data: severity_of(data["code"]),
        description="warning: the decision is withheld unless the caller accepts warnings; info: the answer stands",
    )
    name: str = Field(default_factory=lambda data: name_of(data["code"]), description="Name of the code for a reader")
    action: str = Field(default_factory=lambda data: action_of(data["code"]), description="What to do")


class ClinicalContribution(_ResponseModel):
    """Contribution of a clinical variable to the log-odds; a missing one has no ``value`` and is ``imputed``."""

    variable: str
    value: float | bool | str | None
    contribution: float
    imputed: bool = False
    label: str | None = Field(default=None, description="Name of an own variable for a reader; None for another one")
    unit: str | None = Field(default=None, description="Unit of an own number; None for another variable or no unit")


class ModalityContribution(_ResponseModel):
    """Contribution of an image channel to the log-odds."""

    modality: Channel
    contribution: float


class RegionContribution(_ResponseModel):
    """Contribution of a brain region; ``side`` is None on the midline and if the side of the occlusion is unknown."""

    region: str
    modality: Channel
    contribution: float
    side: Literal["affected", "contralateral"] | None = None


class Attribution(_ResponseModel):
    """Additive explanation: base + sum(clinical) + sum(imaging) = total log-odds of the probability, within 1e-4."""

    base: float
    total: float
    clinical: list[ClinicalContribution]
    imaging: list[ModalityContribution]
    regions: list[RegionContribution] = []
    maps: list[str] = []
    method: Literal["fast", "exact"] | None = Field(
        default=None, description="fast: DeepLIFT rules; exact: integrated gradients and all subsets of the modalities"
    )
    error: float | None = Field(
        default=None, description="Largest standard error of a clinical contribution; 0 if the contributions are exact"
    )
    affected: Literal["left", "right"] | None = Field(
        default=None, description="Side of the occlusion: as sent, or as derived from the images if a flag says so"
    )


class PerfusionSummary(_ResponseModel):
    """CT perfusion results computed by the service; volumes in mL."""

    core_ml: float | None = None
    tmax4_ml: float | None = None
    tmax6_ml: float | None = None
    tmax8_ml: float | None = None
    tmax10_ml: float | None = None
    mismatch_ml: float | None = None
    mismatch_ratio: float | None = None
    hypoperfusion_intensity_ratio: float | None = None
    cbv_index: float | None = None


class InputSummary(_ResponseModel):
    """Stored upload; ``sha256`` is that of the stored bytes, after the header was de-identified."""

    sha256: str
    bytes: int
    shape: list[int]
    spacing_mm: list[float]


class Failure(_ResponseModel):
    """Error of a failed prediction; ``code`` is a problem code."""

    code: str
    title: str
    detail: str


class Waiting(_ResponseModel):
    """Pause of an accepted prediction because of a fault of the environment. It continues without any action."""

    reason: str = Field(
        description="waiting-for-storage: a disk, the bucket or the model store is full or cannot be reached"
    )
    detail: str = Field(description="What an operator can do")
    since: datetime
    tries: int = Field(ge=1, description="Number of tries that met the fault")


def _summary(values: dict[str, Any]) -> str:
    """First line of a prediction with these members: its answer, its error, or its state."""
    if values["error"] is not None:
        return f"Failed: {values['error'].title}."
    if values["waiting"] is not None:
        return f"Waiting: {values['waiting'].detail}."
    if values["sealed"] is not None and values["status"] is Status.SUCCEEDED:
        return f"Sealed: silent trial {values['sealed']}."
    if values["probability"] is None:
        return f"{values['status'].capitalize()}."
    return answer_line(*(values[name] for name in ("probability", "decision", "withheld", "flags", "inputs")))


class Prediction(_ResponseModel):
    """Prediction in any state; results are null until they are known.

    If a flag is a warning, ``decision`` is None and ``withheld`` has the codes of the warnings, unless the study was
    sent with ``accept_warnings``. Probability and attribution are there in both cases.
    """

    id: str
    status: Status
    stage: Stage | None = None
    progress: float = Field(default=0.0, ge=0, le=1)
    waiting: Waiting | None = Field(
        default=None, description="Why an unfinished prediction makes no progress; absent if it waits for a worker only"
    )
    model: ModelRef
    subject: str | None = None
    study_instance_uid: str | None = Field(default=None, description="DICOM Study Instance UID, as sent")
    accession_number: str | None = Field(default=None, description="Accession number of the study, as sent")
    probability: float | None = Field(default=None, ge=0, le=1)
    interval: Interval | None = None
    folds: list[float] | None = None
    decision: Decision | None = Field(
        default=None, description="null until it is known, and if `withheld` lists the codes of warnings"
    )
    withheld: list[str] = Field(
        default=[], description="Codes of the warnings that withhold the decision; empty if it is not withheld"
    )
    accept_warnings: bool = Field(default=False, description="The caller wants a decision in spite of warnings")
    ctp_interval_s: float | None = Field(
        default=None, description="Seconds between the frames of the CT perfusion series, as sent by the caller"
    )
    series: list[SeriesSummary] | None = Field(default=None, description="Series of a DICOM study; else absent")
    sealed: str | None = Field(
        default=None, description="Silent trial that seals the answer: it is computed and stored, and not shown"
    )
    flags: list[Flag] = []
    attribution: Attribution | None = None
    figures: FiguresState | None = Field(
        default=None,
        description="pending: figures and report are drawn at the first request for one of them, or while the service "
        "has nothing else to do; ready: they can be read; failed: a try failed, and the service "
        "tries again. Absent without a result or an explanation",
    )
    perfusion: PerfusionSummary | None = None
    inputs: dict[Input, InputSummary] = {}
    timings: dict[str, float] = {}
    error: Failure | None = None
    verdicts: list[ReviewerVerdict] = Field(
        default=[], description="Last verdict of each reviewer of the decision, oldest first"
    )
    notice: str = NOTICE
    scores: PatientScores = None
    deliveries: list[Delivery] | None = Field(
        default=None, description="Delivery of the result to each DICOM destination; absent in a list"
    )
    created: datetime
    started: datetime | None = None
    finished: datetime | None = None
    headline: Headline | None = Field(
        default_factory=lambda data: headline(data["decision"], data["withheld"]),
        description="Headline of the answer, from the conformal set; null until it is known",
    )
    summary: str = Field(default_factory=_summary, description="First line to show: the answer and whether to trust it")

    def members(self) -> dict[str, Any]:
        """Known members as JSON values, as the service sends them; a withheld decision is null."""
        known = {name: value for name, value in self.model_dump(mode="json").items() if value is not None}
        return {"decision": None, **known} if self.withheld else known

    @property
    def warnings(self) -> list[Flag]:
        """Flags of severity ``warning``."""
        return [flag for flag in self.flags if flag.severity is Severity.WARNING]

    @model_validator(mode="before")
    @classmethod
    def _read_earlier_release(cls, document: object) -> object:
        if not isinstance(document, Mapping) or "interval" not in document:
            return document
        return {**document, "interval": read_interval(document["interval"], document.get("folds"))}


class AuditEntry(_ResponseModel):
    """Audit entry; ``hash`` covers all other members and, through ``previous``, all earlier entries."""

    seq: int
    at: datetime
    actor: str
    action: str
    target: str
    detail: dict[str, Any]
    previous: str
    hash: str


class ErasedBlob(_ResponseModel):
    """Blob without a reference; ``gone``: deleted. A recently stored blob is deleted within an hour."""

    sha256: str
    gone: bool


class ErasureCertificate(_ResponseModel):
    """Proof that all data of a prediction were erased, with the audit entry."""

    id: str
    erased: datetime
    blobs: list[ErasedBlob]
    shared: int = Field(description="Number of files that are kept because other predictions use them")
    complete: bool = Field(description="Whether all files are deleted")
    entry: AuditEntry


class PredictionPage(_ResponseModel):
    """Page of predictions; ``next`` is the cursor of the next page, None on the last page."""

    items: list[Prediction]
    next: str | None = None


class ModelVersionInfo(_ResponseModel):
    """Model version with its readiness and required inputs."""

    name: str
    version: str
    digest: str
    aliases: list[str] = []
    ready: bool = Field(description="A live worker has this version loaded")
    device: str | None = None
    synthetic: bool = Field(description="Trained on synthetic patients only")
    default: bool = Field(default=False, description="A request that names no model gets this version")
    required_inputs: list[str]
    optional_inputs: list[str]
    required_clinical: list[str] = []
    intended_use: str = ""


class ModelInfo(_ResponseModel):
    """Model with its versions and aliases."""

    name: str
    versions: list[ModelVersionInfo]
    aliases: dict[str, str] = {}


class Health(_ResponseModel):
    """Readiness of the service; ``checks`` has ``ok`` or the fault of each part."""

    status: str
    checks: dict[str, str] = {}

    @property
    def ready(self) -> bool:
        """Whether the service can predict now."""
        return self.status == "ready"
