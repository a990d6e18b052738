"""Scores of shadow versions against the recorded answers. No caller's prediction contains them.

A score has a difference of probabilities and whether the two decisions agree, but not the probability of the patient.
The erasure of a prediction erases its score.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from app.database.session import now
from app.database.tables import PredictionRow, ShadowRow
from app.database.upsert import insert_for


@dataclass(frozen=True)
class ShadowScore:
    """Score of one prediction.

    ``difference`` is the probability of the shadow ``version`` minus that of the version that ``answered``; None, with
    ``error``, if the shadow failed. ``agrees`` is also None if the decision of the answer is withheld.
    """

    prediction_id: str
    name: str
    version: str
    answered: str
    difference: float | None = None
    agrees: bool | None = None
    error: str | None = None


@dataclass(frozen=True)
class ShadowSummary:
    """Comparison of a shadow version with the version that answered, in differences of probability."""

    version: str
    answered: str
    scored: int
    failed: int
    decided: int
    agreed: int
    mean_difference: float | None
    mean_absolute_difference: float | None
    largest_difference: float | None


def store(session: Session, score: ShadowScore) -> bool:
    """Stores a score once; False if the prediction is erased or has no answer."""
    row = session.scalars(
        select(PredictionRow).where(PredictionRow.id == score.prediction_id).with_for_update()
    ).one_or_none()
    if row is None or row.erased or row.probability is None:
        return False
    values = {
        "model_name": score.name,
        "version": score.version,
        "answered": score.answered,
        "difference": score.difference,
        "agrees": score.agrees,
        "error": score.error,
        "created": now(),
    }
    insert = insert_for(session, ShadowRow).values(prediction_id=score.prediction_id, **values)
    session.execute(insert.on_conflict_do_update(index_elements=["prediction_id"], set_=values))
    return True


def report(session: Session, name: str) -> list[ShadowSummary]:
    """One summary per pair of a shadow and an answering version, newest shadow first."""
    pair = (ShadowRow.version, ShadowRow.answered)
    query = (
        select(
            *pair,
            func.count(ShadowRow.difference),
            func.count(ShadowRow.error),
            func.count(ShadowRow.agrees),
            func.count(ShadowRow.prediction_id).filter(ShadowRow.agrees.is_(True)),
            func.avg(ShadowRow.difference),
            func.avg(func.abs(ShadowRow.difference)),
            func.max(func.abs(ShadowRow.difference)),
        )
        .where(ShadowRow.model_name == name)
        .group_by(*pair)
        .order_by(func.max(ShadowRow.created).desc())
    )
    return [ShadowSummary(*row) for row in session.execute(query)]
