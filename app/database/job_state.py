"""Writes of a worker to a prediction: start, advance, wait, succeed, fail.

`start` gives each run the next number (a fencing token), and every later write checks it. If a worker was suspended or
cut off from the network and another one has taken over, its number is old and it writes nothing.

`wait` returns a prediction to the queue because of a fault of the environment. Its reason stays visible until the work
reaches a new stage or ends, so it does not disappear during each try.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.core.tracing import TraceContext
from app.database import trials
from app.database.predictions import Artifact, add_artifacts
from app.database.session import now
from app.database.tables import AttributionRow, PredictionRow
from app.database.trials import Trial
from app.sdk.errors import Erased, PredictionNotFound
from app.sdk.series import SeriesSummary
from app.sdk.types import (
    WAITING_FOR_STORAGE,
    Attribution,
    Decision,
    Failure,
    FiguresState,
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
_SHARE = {Stage.PREPARE: 0.05, Stage.PREDICT: 0.5, Stage.EXPLAIN: 0.6, Stage.RECORD: 0.95}  # at its start, on a CPU


@dataclass(frozen=True)
class JobStudy:
    """A study for the worker.

    ``run`` is the fencing token; ``attempts`` counts the starts since the work last reached a new stage;
    ``trace_context`` is the span of the request; ``exact`` selects the slow, exact methods of explanation;
    ``accept_warnings`` asks for a decision in spite of warnings; ``ctp_interval_s`` replaces the time step in the
    header of the CT perfusion series; ``series`` and ``intake_flags`` say what the series of a DICOM
    study were taken for; ``device`` and ``precision`` are those of a recorded answer; ``trial`` seals the answer.
    """

    id: str
    run: int
    attempts: int
    model: ModelRef
    subject: str | None
    created: datetime
    explain: bool
    clinical: dict[str, Any]
    inputs: Mapping[Input, InputSummary]
    trace_context: TraceContext | None = None
    exact: bool = False
    accept_warnings: bool = False
    ctp_interval_s: float | None = None
    study_instance_uid: str | None = None
    accession_number: str | None = None
    series: Sequence[SeriesSummary] = ()
    intake_flags: Sequence[Flag] = ()
    device: str | None = None
    precision: str | None = None
    trial: Trial | None = None


@dataclass(frozen=True)
class WaitingJob:
    """A prediction that waits for the environment: its last run, tries so far, next step, and queue position."""

    id: str
    run: int
    tries: int
    step: int
    queue_position: int


@dataclass(frozen=True)
class PredictionResult:
    """Numbers and files of a finished prediction; ``withheld`` has the warnings that withhold the decision.

    ``figures`` is the state of the figures; None if there is no explanation. ``device`` and ``precision`` computed it.
    ``sealed`` is the sealed answer of a silent trial, which has no number beside it.
    """

    probability: float | None
    interval: Interval | None
    folds: list[float] | None
    decision: Decision | None
    flags: list[Flag]
    perfusion: PerfusionSummary | None
    attribution: Attribution | None
    timings: dict[str, float]
    artifacts: Iterable[Artifact] = ()
    withheld: Sequence[str] = ()
    figures: FiguresState | None = None
    device: str | None = None
    precision: str | None = None
    sealed: bytes | None = None


def start(session: Session, prediction_id: str) -> JobStudy | None:
    """Starts a new run; None if the prediction is finished, cancelled, erased or unknown."""
    row = _open_row(session, prediction_id)
    if row is None:
        return None
    row.run += 1
    row.attempts += 1
    row.status = Status.RUNNING
    row.started = row.started or now()
    session.flush()
    return _study(session, row)


def advance(session: Session, study: JobStudy, stage: Stage) -> bool:
    """Notes that the work has reached ``stage``; False if this run has lost the prediction."""
    row = _held_row(session, study)
    if row is None:
        return False
    if row.stage is None or _ORDER.index(stage) > _ORDER.index(Stage(row.stage)):
        # A new stage is progress, so the count of starts begins again.
        row.stage, row.progress, row.attempts = stage, _SHARE[stage], 1
        row.waiting = None
    return True


def wait(session: Session, study: JobStudy, detail: str, *, step: int) -> bool:
    """Returns the prediction to the queue until the environment works again; False if this run has lost it.

    ``step`` is the number of the step in the log of the job engine, from 1 on, that is to be run again.
    """
    row = _held_row(session, study)
    if row is None:
        return False
    earlier = row.waiting or {"since": now().isoformat(), "tries": 0}
    row.waiting = {
        "reason": WAITING_FOR_STORAGE,
        "detail": detail,
        "since": earlier["since"],
        "tries": earlier["tries"] + 1,
        "step": step,
    }
    row.status, row.attempts = Status.QUEUED, 0
    return True


def waiting(session: Session) -> list[WaitingJob]:
    """The predictions that wait for the environment and that no worker runs, in the order of the queue."""
    row = PredictionRow
    columns = (row.id, row.run, row.waiting, row.queue_position)
    queued = (row.status == Status.QUEUED, row.waiting.is_not(None))
    rows = session.execute(select(*columns).where(*queued).order_by(row.queue_position, row.created))
    return [WaitingJob(key, run, pause["tries"], pause["step"], position) for key, run, pause, position in rows]


def succeed(session: Session, study: JobStudy, result: PredictionResult) -> bool:
    """Records the answer once; False if this run has lost the prediction."""
    row = _held_row(session, study)
    if row is None:
        return False
    row.status, row.stage, row.progress, row.finished = Status.SUCCEEDED, None, 1.0, now()
    row.waiting = None
    row.probability = result.probability
    row.interval = None if result.interval is None else result.interval.model_dump(mode="json")
    row.folds = None if result.folds is None else list(result.folds)
    row.decision = None if result.decision is None else result.decision.model_dump(mode="json")
    row.withheld = list(result.withheld)
    row.flags = [flag.model_dump(mode="json") for flag in result.flags]
    row.perfusion = None if result.perfusion is None else result.perfusion.model_dump(mode="json")
    row.timings = dict(result.timings)
    row.figures = result.figures
    row.device, row.precision = result.device, result.precision
    if result.sealed is not None:
        trials.keep_sealed(session, row.id, result.sealed)
    if result.attribution is not None:
        session.add(AttributionRow(prediction_id=row.id, **result.attribution.model_dump(mode="json")))
    add_artifacts(session, row.id, result.artifacts)
    return True


def fail(session: Session, study: JobStudy, failure: Failure) -> bool:
    """Records the failure; False if this run has lost the prediction."""
    row = _held_row(session, study)
    if row is None:
        return False
    row.status, row.stage, row.finished = Status.FAILED, None, now()
    row.waiting = None
    row.error = failure.model_dump(mode="json")
    return True


def recorded(session: Session, prediction_id: str) -> JobStudy:
    """The study of a prediction in any state, without a new run. Raises PredictionNotFound, Erased."""
    row = session.get(PredictionRow, prediction_id)
    if row is None:
        raise PredictionNotFound
    if row.erased:
        raise Erased
    return _study(session, row)


def unfinished(session: Session, ids: Iterable[str]) -> set[str]:
    """The given predictions that are queued or running."""
    open_states = PredictionRow.status.in_([Status.QUEUED, Status.RUNNING])
    return set(session.scalars(select(PredictionRow.id).where(PredictionRow.id.in_(list(ids)), open_states)))


def any_queued(session: Session) -> bool:
    """Whether a prediction waits for a worker, and not for the environment."""
    waits = (PredictionRow.status == Status.QUEUED, PredictionRow.waiting.is_(None))
    return session.scalars(select(PredictionRow.id).where(*waits).limit(1)).first() is not None


def unfinished_on(session: Session, name: str, version: str) -> bool:
    """Whether a prediction of this model version is queued or running."""
    open_states = PredictionRow.status.in_([Status.QUEUED, Status.RUNNING])
    of_version = (PredictionRow.model_name == name, PredictionRow.model_version == version)
    return session.scalars(select(PredictionRow.id).where(open_states, *of_version).limit(1)).first() is not None


def _study(session: Session, row: PredictionRow) -> JobStudy:
    return JobStudy(
        id=row.id,
        run=row.run,
        attempts=row.attempts,
        model=ModelRef(name=row.model_name, version=row.model_version, digest=row.model_digest),
        subject=row.subject,
        study_instance_uid=row.study_instance_uid,
        accession_number=row.accession_number,
        created=row.created,
        explain=row.explain,
        exact=row.exact,
        accept_warnings=row.accept_warnings,
        ctp_interval_s=row.ctp_interval_s,
        series=[SeriesSummary.model_validate(each) for each in row.series or []],
        intake_flags=[Flag.model_validate(each) for each in row.intake_flags or []],
        clinical=row.clinical or {},
        inputs={Input(name): InputSummary.model_validate(summary) for name, summary in (row.inputs or {}).items()},
        device=row.device,
        precision=row.precision,
        trial=None if row.trial is None else trials.find(session, row.trial),
        trace_context=TraceContext(row.trace_id, row.span_id) if row.trace_id else None,
    )


def _open_row(session: Session, prediction_id: str) -> PredictionRow | None:
    row = session.scalars(
        select(PredictionRow).where(PredictionRow.id == prediction_id).with_for_update()
    ).one_or_none()
    return None if row is None or row.erased or Status(row.status).finished else row


def _held_row(session: Session, study: JobStudy) -> PredictionRow | None:
    row = _open_row(session, study.id)
    return row if row is not None and row.run == study.run else None
