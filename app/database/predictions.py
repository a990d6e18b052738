"""Queries and changes of predictions for the API.

Design notes:
- A caller (a tenant) sees only the predictions of the tenant; other ids are answered as unknown.
- Inputs and results are artifacts: names for blobs. Rows and artifacts change in one transaction; the bytes are written
  before it and deleted after it, so an artifact never refers to missing bytes.
- Ids are UUIDs of version 7, which sort by time.
- The writes of the worker are in `app.database.job_state`.
"""

from __future__ import annotations

import secrets
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from pydantic import ValidationError
from sqlalchemy import ColumnElement, Select, exists, select
from sqlalchemy.orm import Session

from app.core.tracing import TraceContext
from app.database import destinations, fair_queue, idempotency, paging, trials
from app.database.row_erasure import erase_rows
from app.database.session import now
from app.database.study_tables import ReturnAddressRow
from app.database.tables import ArtifactRow, AttributionRow, BlobRow, PredictionRow, ReviewRow
from app.database.upsert import insert_for
from app.sdk import published_scores
from app.sdk.clinical import ClinicalRecord
from app.sdk.errors import Conflict, Erased, FiguresNotReady, NotFinished, NotFound, PredictionNotFound, sealed_by
from app.sdk.followup import ReviewerVerdict
from app.sdk.published_scores import ScoreSummary
from app.sdk.series import SeriesSummary
from app.sdk.sorting import Sort
from app.sdk.types import (
    Attribution,
    FiguresState,
    Flag,
    Input,
    InputSummary,
    ModelRef,
    Prediction,
    PredictionPage,
    Priority,
    Status,
)

VOLUME = "application/octet-stream"
FIGURES, REPORT = "figures/", "report.html"  # names of the artifacts that are drawn after the answer


@dataclass(frozen=True)
class NewPrediction:
    """An accepted study: checked and stored, but not queued.

    ``trace_context`` is the span of the request; the idempotency key is kept for ``keep_key`` seconds; ``exact``
    selects the slow, exact methods of explanation; ``accept_warnings`` asks for a decision in spite of warnings;
    ``ctp_interval_s`` replaces the time step in the header of the CT perfusion series; ``series`` and ``intake_flags``
    say what the series of a DICOM study were taken for; ``return_address`` is sealed.
    """

    id: str
    caller: str
    model: ModelRef
    subject: str | None
    explain: bool
    clinical: dict[str, Any]
    inputs: Mapping[Input, InputSummary]
    trace_context: TraceContext | None = None
    idempotency_key: str | None = None
    body_digest: str = ""
    priority: Priority = Priority.ACUTE
    keep_key: float = 86400.0
    exact: bool = False
    accept_warnings: bool = False
    ctp_interval_s: float | None = None
    study_instance_uid: str | None = None
    accession_number: str | None = None
    series: Sequence[SeriesSummary] = ()
    intake_flags: Sequence[Flag] = ()
    return_address: bytes | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Added:
    """A new prediction: its position in the queue, and the silent trial that seals it."""

    queue_position: int
    trial: str | None


@dataclass(frozen=True)
class Artifact:
    """A blob with its name in a prediction, such as ``report.html``."""

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


