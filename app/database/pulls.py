"""Requests to fetch a study from an archive, in the row of the study.

A further request is a new run; the job of an earlier run then ends. The job names the study by the id of its row.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy.orm import Session

from app.database import destinations, studies
from app.database.destinations import Destination
from app.database.received import study_row
from app.database.study_tables import StudyRow
from app.sdk.studies import PullState

__all__ = ["DuePull", "begin", "due", "note"]


@dataclass(frozen=True)
class DuePull:
    """A study that is to be fetched: its UID, and its archive; None if that was removed."""

    uid: str
    source: Destination | None


def begin(session: Session, source: Destination, study_uid: str) -> tuple[str, int]:
    """Note that a study is to be fetched for the tenant of the archive.

    Returns:
        Id of its row, which is created if there is none, and the number of the run.
    """
    row = study_row(session, source.tenant, study_uid)
    run = (row.pull or {}).get("run", 0) + 1
    row.pull = {"run": run, "source": source.name, "archive": source.id, "state": PullState.WAITING, "reason": None}
    session.flush()
    return row.id, run


def due(session: Session, study_id: str, run: int) -> DuePull | None:
    """The request if this run is still to be made; None if it is done or replaced, or the study erased."""
    row = session.get(StudyRow, study_id)
    if row is None or row.pull is None or (row.pull["run"], row.pull["state"]) != (run, PullState.WAITING):
        return None
    return DuePull(row.uid, destinations.find(session, row.pull["archive"]))


def note(session: Session, study_id: str, run: int, state: PullState, reason: str, instances: int | None) -> bool:
    """Note what became of a run, and how many instances the study has; returns False if another run has replaced it."""
    row = session.get(StudyRow, study_id, with_for_update=True)
    if row is None or row.pull is None or row.pull["run"] != run:
        return False
    row.pull = row.pull | {"state": state, "reason": reason or None}
    if instances and row.pull.get("stopped"):  # the study was stopped after this request
        row.expected = instances
    elif instances:
        studies.expect(row, instances)
    session.flush()
    return True
