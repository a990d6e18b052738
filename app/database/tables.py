"""Tables of the database, the same on SQLite and PostgreSQL.

Design notes:
- Times are UTC and aware on both databases.
- Answers are stored as JSON; only values for searches and for fencing have columns.
- The number of references to a blob is the number of its artifacts. A stored counter could become wrong.
- Only `predictions`, `attributions`, `reviews` and `outcomes` hold clinical values, so an erasure clears four tables.
- `migrations/` creates these tables; a test compares the two.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    DateTime,
    Dialect,
    Float,
    ForeignKey,
    Index,
    Integer,
    String,
    TypeDecorator,
    false,
    text,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Utc(TypeDecorator[datetime]):
    """An aware UTC time. SQLite has no time zones, so it stores the UTC time and this class adds the zone."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002
        return value and value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002
        return value and (value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC))


class Base(DeclarativeBase):
    type_annotation_map = {  # noqa: RUF012 - a declaration of SQLAlchemy
        datetime: Utc(),
        dict[str, Any]: JSON(none_as_null=True),
        list[Any]: JSON(none_as_null=True),
    }


UNDRAWN = "figures = 'pending' AND figures_queued IS NULL"
"""Condition for figures that have no job yet; as text, because a database uses the index only for this expression."""


IN_A_TRIAL = "trial IS NOT NULL"


def _kept(name: str, *columns: str) -> Index:
    """An index without the erased predictions, of which there are more and more."""
    kept = text("erased IS NULL")
    return Index(f"predictions_{name}", *columns, sqlite_where=kept, postgresql_where=kept)


class PredictionRow(Base):
    """One prediction. An erasure leaves id, caller, model and times."""

    __tablename__ = "predictions"
    __table_args__ = (
        _kept("page", "caller", "created", "id", "subject"),
        _kept("state", "caller", "status", "created", "id"),
        _kept("version", "caller", "model_version", "model_name", "created", "id"),
        _kept("subject", "caller", "subject", "created", "id"),
        _kept("by_subject", "caller", "subject", "id"),
        _kept("probability", "caller", "probability", "id"),
        _kept("study_uid", "caller", "study_instance_uid", "created", "id"),
        _kept("accession", "caller", "accession_number", "created", "id"),
        _kept("due", "finished"),
        Index("predictions_trial", "trial", sqlite_where=text(IN_A_TRIAL), postgresql_where=text(IN_A_TRIAL)),
        Index("predictions_finished", "finished"),
        Index("predictions_status", "status", "queue_position", "caller"),
        Index("predictions_undrawn", "created", sqlite_where=text(UNDRAWN), postgresql_where=text(UNDRAWN)),
    )

    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    caller: Mapped[str] = mapped_column(String(64))
    status: Mapped[str] = mapped_column(String(16))
    stage: Mapped[str | None] = mapped_column(String(16))
    progress: Mapped[float] = mapped_column(Float, default=0.0)
    created: Mapped[datetime]
    started: Mapped[datetime | None]
    finished: Mapped[datetime | None]
    erased: Mapped[datetime | None]

    run: Mapped[int] = mapped_column(Integer, default=0)  # fencing token: start number; only the newest start may write
    attempts: Mapped[int] = mapped_column(Integer, default=0)  # starts since the last new stage; too many: quarantine

    waiting: Mapped[
        dict[str, Any] | None
    ]  # why the job waits for the environment, since when, and after how many tries

    queue_position: Mapped[int] = mapped_column(Integer, default=0, server_default="0")
    """Position among the waiting predictions; a smaller one is served earlier (`app.database.fair_queue`)."""

    model_name: Mapped[str] = mapped_column(String(63))
    model_version: Mapped[str] = mapped_column(String(64))
    model_digest: Mapped[str] = mapped_column(String(71))

    subject: Mapped[str | None] = mapped_column(String(128))
    study_instance_uid: Mapped[str | None] = mapped_column(String(64))
    accession_number: Mapped[str | None] = mapped_column(String(16))
    explain: Mapped[bool]
    exact: Mapped[bool] = mapped_column(default=False)  # whether the explanation uses the slow, exact methods
    accept_warnings: Mapped[bool] = mapped_column(default=False, server_default=false())  # decide in spite of warnings
    ctp_interval_s: Mapped[float | None] = mapped_column(Float)  # seconds between frames, as sent; None: the header's
    series: Mapped[list[Any] | None]  # what each series of a DICOM study was taken for
    intake_flags: Mapped[list[Any] | None]  # flags of the conversion of a DICOM study
    clinical: Mapped[dict[str, Any] | None]
    inputs: Mapped[dict[str, Any] | None]
    trace_id: Mapped[str | None] = mapped_column(String(64))
    span_id: Mapped[str | None] = mapped_column(String(16))  # span of the request, in the trace ``trace_id``
    body_digest: Mapped[str | None] = mapped_column(String(128))

    probability: Mapped[float | None] = mapped_column(Float)
    interval: Mapped[dict[str, Any] | None]
    folds: Mapped[list[Any] | None]
    decision: Mapped[dict[str, Any] | None]
    withheld: Mapped[list[Any] | None]  # codes of the warnings that withhold the decision
    flags: Mapped[list[Any] | None]
    perfusion: Mapped[dict[str, Any] | None]
    device: Mapped[str | None] = mapped_column(String(8))  # that computed the answer: cpu or cuda
    precision: Mapped[str | None] = mapped_column(String(16))  # of the trunks; None: an answer of an earlier release
    figures: Mapped[str | None] = mapped_column(String(8))  # pending, ready or failed; None: it has no figures
    figures_queued: Mapped[datetime | None]  # when the job was queued that draws them
    timings: Mapped[dict[str, Any] | None]
    error: Mapped[dict[str, Any] | None]
    trial: Mapped[str | None] = mapped_column(String(63))  # silent trial that seals the answer; stays after an erasure


