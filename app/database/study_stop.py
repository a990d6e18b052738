"""Stops the predictions of received studies: what arrives later is kept, and a call begins again.

A pull that began before the stop does not begin again either; one that is asked for later does.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from app.database.membership import among
from app.database.study_tables import StudyPredictionRow, StudyRow
from app.sdk.studies import PullState, StudyState

__all__ = ["UNFINISHED", "lock_of_predictions", "stop", "stop_without_last_prediction"]

UNFINISHED = (StudyState.RECEIVING, StudyState.ASSEMBLING)


def stop(row: StudyRow) -> None:
    """Make no prediction of a study until a call; an assembly in progress becomes void."""
    row.state, row.due, row.completed, row.run = StudyState.CANCELLED, None, None, row.run + 1
    if row.pull is not None and row.pull["state"] == PullState.WAITING:
        row.pull = row.pull | {"stopped": True}


def lock_of_predictions(session: Session, prediction_ids: Sequence[str]) -> list[StudyRow]:
    """Lock the studies of these predictions, in the order in which the reception locks them."""
    links = select(StudyPredictionRow.study_id).where(among(session, StudyPredictionRow.prediction_id, prediction_ids))
    # The order of PostgreSQL depends on the language of the database; "C" and SQLite compare as Python does.
    by = "C" if session.get_bind().dialect.name == "postgresql" else "BINARY"
    query = select(StudyRow).where(StudyRow.id.in_(links)).with_for_update()
    query = query.order_by(StudyRow.caller.collate(by), StudyRow.uid.collate(by))
    return list(session.scalars(query.execution_options(populate_existing=True)))


def stop_without_last_prediction(
    session: Session, locked: Sequence[StudyRow], erased: Sequence[str], *, unfinished: bool
) -> None:
    """Stop the studies whose last revision is among the erased predictions.

    Args:
        session: a writing session.
        locked: the locked studies of the predictions.
        erased: ids of the erased predictions.
        unfinished: whether studies that are received or assembled now are stopped, too.
    """
    link = StudyPredictionRow
    last = select(link.study_id, func.max(link.revision).label("revision")).group_by(link.study_id)
    newest = last.where(among(session, link.study_id, [row.id for row in locked])).subquery()
    found = select(link.study_id).join(
        newest, (newest.c.study_id == link.study_id) & (newest.c.revision == link.revision)
    )
    without = set(session.scalars(found.where(among(session, link.prediction_id, erased))))
    for row in locked:
        if row.id in without:
            row.assembled = None  # it describes erased inputs
            if unfinished or row.state not in UNFINISHED:
                stop(row)
    session.flush()
