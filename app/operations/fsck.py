"""`rlvo fsck`: check that database rows and blobs agree, and repair what can be repaired.

Design notes:
- The service may run at the same time: blobs that are too young to judge are skipped.
- What is found is kept in files, because a lost disk can lose a million blobs.
- Damaged blobs go to quarantine and are not served any more. Their predictions keep their numbers.
- A missing blob is reported; it can only come back from a backup.
- Erased predictions that a restore of the database has brought back are erased again.
- Files that other users of the machine may read are reported.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import groupby, islice

from sqlalchemy import CompoundSelect, literal, select, union_all
from sqlalchemy.orm import Session

from app.core.config import Settings
from app.core.filesystem import is_exposed
from app.database import audit, job_state
from app.database.row_erasure import referenced
from app.database.session import Database
from app.database.study_tables import InstanceRow
from app.database.tables import ArtifactRow, PredictionRow
from app.operations.findings import Findings
from app.sdk.errors import InternalError
from app.sdk.types import Failure, Status
from app.storage.factory import secure, storage_of
from app.storage.local import GRACE, Storage
from app.worker.erasure import Eraser, LedgerComparison
from app.worker.queue import Queue

PART = 500  # rows, or files, in memory at once


@dataclass
class ConsistencyReport:
    """Result of a check; ``missing`` and ``damaged`` are digests with the ids of the predictions that name them."""

    blobs: int = 0
    missing: Findings = field(default_factory=Findings)
    damaged: Findings = field(default_factory=Findings)
    orphans: Findings = field(default_factory=Findings)
    stuck: list[str] = field(default_factory=list)
    audit_broken_at: int | None = None
    ledger: LedgerComparison = field(default_factory=LedgerComparison)
    exposed: list[str] = field(default_factory=list)

    @property
    def sound(self) -> bool:
        """Whether no data is lost, nothing erased is back and no other user can read; orphans only use disk space."""
        faults = (self.missing, self.damaged, self.stuck, self.exposed, self.ledger.undone)
        return not any(faults) and self.audit_broken_at is None

    def lines(self) -> Iterator[str]:
        """Yield the findings as text, one per line."""
        yield f"{self.blobs} blobs named by predictions"
        for name, digests in (("missing", self.missing), ("damaged", self.damaged)):
            for digest, ids in digests:
                yield f"{name}: {digest}, named by {', '.join(ids)}"
        yield from (f"stuck: {prediction_id} is unfinished and has no job" for prediction_id in self.stuck)
        if self.audit_broken_at is not None:
            yield f"the audit trail is broken at entry {self.audit_broken_at}"
        yield from self.ledger.lines()
        yield from (f"exposed: other users of this machine can read the files of {name}" for name in self.exposed)
        if self.orphans:
            yield f"{len(self.orphans)} orphans: blobs that no prediction names"


def fsck(settings: Settings, *, deep: bool = False, mend: bool = False) -> ConsistencyReport:
    """Compare database rows and blobs; with ``deep``, also read every blob and recompute its digest.

    With ``mend``, repeat erasures of the ledger first, so their predictions name no blob any more. Then quarantine
    damaged blobs, delete orphans, fail predictions that have no job, and take the permissions of other users.
    """
    database, storage = Database(settings.database), storage_of(settings)
    queue, eraser, report = Queue(database), Eraser.of(settings, database, storage), ConsistencyReport()
    report.exposed = [name for name, path in settings.private_paths.items() if is_exposed(path)]
    report.ledger = eraser.replay(actor="operator") if mend else eraser.compare()
    with database.reading() as session:
        for digest, ids in _named(session):
            report.blobs += 1
            if not storage.exists(digest):
                report.missing.add(digest, ids)
            elif deep and not storage.verify(digest):
                report.damaged.add(digest, ids)
        open_states = PredictionRow.status.in_([Status.QUEUED, Status.RUNNING])
        waiting = {job.id for job in job_state.waiting(session)}  # their jobs are queued again by the next worker
        unfinished = [one for one in session.scalars(select(PredictionRow.id).where(open_states)) if one not in waiting]
        report.audit_broken_at = audit.verify(session).broken_at
        stored = storage.older_than(GRACE)
        while part := list(islice(stored, PART)):
            for digest in sorted(set(part) - referenced(session, part)):
                report.orphans.add(digest)
    alive = queue.alive(unfinished) if unfinished else set()
    report.stuck = [prediction_id for prediction_id in unfinished if prediction_id not in alive]
    if mend:
        secure(settings)
        _repair(report, database, storage, queue)
    database.close()
    return report


def _named(session: Session) -> Iterator[tuple[str, list[str]]]:
    """Each digest that the database names, in order, with the ids that name it; not all of them in memory at once."""
    of_instances = select(InstanceRow.digest, literal("study ") + InstanceRow.study_id)
    names: CompoundSelect[str, str] = union_all(
        select(ArtifactRow.digest, ArtifactRow.prediction_id), of_instances.where(InstanceRow.digest.is_not(None))
    )
    ordered = session.execute(names.order_by("digest").execution_options(yield_per=PART))
    for digest, rows in groupby(ordered, lambda row: str(row[0])):
        yield digest, [str(row[1]) for row in rows]


def _repair(report: ConsistencyReport, database: Database, storage: Storage, queue: Queue) -> None:
    for digest, _ in report.damaged:
        storage.quarantine(digest)
    orphans = (digest for digest, _ in report.orphans)
    while part := list(islice(orphans, PART)):
        with database.reading() as session:
            named_meanwhile = referenced(session, part)
        for digest in part:
            if digest not in named_meanwhile:
                storage.delete(digest)
    lost = InternalError("The job of this prediction was lost; send the study again")
    for prediction_id in report.stuck:
        with database.session() as session:
            if study := job_state.start(session, prediction_id):
                job_state.fail(session, study, Failure(code=lost.code, title=lost.title, detail=lost.detail))
                queue.queue_webhooks(session, prediction_id)
                audit.append(session, "operator", "prediction.failed", prediction_id, {"code": lost.code})