class AttributionRow(Base):
    """Attribution of one prediction, as numbers; the maps are artifacts."""

    __tablename__ = "attributions"

    prediction_id: Mapped[str] = mapped_column(ForeignKey("predictions.id"), primary_key=True)
    base: Mapped[float] = mapped_column(Float)
    total: Mapped[float] = mapped_column(Float)
    clinical: Mapped[list[Any]]
    imaging: Mapped[list[Any]]
    regions: Mapped[list[Any]]
    maps: Mapped[list[Any]]
    method: Mapped[str | None] = mapped_column(String(16))
    error: Mapped[float | None] = mapped_column(Float)
    affected: Mapped[str | None] = mapped_column(String(8))


class BlobRow(Base):
    """A blob in the storage that at least one artifact refers to."""

    __tablename__ = "blobs"

    digest: Mapped[str] = mapped_column(String(64), primary_key=True)
    bytes: Mapped[int] = mapped_column(BigInteger)


class ArtifactRow(Base):
    """Name of a blob in a prediction: ``inputs/cta.nii``, ``maps/attribution-cta.nii.gz``, ``report.html``."""

    __tablename__ = "artifacts"

    prediction_id: Mapped[str] = mapped_column(ForeignKey("predictions.id"), primary_key=True)
    name: Mapped[str] = mapped_column(String(128), primary_key=True)
    digest: Mapped[str] = mapped_column(ForeignKey("blobs.digest"), index=True)
    media_type: Mapped[str] = mapped_column(String(64))


class ReviewRow(Base):
    """Review of a prediction."""

    __tablename__ = "reviews"

    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    prediction_id: Mapped[str] = mapped_column(ForeignKey("predictions.id"), index=True)
    reviewer: Mapped[str] = mapped_column(String(64))
    author: Mapped[str | None] = mapped_column(String(64))  # name of the key or token that sent it
    verdict: Mapped[str] = mapped_column(String(16))
    reason: Mapped[str | None] = mapped_column(String(32))
    comment: Mapped[str] = mapped_column(String(500))
    created: Mapped[datetime]


class OutcomeRow(Base):
    """Outcome of the thrombectomy of a prediction's patient."""

    __tablename__ = "outcomes"

    prediction_id: Mapped[str] = mapped_column(ForeignKey("predictions.id"), primary_key=True)
    etici: Mapped[str] = mapped_column(String(8))
    rescue_treatment: Mapped[bool]
    final_stenosis_percent: Mapped[float | None] = mapped_column(Float)
    refractory: Mapped[bool | None]
    recorded: Mapped[datetime]


