"""Every question that the API asks of the predictions, and every change that it makes to one.

Notable choices:
- A caller (a tenant) sees its own predictions only; another's id is answered as if it did not exist.
- What a prediction is made of and what it made are artifacts: names for blobs. Rows and names change in one
  transaction; the bytes are written before it and deleted after it, so a row never names bytes that are not there.
- Ids are UUIDs of version 7: they sort by the time they were made.
- The worker's side of a prediction, with its fencing, is in `work.py`.
"""

from __future__ import annotations

import re
import secrets
import time
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, and_, delete, or_, select
from sqlalchemy.orm import Session

from app.core.tracing import TraceContext
from app.database import fair_queue, idempotency
from app.database.session import now
from app.database.tables import (
    ArtifactRow,
    AttributionRow,
    BlobRow,
    IdempotencyRow,
    OutcomeRow,
    PredictionRow,
    ReviewRow,
    ShadowRow,
)
from app.database.upsert import insert_for
from app.sdk.errors import Conflict, Erased, InvalidRequest, NotFinished, NotFound, PredictionNotFound
from app.sdk.types import Attribution, Input, InputSummary, ModelRef, Prediction, PredictionPage, Priority, Status

VOLUME = "application/octet-stream"
CURSOR = r"[0-9]{16}[0-9a-f]{32}"

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class NewPrediction:
    """A study as it was accepted: checked, stored, and not yet worked on."""

    id: str
    caller: str
    model: ModelRef
    subject: str | None
    explain: bool
    clinical: dict[str, Any]
    inputs: Mapping[Input, InputSummary]
    place: TraceContext | None = None
    idempotency_key: str | None = None
    body_digest: str = ""
    priority: Priority = Priority.ACUTE
    keep_key: float = 86400.0
    """Seconds for which the idempotency key is remembered."""
    exact: bool = False


@dataclass(frozen=True)
class Artifact:
    """A blob under the name that a prediction gives it."""

    name: str
    digest: str
    bytes: int
    media_type: str


def new_id() -> str:
    """A UUID of version 7 (RFC 9562): 48 bits of milliseconds, then randomness."""
    value = int(time.time() * 1000) << 80 | secrets.randbits(80)
    value = value & ~(0xF << 76) | 0x7 << 76
    value = value & ~(0x3 << 62) | 0x2 << 62
    return str(uuid.UUID(int=value))


def add(session: Session, new: NewPrediction) -> int:
    """Inserts a queued prediction, the names of its inputs, and its idempotency key; its turn in the queue.

    :raises RequestInProgress: where another request completed the key meanwhile
    """
    queue_position = fair_queue.next_position(session, new.caller, new.priority)
    session.add(
        PredictionRow(
            queue_position=queue_position,
            id=new.id,
            caller=new.caller,
            status=Status.QUEUED,
            progress=0.0,
            created=now(),
            run=0,
            attempts=0,
            model_name=new.model.name,
            model_version=new.model.version,
            model_digest=new.model.digest,
            subject=new.subject,
            explain=new.explain,
            exact=new.exact,
            clinical=new.clinical,
            inputs={name.value: summary.model_dump(mode="json") for name, summary in new.inputs.items()},
            trace_id=new.place and new.place.trace,
            span_id=new.place and new.place.span,
            body_digest=new.body_digest,
        )
    )
    session.flush()
    name_blobs(
        session,
        new.id,
        [Artifact(f"inputs/{name}.nii", summary.sha256, summary.bytes, VOLUME) for name, summary in new.inputs.items()],
    )
    if new.idempotency_key is not None:
        idempotency.complete(session, new.caller, new.idempotency_key, new.id, new.body_digest, keep=new.keep_key)
    return queue_position


def name_blobs(session: Session, prediction_id: str, artifacts: Iterable[Artifact]) -> None:
    """Lets a prediction name blobs that the storage holds already."""
    ordered = sorted(artifacts, key=lambda artifact: artifact.digest)  # one order of locks: no deadlock
    for artifact in ordered:
        blob = insert_for(session, BlobRow).values(digest=artifact.digest, bytes=artifact.bytes)
        # An update even of an equal row locks it, so that no erasure drops it before this transaction ends.
        session.execute(blob.on_conflict_do_update(index_elements=["digest"], set_={"bytes": artifact.bytes}))
        session.add(
            ArtifactRow(
                prediction_id=prediction_id,
                name=artifact.name,
                digest=artifact.digest,
                media_type=artifact.media_type,
            )
        )
    session.flush()