def add(session: Session, new: NewPrediction) -> Added:
    """Inserts a queued prediction with its inputs, and completes its idempotency key.

    A silent trial of the site seals the prediction: it gets no explanation, and results go back nowhere.

    Raises RequestInProgress if another request has completed the key, and the errors of `trials.seals`.
    """
    trial = trials.seals(trials.running_at(session, new.caller), new.model)
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
            study_instance_uid=new.study_instance_uid,
            accession_number=new.accession_number,
            explain=new.explain and trial is None,
            trial=trial,
            exact=new.exact,
            accept_warnings=new.accept_warnings,
            ctp_interval_s=new.ctp_interval_s,
            series=[each.model_dump(mode="json") for each in new.series] or None,
            intake_flags=[each.model_dump(mode="json") for each in new.intake_flags] or None,
            clinical=new.clinical,
            inputs={name.value: summary.model_dump(mode="json") for name, summary in new.inputs.items()},
            trace_id=new.trace_context and new.trace_context.trace,
            span_id=new.trace_context and new.trace_context.span,
            body_digest=new.body_digest,
        )
    )
    session.flush()
    inputs = [Artifact(f"inputs/{name}.nii", each.sha256, each.bytes, VOLUME) for name, each in new.inputs.items()]
    add_artifacts(session, new.id, inputs)
    if trial is not None:
        trials.enter(session, trial, new.id)
    elif new.return_address is not None:
        session.add(ReturnAddressRow(prediction_id=new.id, sealed=new.return_address))
    if new.idempotency_key is not None:
        idempotency.complete(session, new.caller, new.idempotency_key, new.id, new.body_digest, keep=new.keep_key)
    return Added(queue_position, trial)


def add_artifacts(session: Session, prediction_id: str, artifacts: Iterable[Artifact]) -> None:
    """Adds artifacts to a prediction; the storage has their bytes already."""
    ordered = sorted(artifacts, key=lambda artifact: artifact.digest)  # the same order of locks prevents a deadlock
    for artifact in ordered:
        blob = insert_for(session, BlobRow).values(digest=artifact.digest, bytes=artifact.bytes)
        # The update of an equal row locks it, so that no erasure deletes it before this transaction ends.
        session.execute(blob.on_conflict_do_update(index_elements=["digest"], set_={"bytes": artifact.bytes}))
        session.add(
            ArtifactRow(
                prediction_id=prediction_id, name=artifact.name, digest=artifact.digest, media_type=artifact.media_type
            )
        )
    session.flush()


def find(session: Session, prediction_id: str, caller: str | None) -> Prediction:
    """A prediction in its present state. Raises PredictionNotFound, Erased.

    ``caller`` is the tenant of the caller, here and below; None stands for the operator, who may see all.
    """
    row = _row(session, prediction_id, caller)
    return _with_verdicts(session, row)


def page(
    session: Session,
    caller: str | None,
    *,
    limit: int = 50,
    cursor: str | None = None,
    subject: str | None = None,
    study_instance_uid: str | None = None,
    accession_number: str | None = None,
    model: str | None = None,
    status: Status | None = None,
    created_after: datetime | None = None,
    subject_contains: str | None = None,
    reviewed: bool | None = None,
    sort: Sort = Sort.NEWEST,
) -> PredictionPage:
    """Predictions of a caller in the given order, without erased ones.

    The cursor is `PredictionPage.next` of the page before; the model is a name, or ``name@1.2.0``; case is ignored in
    ``subject_contains``. Raises InvalidRequest for a cursor that is not one of this service.
    """
    name, _, version = (model or "").partition("@")
    wanted = {
        PredictionRow.caller: caller,
        PredictionRow.subject: subject,
        PredictionRow.study_instance_uid: study_instance_uid,
        PredictionRow.accession_number: accession_number,
        PredictionRow.model_name: name or None,
        PredictionRow.model_version: version or None,
        PredictionRow.status: status,
    }
    conditions: list[ColumnElement[bool]] = [PredictionRow.erased.is_(None)]
    conditions += [column == value for column, value in wanted.items() if value is not None]
    if created_after is not None:
        conditions.append(PredictionRow.created > created_after)
    if subject_contains is not None:
        conditions.append(PredictionRow.subject.icontains(subject_contains, autoescape=True))
    if reviewed is not None:
        has_review = exists().where(ReviewRow.prediction_id == PredictionRow.id)
        conditions.append(has_review if reviewed else ~has_review)
    rows: list[PredictionRow] = []
    for part in paging.parts(sort, cursor):
        found: Select[Any] = select(PredictionRow).where(*conditions, *part.conditions).order_by(*part.order)
        if (missing := limit + 1 - len(rows)) > 0:
            if subject_contains is not None:  # reads all subjects: PostgreSQL finds them in an index, without the rows
                ids_found = found.with_only_columns(PredictionRow.id).limit(missing)
                found = select(PredictionRow).where(PredictionRow.id.in_(ids_found)).order_by(*part.order)
            rows += session.scalars(found.limit(missing))
    more, rows = len(rows) > limit, rows[:limit]
    ids = [row.id for row in rows]
    of_rows = select(AttributionRow).where(AttributionRow.prediction_id.in_(ids))
    attributions = {row.prediction_id: row for row in session.scalars(of_rows)}
    verdicts = _verdicts(session, ids)
    items = [_prediction(row, attributions.get(row.id), verdicts.get(row.id, [])) for row in rows]
    return PredictionPage(items=items, next=paging.cursor_of(rows[-1], sort) if more else None)


