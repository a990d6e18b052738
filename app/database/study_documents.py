"""Makes the documents of received studies from their rows: state, series, predictions."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from app.database.study_tables import InstanceRow, StudyPredictionRow, StudyRow
from app.database.tables import PredictionRow
from app.sdk.series import SeriesRole
from app.sdk.studies import ReceivedStudy, StudyPrediction, StudyPull, StudySeries, StudyState
from app.sdk.types import Failure

__all__ = ["documents"]


def documents(session: Session, rows: Sequence[StudyRow]) -> list[ReceivedStudy]:
    """Studies with their series and predictions, by the same number of queries for any number of studies."""
    session.flush()
    ids = [row.id for row in rows]
    links = select(StudyPredictionRow).join(PredictionRow, PredictionRow.id == StudyPredictionRow.prediction_id)
    links = links.where(StudyPredictionRow.study_id.in_(ids), PredictionRow.erased.is_(None))
    made: dict[str, list[StudyPredictionRow]] = defaultdict(list)
    for link in session.scalars(links.order_by(StudyPredictionRow.study_id, StudyPredictionRow.revision)):
        made[link.study_id].append(link)
    counted = select(InstanceRow.study_id, InstanceRow.series_uid, func.count()).where(InstanceRow.study_id.in_(ids))
    received: dict[str, dict[str, int]] = defaultdict(dict)
    for study_id, uid, number in session.execute(counted.group_by(InstanceRow.study_id, InstanceRow.series_uid)):
        received[study_id][uid] = int(number)
    return [_document(row, received[row.id], made[row.id]) for row in rows]


def _document(row: StudyRow, received: Mapping[str, int], made: Sequence[StudyPredictionRow]) -> ReceivedStudy:
    return ReceivedStudy(
        uid=row.uid,
        state=StudyState(row.state),
        created=row.created,
        received=row.received,
        due=row.due if row.state == StudyState.RECEIVING else None,
        completed=row.completed,
        instances=row.instances,
        expected=row.expected,
        conflicts=row.conflicts,
        clinical=row.clinical is not None,
        roles={name: SeriesRole(role) for name, role in (row.roles or {}).items()},
        series=_series(row, received),
        predictions=[
            StudyPrediction(revision=each.revision, id=each.prediction_id, why=each.why, created=each.created)
            for each in made
        ],
        error=None if row.error is None else Failure.model_validate(row.error),
        pull=None if row.pull is None else StudyPull.model_validate(row.pull),
    )


def _series(row: StudyRow, received: Mapping[str, int]) -> list[StudySeries]:
    """Received series, with what each was taken for; series that came after the last assembly have no role."""
    known = [StudySeries(**{**each, "received": received.get(each["uid"], 0)}) for each in row.series or []]
    later = sorted(received.keys() - {each.uid for each in known})
    return known + [StudySeries(uid=uid, received=received[uid]) for uid in later]
