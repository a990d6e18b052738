"""What goes in and what comes out: the public contract as types.

Notable choices:
- These are the very types the service answers with, so the client cannot drift from the server.
- ``Input`` names what may be uploaded; ``Channel`` names what a network sees (``rcbf`` is made from ``cbf``).
- Answers tolerate unknown members (a newer server may add some); requests never do.
- No numpy here: this module is installed alone with the client.
"""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

__all__ = [
    "NOTICE",
    "Attribution",
    "AuditEntry",
    "Channel",
    "ClinicalContribution",
    "Decision",
    "ErasedBlob",
    "ErasureCertificate",
    "Failure",
    "Flag",
    "Health",
    "Input",
    "InputSummary",
    "Interval",
    "ModalityContribution",
    "ModelInfo",
    "ModelRef",
    "ModelVersionInfo",
    "PerfusionSummary",
    "Prediction",
    "PredictionPage",
    "Priority",
    "Problem",
    "ProblemField",
    "RegionContribution",
    "Stage",
    "Status",
]

NOTICE = "Research use only. Not for clinical decisions."


class Input(StrEnum):
    """A volume that may be uploaded, by its field name."""

    NCCT = "ncct"
    CTA = "cta"
    VESSELS = "vessels"
    TMAX = "tmax"
    CBF = "cbf"
    CBV = "cbv"
    MTT = "mtt"
    CTP = "ctp"


class Channel(StrEnum):
    """An image channel of a network, in its canonical order."""

    NCCT = "ncct"
    CTA = "cta"
    VESSELS = "vessels"
    TMAX = "tmax"
    RCBF = "rcbf"


class Status(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def finished(self) -> bool:
        return self not in (Status.QUEUED, Status.RUNNING)


class Priority(StrEnum):
    """Whether a patient waits for the answer; a batch is served when nobody acute waits."""

    ACUTE = "acute"
    BATCH = "batch"


class Stage(StrEnum):
    """The steps of one prediction, in order."""

    PREPARE = "prepare"
    PREDICT = "predict"
    EXPLAIN = "explain"
    RECORD = "record"


class _ResponseModel(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", protected_namespaces=())


class ModelRef(_ResponseModel):
    """The exact version that answered; ``digest`` is the sha-256 of its manifest, as ``sha256:<hex>``."""

    name: str
    version: str
    digest: str


class Interval(_ResponseModel):
    """Where the ensemble's probability lies at ``level`` confidence, from the spread of its folds."""

    level: float
    low: float
    high: float


class Decision(_ResponseModel):
    refractory: bool
    threshold: float
    rule: str
    conformal: list[str] | None = Field(
        default=None, description="The classes that cannot be excluded at the version's level; both means uncertain"
    )


class Flag(_ResponseModel):
    """Something that was guessed, imputed, disagreeing or poor."""

    code: str
    detail: str


class ClinicalContribution(_ResponseModel):
    """A clinical variable's share of the log-odds; ``value`` is None and ``imputed`` true where it was missing."""

    variable: str
    value: float | bool | str | None
    contribution: float
    imputed: bool = False


class ModalityContribution(_ResponseModel):
    modality: Channel
    contribution: float


class RegionContribution(_ResponseModel):
    """``side``: that of the occlusion or the other; None on the midline, and where the side is not known."""

    region: str
    modality: Channel
    contribution: float
    side: Literal["affected", "contralateral"] | None = None


class Attribution(_ResponseModel):
    """base + sum(clinical) + sum(imaging) = total, the log-odds of the calibrated probability, to 1e-4."""

    base: float
    total: float
    clinical: list[ClinicalContribution]
    imaging: list[ModalityContribution]
    regions: list[RegionContribution] = []
    maps: list[str] = []
    method: Literal["fast", "exact"] | None = Field(
        default=None, description="The quick rules, or integrated gradients and every subset of the modalities"
    )
    error: float | None = Field(
        default=None, description="Largest standard error of a clinical contribution; 0 where they are exact"
    )
    affected: Literal["left", "right"] | None = Field(
        default=None, description="Side of the occlusion: as given, or, where a flag says so, as the images show it"
    )


class PerfusionSummary(_ResponseModel):
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
    """What was stored of one uploaded volume. ``sha256`` is of the bytes as kept, after the header was scrubbed."""

    sha256: str
    bytes: int
    shape: list[int]
    spacing_mm: list[float]


class Failure(_ResponseModel):
    """Why a prediction failed, with the code of the problem it would have been as an answer."""

    code: str
    title: str
    detail: str


class Prediction(_ResponseModel):
    """One prediction in any state; what is not known yet is absent."""

    id: str
    status: Status
    stage: Stage | None = None
    progress: float = Field(default=0.0, ge=0, le=1)
    model: ModelRef
    subject: str | None = None
    probability: float | None = Field(default=None, ge=0, le=1)
    interval: Interval | None = None
    folds: list[float] | None = None
    decision: Decision | None = None
    flags: list[Flag] = []
    attribution: Attribution | None = None
    perfusion: PerfusionSummary | None = None
    inputs: dict[Input, InputSummary] = {}
    timings: dict[str, float] = {}
    error: Failure | None = None
    notice: str = NOTICE
    created: datetime
    started: datetime | None = None
    finished: datetime | None = None


class AuditEntry(_ResponseModel):
    """An entry of the audit. ``hash`` covers all other members and, by ``previous``, all entries before it."""

    seq: int
    at: datetime
    actor: str
    action: str
    target: str
    detail: dict[str, Any]
    previous: str
    hash: str


class ErasedBlob(_ResponseModel):
    """Bytes that no record names any more; ``gone``: they are deleted. Young ones are deleted within the hour."""

    sha256: str
    gone: bool


class ErasureCertificate(_ResponseModel):
    """What was erased of a prediction: all that is known of the patient, on the word of an entry of the audit."""

    id: str
    erased: datetime
    blobs: list[ErasedBlob]
    shared: int = Field(description="Files that other predictions name as well, and that stay for them")
    complete: bool = Field(description="Whether all bytes are gone by now")
    entry: AuditEntry


class PredictionPage(_ResponseModel):
    """Newest first; ``next`` is the cursor of the following page, None on the last."""

    items: list[Prediction]
    next: str | None = None


class ModelVersionInfo(_ResponseModel):
    name: str
    version: str
    digest: str
    aliases: list[str] = []
    ready: bool = Field(description="A live worker has this version loaded")
    device: str | None = None
    synthetic: bool = Field(description="Trained on synthetic patients only")
    required_inputs: list[str]
    optional_inputs: list[str]
    required_clinical: list[str] = []
    intended_use: str = ""


class ModelInfo(_ResponseModel):
    name: str
    versions: list[ModelVersionInfo]
    aliases: dict[str, str] = {}


class Health(_ResponseModel):
    """Whether a prediction sent now would be answered; ``checks`` says ``ok`` or what is amiss, part by part."""

    status: str
    checks: dict[str, str] = {}

    @property
    def ready(self) -> bool:
        return self.status == "ready"


class ProblemField(_ResponseModel):
    field: str
    detail: str


class Problem(_ResponseModel):
    """RFC 9457 problem details, with the members this service adds."""

    type: str
    title: str
    status: int
    detail: str
    instance: str | None = None
    code: str
    trace_id: str | None = None
    errors: list[ProblemField] = []