def find(session: Session, prediction_id: str, caller: str | None) -> Prediction:
    """The prediction as it stands. Raises PredictionNotFound, Erased.

    :param caller: the tenant that asks; None for the operator, who may see all
    """
    row = _row(session, prediction_id, caller)
    return _prediction(row, session.get(AttributionRow, prediction_id))


def page(
    session: Session,
    caller: str | None,
    *,
    limit: int = 50,
    cursor: str | None = None,
    subject: str | None = None,
    model: str | None = None,
    status: Status | None = None,
    created_after: datetime | None = None,
) -> PredictionPage:
    """The caller's predictions, newest first, erased ones left out.

    A cursor stands for a place in the order and not for a count, so rows that come or go meanwhile neither repeat nor
    hide others. Raises InvalidRequest for a cursor that is not one of ours.

    :param model: a name, or ``name@1.2.0``
    """
    wanted: list[ColumnElement[bool]] = [PredictionRow.erased.is_(None)]
    if caller is not None:
        wanted.append(PredictionRow.caller == caller)
    if subject is not None:
        wanted.append(PredictionRow.subject == subject)
    if model is not None:
        name, _, version = model.partition("@")
        wanted.append(PredictionRow.model_name == name)
        if version:
            wanted.append(PredictionRow.model_version == version)
    if status is not None:
        wanted.append(PredictionRow.status == status)
    if created_after is not None:
        wanted.append(PredictionRow.created > created_after)
    if cursor is not None:
        wanted.append(_before(cursor))
    newest_first = (PredictionRow.created.desc(), PredictionRow.id.desc())
    rows = list(session.scalars(select(PredictionRow).where(*wanted).order_by(*newest_first).limit(limit + 1)))
    more, rows = len(rows) > limit, rows[:limit]
    ids = [row.id for row in rows]
    reasons = {
        row.prediction_id: row
        for row in session.scalars(select(AttributionRow).where(AttributionRow.prediction_id.in_(ids)))
    }
    items = [_prediction(row, reasons.get(row.id)) for row in rows]
    return PredictionPage(items=items, next=_cursor(rows[-1]) if more else None)


def by_idempotency_key(session: Session, caller: str, key: str) -> tuple[str, str] | None:
    """The prediction and the body digest that a completed key stands for."""
    return idempotency.find(session, caller, key)


def cancel(session: Session, prediction_id: str, caller: str | None) -> Prediction:
    """Ends a queued or running prediction; its worker writes nothing more. A cancelled one stays as it is.

    Raises PredictionNotFound, Erased, and Conflict for one that has finished.
    """
    row = _row(session, prediction_id, caller, lock=True)
    if Status(row.status) in (Status.SUCCEEDED, Status.FAILED):
        raise Conflict("The prediction has finished and cannot be cancelled any more")
    if row.status != Status.CANCELLED:
        row.status, row.stage, row.finished = Status.CANCELLED, None, now()
        session.flush()
    return _prediction(row, None)


def erase(session: Session, prediction_id: str, caller: str | None) -> list[str]:
    """Erases all that is known of the patient: inputs, record, results, reasons, reviews, outcome. A tombstone is left.

    Returns the digests that no prediction names any more, for `Storage.delete` once this transaction is committed.
    Raises PredictionNotFound, Erased.
    """
    row = _row(session, prediction_id, caller, lock=True)
    if not Status(row.status).finished:
        row.status, row.finished = Status.CANCELLED, now()
    row.erased = now()
    row.progress, row.stage = 0.0, None
    row.subject = row.clinical = row.inputs = row.trace_id = row.span_id = row.body_digest = None
    row.probability = row.interval = row.folds = row.decision = None
    row.flags = row.perfusion = row.timings = row.error = None
    session.execute(delete(AttributionRow).where(AttributionRow.prediction_id == prediction_id))
    session.execute(delete(ReviewRow).where(ReviewRow.prediction_id == prediction_id))
    session.execute(delete(ShadowRow).where(ShadowRow.prediction_id == prediction_id))
    session.execute(delete(OutcomeRow).where(OutcomeRow.prediction_id == prediction_id))
    session.execute(delete(IdempotencyRow).where(IdempotencyRow.prediction_id == prediction_id))
    named = select(ArtifactRow.digest).where(ArtifactRow.prediction_id == prediction_id)
    # Locked in one order before they are counted: whoever names one of these blobs now is waited for, or waits.
    mine = set(
        session.scalars(
            select(BlobRow.digest).where(BlobRow.digest.in_(named)).order_by(BlobRow.digest).with_for_update()
        )
    )
    session.execute(delete(ArtifactRow).where(ArtifactRow.prediction_id == prediction_id))
    orphans = mine - set(session.scalars(select(ArtifactRow.digest).where(ArtifactRow.digest.in_(mine))))
    session.execute(delete(BlobRow).where(BlobRow.digest.in_(orphans)))
    session.flush()
    return sorted(orphans)


