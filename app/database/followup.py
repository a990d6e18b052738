"""Follow-up of predictions: any number of reviews, and one outcome, which can be corrected.

Both are erased with their prediction (`predictions.erase`). Each change locks the row of the prediction first, so an
erasure and a review, or two corrections, run one after the other.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Select, select
from sqlalchemy.orm import Session

from app.database import predictions
from app.database.session import now
from app.database.tables import OutcomeRow, PredictionRow, ReviewRow, ShadowRow
from app.sdk.errors import Conflict, FieldError, InvalidRequest, NotFinished, sealed_by
from app.sdk.followup import Outcome, OutcomeDraft, Review, ReviewDraft, Verdict
from app.sdk.types import PerfusionSummary, Prediction, Status

_PART = 1000  # rows in memory at once
_FOLLOWED = (
    *(PredictionRow.id, PredictionRow.created, PredictionRow.probability, PredictionRow.caller, PredictionRow.subject),
    *(PredictionRow.clinical, PredictionRow.perfusion, PredictionRow.flags, PredictionRow.withheld),
)


@dataclass(frozen=True)
class FollowedUpPrediction:
    """A prediction that succeeded, with the codes of its flags, its outcome, and the agreement of each reviewer."""

    created: datetime
    probability: float
    clinical: Mapping[str, Any]
    perfusion: PerfusionSummary | None
    flags: frozenset[str]
    refractory: bool | None
    verdicts: tuple[bool, ...]
    caller: str = ""
    subject: str | None = None
    withheld: bool = False


@dataclass(frozen=True)
class LiveScore:
    """Probability of one version for a prediction that it answered, or scored as a shadow; ``refractory``: outcome."""

    prediction_id: str
    caller: str
    subject: str | None
    created: datetime
    probability: float
    refractory: bool | None


def add_review(
    session: Session, prediction_id: str, caller: str | None, draft: ReviewDraft, author: str | None = None
) -> tuple[Review, bool]:
    """Adds a review; the last review of the same reviewer, sent again, changes nothing.

    ``author`` is the name of the key or token that sends the review, and its reviewer if the draft names none.

    Returns:
        The stored review, and whether it is new.

    Raises:
        PredictionNotFound, Erased: There is no such prediction, or it is erased.
        NotFinished: The prediction has not succeeded.
        Sealed: A silent trial seals the decision.
        Conflict: Warnings withhold the decision, so there is none to review.
        InvalidRequest: Neither the draft nor a key names the reviewer.
    """
    reviewer = draft.reviewer or author
    if reviewer is None:
        errors = [FieldError("reviewer", "required, because no key or token names the reviewer")]
        raise InvalidRequest("The review names no reviewer. Send a pseudonym as `reviewer`.", errors=errors)
    prediction = _lock(session, prediction_id, caller)
    if prediction.sealed is not None:
        raise sealed_by(prediction.sealed)
    if prediction.decision is None:
        raise Conflict("The decision of this prediction is withheld, so there is none to review")
    by_reviewer = _reviews_of(prediction_id).where(ReviewRow.reviewer == reviewer)
    last = session.scalars(by_reviewer.order_by(ReviewRow.id.desc()).limit(1)).first()
    values = {
        "author": author,
        "verdict": draft.verdict.value,
        "reason": draft.reason and draft.reason.value,
        "comment": draft.comment,
    }
    if last is not None and {name: getattr(last, name) for name in values} == values:
        return _review(last), False
    row = ReviewRow(id=predictions.new_id(), prediction_id=prediction_id, reviewer=reviewer, created=now(), **values)
    session.add(row)
    session.flush()
    return _review(row), True


def reviews(session: Session, prediction_id: str, caller: str | None) -> list[Review]:
    """All reviews of a prediction, oldest first. Raises PredictionNotFound, Erased."""
    predictions.find(session, prediction_id, caller)
    return [_review(row) for row in session.scalars(_reviews_of(prediction_id).order_by(ReviewRow.id))]


def set_outcome(session: Session, prediction_id: str, caller: str | None, draft: OutcomeDraft) -> Outcome:
    """Stores or corrects the outcome. Raises the errors of `add_review`."""
    _lock(session, prediction_id, caller)
    row = session.get(OutcomeRow, prediction_id) or OutcomeRow(prediction_id=prediction_id)
    row.etici = draft.etici
    row.rescue_treatment = draft.rescue_treatment
    row.final_stenosis_percent = draft.final_stenosis_percent
    row.refractory = draft.refractory
    row.recorded = now()
    session.add(row)
    session.flush()
    return _outcome(row)


def outcome(session: Session, prediction_id: str, caller: str | None) -> Outcome | None:
    """The stored outcome; None if there is none. Raises PredictionNotFound, Erased."""
    predictions.find(session, prediction_id, caller)
    row = session.get(OutcomeRow, prediction_id)
    return None if row is None else _outcome(row)


def followed(
    session: Session, name: str, version: str, since: datetime | None = None, until: datetime | None = None
) -> Iterator[FollowedUpPrediction]:
    """Yields the successful predictions of one version, of all tenants, without erased ones, oldest first.

    The rows are read in parts, so years of predictions need little memory. ``since`` and ``until`` limit the time of
    creation; ``until`` itself is excluded.
    """
    query = (
        select(*_FOLLOWED, OutcomeRow.refractory)
        .outerjoin(OutcomeRow, OutcomeRow.prediction_id == PredictionRow.id)
        .where(
            PredictionRow.model_name == name,
            PredictionRow.model_version == version,
            PredictionRow.status == Status.SUCCEEDED.value,
            PredictionRow.probability.is_not(None),  # an erased one has none
        )
        .order_by(PredictionRow.created, PredictionRow.id)
    )
    if since is not None:
        query = query.where(PredictionRow.created >= since)
    if until is not None:
        query = query.where(PredictionRow.created < until)
    verdicts = _last_verdicts(session, name, version)
    for row in session.execute(query.execution_options(yield_per=_PART)):
        yield FollowedUpPrediction(
            created=row.created,
            probability=row.probability,
            clinical=row.clinical or {},
            perfusion=PerfusionSummary.model_validate(row.perfusion) if row.perfusion else None,
            flags=frozenset(flag["code"] for flag in row.flags or []),
            refractory=row.refractory,
            verdicts=tuple(verdict is Verdict.AGREE for verdict in verdicts.get(row.id, {}).values()),
            caller=row.caller,
            subject=row.subject,
            withheld=bool(row.withheld),
        )


def live_scores(
    session: Session, name: str, version: str, since: datetime | None = None, until: datetime | None = None
) -> list[LiveScore]:
    """Scores of one version, of all tenants, without erased predictions, oldest first; limits as in ``followed``.

    A shadow stores the difference to the answer, so its probability is the answer plus the difference.
    """
    answered = PredictionRow.probability.label("score")
    shadow = (PredictionRow.probability + ShadowRow.difference).label("score")
    columns = (PredictionRow.id, PredictionRow.caller, PredictionRow.subject, PredictionRow.created)
    own = select(*columns, answered, OutcomeRow.refractory).where(
        PredictionRow.model_name == name, PredictionRow.model_version == version
    )
    shadowed = (
        select(*columns, shadow, OutcomeRow.refractory)
        .join(ShadowRow, ShadowRow.prediction_id == PredictionRow.id)
        .where(ShadowRow.model_name == name, ShadowRow.version == version, ShadowRow.difference.is_not(None))
    )
    scores = []
    for query in (own, shadowed):
        limited = query.outerjoin(OutcomeRow, OutcomeRow.prediction_id == PredictionRow.id).where(
            PredictionRow.status == Status.SUCCEEDED.value, PredictionRow.probability.is_not(None)
        )
        if since is not None:
            limited = limited.where(PredictionRow.created >= since)
        if until is not None:
            limited = limited.where(PredictionRow.created < until)
        rows = session.execute(limited)
        scores += [
            LiveScore(prediction_id, caller, subject, created, score, refractory)
            for prediction_id, caller, subject, created, score, refractory in rows
            if score is not None
        ]
    return sorted(scores, key=lambda one: (one.created, one.prediction_id))


def _last_verdicts(session: Session, name: str, version: str) -> dict[str, dict[str, Verdict]]:
    """Last verdict by prediction and reviewer, for the predictions of one version."""
    query = (
        select(ReviewRow.prediction_id, ReviewRow.reviewer, ReviewRow.verdict)
        .join(PredictionRow, PredictionRow.id == ReviewRow.prediction_id)
        .where(PredictionRow.model_name == name, PredictionRow.model_version == version)
        .order_by(ReviewRow.id)
    )
    verdicts: dict[str, dict[str, Verdict]] = {}
    for row in session.execute(query):
        verdicts.setdefault(row.prediction_id, {})[row.reviewer] = Verdict(row.verdict)
    return verdicts


def _lock(session: Session, prediction_id: str, caller: str | None) -> Prediction:
    session.execute(select(PredictionRow.id).where(PredictionRow.id == prediction_id).with_for_update())
    prediction = predictions.find(session, prediction_id, caller)
    if prediction.status is not Status.SUCCEEDED:
        raise NotFinished("Only a prediction that succeeded can have a review or an outcome")
    return prediction


def _reviews_of(prediction_id: str) -> Select[ReviewRow]:
    return select(ReviewRow).where(ReviewRow.prediction_id == prediction_id)


def _review(row: ReviewRow) -> Review:
    return Review.model_validate({name: getattr(row, name) for name in Review.model_fields})


def _outcome(row: OutcomeRow) -> Outcome:
    return Outcome.model_validate({name: getattr(row, name) for name in Outcome.model_fields})
