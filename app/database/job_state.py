"""The worker's side of a prediction: start, advance, succeed, fail.

Each of them writes only for the run that holds the prediction: `start` hands out the next number, and every later
write names it. A worker that was taken for dead (stopped by SIGSTOP, cut off from the network) and wakes up finds that
its number is old, the prediction finished, cancelled or erased, and writes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.core.tracing import TraceContext
from app.database.predictions import Artifact, name_blobs
from app.database.session import now
from app.database.tables import AttributionRow, PredictionRow
from app.sdk.errors import Erased, PredictionNotFound
from app.sdk.types import (
    Attribution,
    Decision,
    Failure,
    Flag,
    Input,
    InputSummary,
    Interval,
    ModelRef,
    PerfusionSummary,
    Stage,
    Status,
)

_ORDER = list(Stage)
_SHARE = {Stage.PREPARE: 0.05, Stage.PREDICT: 0.5, Stage.EXPLAIN: 0.6, Stage.RECORD: 0.95}
"""How much of the work lies behind a prediction that enters a stage; roughly, on a CPU."""


@dataclass(frozen=True)
class JobStudy:
    """All that the work needs to know. ``attempts`` counts the starts since the work last reached a new stage."""

    id: str
    run: int
    attempts: int
    model: ModelRef
    subject: str | None
    created: datetime
    explain: bool
    clinical: dict[str, Any]
    inputs: Mapping[Input, InputSummary]
    place: TraceContext | None = None
    """What took the study in, in the trace of its request."""
    exact: bool = False


@dataclass(frozen=True)
class PredictionResult:
    """The numbers of a finished prediction, and the names of the files it made."""

    probability: float
    interval: Interval | None
    folds: list[float]
    decision: Decision
    flags: list[Flag]
    perfusion: PerfusionSummary | None
    attribution: Attribution | None
    timings: dict[str, float]
    artifacts: Iterable[Artifact] = ()


def start(session: Session, prediction_id: str) -> JobStudy | None:
    """Takes the prediction for a new run. None where there is nothing to do: finished, cancelled, erased, unknown."""
    row = _open_row(session, prediction_id)
    if row is None:
        return None
    row.run += 1
    row.attempts += 1
    row.status = Status.RUNNING
    row.started = row.started or now()
    session.flush()
    return _study(row)


def advance(session: Session, study: JobStudy, stage: Stage) -> bool:
    """Shows that the work has reached ``stage``. False where this run may not go on."""
    row = _held_row(session, study)
    if row is None:
        return False
    if row.stage is None or _ORDER.index(stage) > _ORDER.index(Stage(row.stage)):
        # Progress was made: whatever kills the worker from here on is counted anew.
        row.stage, row.progress, row.attempts = stage, _SHARE[stage], 1
    return True


def succeed(session: Session, study: JobStudy, result: PredictionResult) -> bool:
    """Records the answer, once. False where this run may not."""
    row = _held_row(session, study)
    if row is None:
        return False
    row.status, row.stage, row.progress, row.finished = Status.SUCCEEDED, None, 1.0, now()
    row.probability = result.probability
    row.interval = None if result.interval is None else result.interval.model_dump(mode="json")
    row.folds = list(result.folds)
    row.decision = result.decision.model_dump(mode="json")
    row.flags = [flag.model_dump(mode="json") for flag in result.flags]
    row.perfusion = None if result.perfusion is None else result.perfusion.model_dump(mode="json")
    row.timings = dict(result.timings)
    if result.attribution is not None:
        session.add(AttributionRow(prediction_id=row.id, **result.attribution.model_dump(mode="json")))
    name_blobs(session, row.id, result.artifacts)
    return True


def fail(session: Session, study: JobStudy, failure: Failure) -> bool:
    """Records why there will be no answer. False where this run may not."""
    row = _held_row(session, study)
    if row is None:
        return False
    row.status, row.stage, row.finished = Status.FAILED, None, now()
    row.error = failure.model_dump(mode="json")
    return True


def recorded(session: Session, prediction_id: str) -> JobStudy:
    """The study as it is on record, in whatever state, to be looked at. Raises PredictionNotFound, Erased."""
    row = session.get(PredictionRow, prediction_id)
    if row is None:
        raise PredictionNotFound
    if row.erased:
        raise Erased
    return _study(row)


def unfinished(session: Session, ids: Iterable[str]) -> set[str]:
    """Those of the predictions that are queued or running."""
    open_states = PredictionRow.status.in_([Status.QUEUED, Status.RUNNING])
    return set(session.scalars(select(PredictionRow.id).where(PredictionRow.id.in_(list(ids)), open_states)))


def unfinished_on(session: Session, name: str, version: str) -> bool:
    """Whether a prediction that was accepted for this model version is queued or running."""
    open_states = PredictionRow.status.in_([Status.QUEUED, Status.RUNNING])
    mine = (PredictionRow.model_name == name, PredictionRow.model_version == version)
    return session.scalars(select(PredictionRow.id).where(open_states, *mine).limit(1)).first() is not None


def _study(row: PredictionRow) -> JobStudy:
    return JobStudy(
        id=row.id,
        run=row.run,
        attempts=row.attempts,
        model=ModelRef(name=row.model_name, version=row.model_version, digest=row.model_digest),
        subject=row.subject,
        created=row.created,
        explain=row.explain,
        exact=row.exact,
        clinical=row.clinical or {},
        inputs={Input(name): InputSummary.model_validate(summary) for name, summary in (row.inputs or {}).items()},
        place=TraceContext(row.trace_id, row.span_id) if row.trace_id else None,
    )


def _open_row(session: Session, prediction_id: str) -> PredictionRow | None:
    row = session.scalars(
        select(PredictionRow).where(PredictionRow.id == prediction_id).with_for_update()
    ).one_or_none()
    return None if row is None or row.erased or Status(row.status).finished else row


def _held_row(session: Session, study: JobStudy) -> PredictionRow | None:
    row = _open_row(session, study.id)
    return row if row is not None and row.run == study.run else None