def newest_of(session: Session, caller: str | None, subjects: Sequence[str]) -> Prediction | None:
    """The newest prediction of these subjects that was neither cancelled nor erased; None if there is none."""
    conditions: list[ColumnElement[bool]] = [
        PredictionRow.subject.in_(list(subjects)),
        PredictionRow.erased.is_(None),
        PredictionRow.status != Status.CANCELLED,
    ]
    if caller is not None:
        conditions.append(PredictionRow.caller == caller)
    newest_first = (PredictionRow.created.desc(), PredictionRow.id.desc())
    row = session.scalars(select(PredictionRow).where(*conditions).order_by(*newest_first).limit(1)).first()
    return None if row is None else _with_verdicts(session, row)


def cancel(session: Session, prediction_id: str, caller: str | None) -> Prediction:
    """Cancels a queued or running prediction; its worker writes nothing more. A cancelled one stays as it is.

    Raises PredictionNotFound, Erased, and Conflict if the prediction has finished.
    """
    row = _row(session, prediction_id, caller, lock=True)
    if Status(row.status) in (Status.SUCCEEDED, Status.FAILED):
        raise Conflict("The prediction has finished and cannot be cancelled")
    if row.status != Status.CANCELLED:
        row.status, row.stage, row.finished, row.waiting = Status.CANCELLED, None, now(), None
        session.flush()
    return _prediction(row, None, [])


def erase(session: Session, prediction_id: str, caller: str | None) -> list[str]:
    """Erases inputs, clinical record, results, attribution, reviews and outcome; an empty row stays.

    Returns the digests without any reference, for `Storage.delete` after the commit. Raises PredictionNotFound, Erased.
    """
    _row(session, prediction_id, caller)  # not locked: the study of a prediction is locked before it
    erased = erase_rows(session, [prediction_id])
    if prediction_id not in erased:  # another transaction was faster
        raise Erased
    return erased[prediction_id][0]


def artifact(session: Session, prediction_id: str, caller: str | None, name: str) -> tuple[str, str]:
    """Digest and media type of an artifact. Raises PredictionNotFound, Erased.

    Raises Sealed if a silent trial seals all but the inputs.
    Raises NotFinished if the prediction may still make the artifact, FiguresNotReady if it is a figure or the report
    that is not drawn yet, and NotFound if the prediction has finished without it.
    """
    row = _row(session, prediction_id, caller)
    if artifact_row := session.get(ArtifactRow, (prediction_id, name)):
        return artifact_row.digest, artifact_row.media_type
    if row.trial is not None:
        raise sealed_by(row.trial)
    if not Status(row.status).finished:
        raise NotFinished("The prediction is not finished. Send the request again when it has finished")
    if name.startswith(FIGURES) or name == REPORT:
        if row.figures == FiguresState.PENDING:
            raise FiguresNotReady(
                "The figures and the report are drawn at the first request. Send the request again", retry_after=1.0
            )
        if row.figures == FiguresState.FAILED:
            raise FiguresNotReady(
                "The figures and the report could not be drawn; the service tries again. The answer is not affected",
                retry_after=60.0,
            )
    raise NotFound("The prediction has no such file. Its record lists the files that exist")


