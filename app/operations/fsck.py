"""`rlvo fsck`: do the rows and the blobs still agree, and are the bytes the ones that were stored?

Notable choices:
- It may run beside a working service: what is too young to judge is left alone.
- Damaged bytes are put into quarantine, so that they are never served; the predictions that name them keep their
  numbers and say that the file is missing.
- What a backup cannot bring back is told and never invented: a missing blob stays missing.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from sqlalchemy import select

from app.core.config import Settings
from app.database import audit, job_state, predictions
from app.database.session import Database
from app.database.tables import ArtifactRow, PredictionRow
from app.sdk.errors import InternalError
from app.sdk.types import Failure, Status
from app.storage.factory import storage_of
from app.storage.local import GRACE, Storage
from app.worker.queue import Queue


@dataclass
class ConsistencyReport:
    """What was found. ``missing`` and ``damaged`` are digests with the ids of the predictions that name them."""

    blobs: int = 0
    missing: dict[str, list[str]] = field(default_factory=dict)
    damaged: dict[str, list[str]] = field(default_factory=dict)
    orphans: list[str] = field(default_factory=list)
    stuck: list[str] = field(default_factory=list)
    audit_broken_at: int | None = None

    @property
    def sound(self) -> bool:
        """Whether nothing is lost. Orphans only take room."""
        return not (self.missing or self.damaged or self.stuck) and self.audit_broken_at is None

    def lines(self) -> list[str]:
        """The findings in words, one a line."""
        found = [f"{self.blobs} blobs named by predictions"]
        for name, digests in (("missing", self.missing), ("damaged", self.damaged)):
            found += [f"{name}: {digest}, named by {', '.join(ids)}" for digest, ids in sorted(digests.items())]
        found += [f"stuck: {prediction_id} is unfinished and nothing works on it" for prediction_id in self.stuck]
        if self.audit_broken_at is not None:
            found.append(f"the audit is broken at entry {self.audit_broken_at}")
        if self.orphans:
            found.append(f"{len(self.orphans)} blobs that no prediction names")
        return found


def fsck(settings: Settings, *, deep: bool = False, mend: bool = False) -> ConsistencyReport:
    """Compares rows and blobs.

    :param deep: also recompute every blob's digest; reads all that is stored
    :param mend: quarantine damaged blobs, delete orphans, and fail predictions that nothing works on
    """
    database, storage = Database(settings.database), storage_of(settings)
    queue, report = Queue(database), ConsistencyReport()
    with database.reading() as session:
        named: dict[str, list[str]] = {}
        for digest, prediction_id in session.execute(select(ArtifactRow.digest, ArtifactRow.prediction_id)):
            named.setdefault(digest, []).append(prediction_id)
        open_states = PredictionRow.status.in_([Status.QUEUED, Status.RUNNING])
        unfinished = list(session.scalars(select(PredictionRow.id).where(open_states)))
        report.audit_broken_at = audit.verify(session).broken_at
    report.blobs = len(named)
    for digest, ids in named.items():
        if not storage.exists(digest):
            report.missing[digest] = ids
        elif deep and not storage.verify(digest):
            report.damaged[digest] = ids
    report.orphans = [digest for digest in storage.older_than(GRACE) if digest not in named]
    alive = queue.alive(unfinished) if unfinished else set()
    report.stuck = [prediction_id for prediction_id in unfinished if prediction_id not in alive]
    if mend:
        _mend(report, database, storage, queue)
    database.close()
    return report


def _mend(report: ConsistencyReport, database: Database, storage: Storage, queue: Queue) -> None:
    for digest in report.damaged:
        storage.quarantine(digest)
    with database.reading() as session:
        named_since = predictions.referenced(session, report.orphans)
    for digest in report.orphans:
        if digest not in named_since:
            storage.delete(digest)
    lost = InternalError("The work on this prediction was lost; send the study again")
    for prediction_id in report.stuck:
        with database.session() as session:
            if study := job_state.start(session, prediction_id):
                job_state.fail(session, study, Failure(code=lost.code, title=lost.title, detail=lost.detail))
                queue.announce(session, prediction_id)
                audit.append(session, "operator", "prediction.failed", prediction_id, {"code": lost.code})