def artifact(session: Session, prediction_id: str, caller: str | None, name: str) -> tuple[str, str]:
    """The digest and the media type of what a prediction made, by its name.

    Raises PredictionNotFound, Erased, NotFinished (it may come to be), NotFound (it will not).
    """
    row = _row(session, prediction_id, caller)
    if found := session.get(ArtifactRow, (prediction_id, name)):
        return found.digest, found.media_type
    if not Status(row.status).finished:
        raise NotFinished("The prediction is still being made; ask again when it has finished")
    raise NotFound("This prediction has no such file; its record lists those it has")


def artifacts(session: Session, prediction_id: str, caller: str | None) -> list[str]:
    """The names of all that the prediction is made of and made, in order."""
    _row(session, prediction_id, caller)
    named = select(ArtifactRow.name).where(ArtifactRow.prediction_id == prediction_id)
    return list(session.scalars(named.order_by(ArtifactRow.name)))


def referenced(session: Session, digests: Iterable[str]) -> set[str]:
    """Those of the digests that some prediction names."""
    wanted, found = list(digests), set[str]()
    for start in range(0, len(wanted), 500):  # databases limit the parameters of one statement
        part = wanted[start : start + 500]
        found |= set(session.scalars(select(ArtifactRow.digest).where(ArtifactRow.digest.in_(part))))
    return found


def _row(session: Session, prediction_id: str, caller: str | None, *, lock: bool = False) -> PredictionRow:
    query = select(PredictionRow).where(PredictionRow.id == prediction_id)
    row = session.scalars(query.with_for_update() if lock else query).one_or_none()
    if row is None or caller not in (None, row.caller):
        raise PredictionNotFound
    if row.erased:
        raise Erased
    return row


def _prediction(row: PredictionRow, reasons: AttributionRow | None) -> Prediction:
    return Prediction.model_validate(
        {
            "id": row.id,
            "status": row.status,
            "stage": row.stage,
            "progress": row.progress,
            "model": {"name": row.model_name, "version": row.model_version, "digest": row.model_digest},
            "subject": row.subject,
            "probability": row.probability,
            "interval": row.interval,
            "folds": row.folds,
            "decision": row.decision,
            "flags": row.flags or [],
            "attribution": reasons and _attribution(reasons),
            "perfusion": row.perfusion,
            "inputs": row.inputs or {},
            "timings": row.timings or {},
            "error": row.error,
            "created": row.created,
            "started": row.started,
            "finished": row.finished,
        }
    )


def _attribution(row: AttributionRow) -> Attribution:
    return Attribution.model_validate({name: getattr(row, name) for name in Attribution.model_fields})


def _cursor(row: PredictionRow) -> str:
    """The row's place in the order: its microseconds since 1970, then its id. A pattern tells every cursor there is."""
    return f"{(row.created - _EPOCH) // timedelta(microseconds=1):016d}{uuid.UUID(row.id).hex}"


def _before(cursor: str) -> ColumnElement[bool]:
    """The condition for rows that come after the cursor's row, in the order newest first."""
    if not re.fullmatch(CURSOR, cursor):
        raise InvalidRequest("The cursor is not one that this service gave out; start again without it")
    created = _EPOCH + timedelta(microseconds=int(cursor[:16]))
    same_instant = and_(PredictionRow.created == created, PredictionRow.id < str(uuid.UUID(cursor[16:])))
    return or_(PredictionRow.created < created, same_instant)