def artifacts(session: Session, prediction_id: str, caller: str | None) -> list[str]:
    """Names of all artifacts of a prediction, in order. Raises PredictionNotFound, Erased."""
    _row(session, prediction_id, caller)
    names = select(ArtifactRow.name).where(ArtifactRow.prediction_id == prediction_id)
    return list(session.scalars(names.order_by(ArtifactRow.name)))


def _row(session: Session, prediction_id: str, caller: str | None, *, lock: bool = False) -> PredictionRow:
    query = select(PredictionRow).where(PredictionRow.id == prediction_id)
    row = session.scalars(query.with_for_update() if lock else query).one_or_none()
    if row is None or caller not in (None, row.caller):
        raise PredictionNotFound
    if row.erased:
        raise Erased
    return row


_SAME_NAME = (
    *(
        "id",
        "status",
        "stage",
        "progress",
        "waiting",
        "subject",
        "probability",
        "interval",
        "folds",
        "decision",
        "perfusion",
        "figures",
    ),
    *("accept_warnings", "ctp_interval_s", "series", "error", "created", "started", "finished"),
    *("study_instance_uid", "accession_number"),
)
"""Fields of `Prediction` that are columns of the same name."""


def _verdicts(session: Session, ids: Sequence[str]) -> dict[str, list[ReviewerVerdict]]:
    """The last verdict of each reviewer by prediction, oldest first."""
    last: dict[str, dict[str, ReviewRow]] = {}
    for row in session.scalars(select(ReviewRow).where(ReviewRow.prediction_id.in_(ids)).order_by(ReviewRow.id)):
        by_reviewer = last.setdefault(row.prediction_id, {})
        by_reviewer.pop(row.reviewer, None)  # a changed verdict moves to the end
        by_reviewer[row.reviewer] = row
    return {
        prediction_id: [
            ReviewerVerdict.model_validate({name: getattr(row, name) for name in ReviewerVerdict.model_fields})
            for row in by_reviewer.values()
        ]
        for prediction_id, by_reviewer in last.items()
    }


def _with_verdicts(session: Session, row: PredictionRow) -> Prediction:
    verdicts = _verdicts(session, [row.id]) if row.status == Status.SUCCEEDED else {}
    prediction = _prediction(row, session.get(AttributionRow, row.id), verdicts.get(row.id, []))
    more: dict[str, object] = {}
    if deliveries := destinations.of_prediction(session, row.id):
        more["deliveries"] = deliveries
    if row.status == Status.SUCCEEDED and row.trial is None and (scores := _scores(row)):
        more["scores"] = scores
    return prediction.model_copy(update=more)


def _scores(row: PredictionRow) -> list[ScoreSummary] | None:
    """Published scores of the patient; None if an earlier release stored a record that this one cannot read."""
    try:
        return published_scores.of_record(ClinicalRecord.model_validate(row.clinical or {}))
    except ValidationError:
        return None


def _prediction(
    row: PredictionRow, attribution: AttributionRow | None, verdicts: Sequence[ReviewerVerdict]
) -> Prediction:
    return Prediction.model_validate(
        {name: getattr(row, name) for name in _SAME_NAME}
        | {
            "model": {"name": row.model_name, "version": row.model_version, "digest": row.model_digest},
            "flags": row.flags or [],
            "withheld": row.withheld or [],
            "attribution": attribution and _attribution(attribution),
            "inputs": row.inputs or {},
            "timings": row.timings or {},
            "sealed": row.trial,
            "verdicts": list(verdicts),
        }
    )


def _attribution(row: AttributionRow) -> Attribution:
    return Attribution.model_validate({name: getattr(row, name) for name in Attribution.model_fields})