class IdempotencyRow(Base):
    """An Idempotency-Key of one caller: reserved (without a prediction, until ``expires``) or complete."""

    __tablename__ = "idempotency_keys"

    caller: Mapped[str] = mapped_column(String(64), primary_key=True)
    key: Mapped[str] = mapped_column(String(255), primary_key=True)
    token: Mapped[str] = mapped_column(String(32))
    owner: Mapped[str] = mapped_column(String(64))
    prediction_id: Mapped[str | None] = mapped_column(ForeignKey("predictions.id"), index=True)
    body_digest: Mapped[str | None] = mapped_column(String(128))
    expires: Mapped[datetime] = mapped_column(index=True)


class ApiKeyRow(Base):
    """An API key with the sha-256 of its secret (see `app.database.api_keys`)."""

    __tablename__ = "api_keys"

    id: Mapped[str] = mapped_column(String(16), primary_key=True)
    name: Mapped[str] = mapped_column(String(64))
    tenant: Mapped[str] = mapped_column(String(64))
    hash: Mapped[str] = mapped_column(String(64), unique=True)
    scopes: Mapped[list[Any]]
    created: Mapped[datetime]
    expires: Mapped[datetime | None]
    revoked: Mapped[datetime | None]
    per_minute: Mapped[int | None] = mapped_column(Integer)
    max_body: Mapped[int | None] = mapped_column(BigInteger)


class WebhookRow(Base):
    """An address for messages on the finished predictions of a tenant; the secret signs them."""

    __tablename__ = "webhooks"

    id: Mapped[str] = mapped_column(String(16), primary_key=True)
    tenant: Mapped[str] = mapped_column(String(64), index=True)
    url: Mapped[str] = mapped_column(String(2000))
    secret: Mapped[str] = mapped_column(String(64))
    created: Mapped[datetime]
    ended: Mapped[datetime | None]


class AuditRow(Base):
    """An entry of the audit log. Triggers of the database refuse to change or delete it."""

    __tablename__ = "audit"
    __table_args__ = (Index("audit_action", "action", "target"),)

    seq: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    at: Mapped[datetime]
    actor: Mapped[str] = mapped_column(String(64))
    action: Mapped[str] = mapped_column(String(64))
    target: Mapped[str] = mapped_column(String(128))
    detail: Mapped[dict[str, Any]]
    previous: Mapped[str] = mapped_column(String(64))
    hash: Mapped[str] = mapped_column(String(64))


class AuditHeadRow(Base):
    """The single row with the length of the chain and its last hash; each append locks it."""

    __tablename__ = "audit_head"

    id: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    seq: Mapped[int] = mapped_column(Integer)
    hash: Mapped[str] = mapped_column(String(64))


class WorkerRow(Base):
    """A registered worker process. ``heartbeats`` counts up, so liveness does not depend on a clock."""

    __tablename__ = "workers"

    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    host: Mapped[str] = mapped_column(String(255))
    pid: Mapped[int] = mapped_column(Integer)
    device: Mapped[str] = mapped_column(String(16))
    models: Mapped[list[Any]]
    load_results: Mapped[dict[str, Any] | None]
    """Result of each load request: its generation, and the error where it failed."""
    usage: Mapped[dict[str, Any] | None]
    started: Mapped[datetime]
    last_heartbeat: Mapped[datetime]
    heartbeats: Mapped[int] = mapped_column(Integer)


class ModelRequestRow(Base):
    """A version that all workers must keep loaded or must unload."""

    __tablename__ = "model_requests"

    name: Mapped[str] = mapped_column(String(63), primary_key=True)
    version: Mapped[str] = mapped_column(String(64), primary_key=True)
    wanted: Mapped[bool]
    generation: Mapped[int] = mapped_column(Integer)
    requested: Mapped[datetime]


class ShadowRow(Base):
    """Score of a shadow version against the recorded answer; ``error``: code of its failure."""

    __tablename__ = "shadow_scores"
    __table_args__ = (Index("shadow_scores_version", "model_name", "version"),)

    prediction_id: Mapped[str] = mapped_column(ForeignKey("predictions.id"), primary_key=True)
    model_name: Mapped[str] = mapped_column(String(63))
    version: Mapped[str] = mapped_column(String(64))
    answered: Mapped[str] = mapped_column(String(64))
    difference: Mapped[float | None] = mapped_column(Float)
    agrees: Mapped[bool | None]
    error: Mapped[str | None] = mapped_column(String(64))
    created: Mapped[datetime]
