"""Erasure of the rows of predictions, many in one transaction.

Design notes:
- The statements take sets of predictions, so that a retention sweep needs few of them.
- Studies, then their predictions, and then blobs are locked, each in the order of their keys. The reception and the
  calls of a study do the same, so transactions at the same time wait for each other and do not deadlock.
- A study whose last prediction is erased is stopped: what arrives late must not undo the erasure.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

from sqlalchemy import delete, select, update
from sqlalchemy.orm import Session

from app.database.destination_tables import DeliveryRow
from app.database.membership import among
from app.database.session import now
from app.database.study_stop import lock_of_predictions, stop_without_last_prediction
from app.database.study_tables import InstanceRow, ReturnAddressRow
from app.database.tables import (
    ArtifactRow,
    AttributionRow,
    BlobRow,
    IdempotencyRow,
    OutcomeRow,
    PredictionRow,
    ReviewRow,
    ShadowRow,
)
from app.database.trial_tables import TrialEntryRow
from app.sdk.types import Status

_IN_ONE_STATEMENT = 500  # databases limit the parameters of one statement
_DELETED = (
    AttributionRow,
    ReviewRow,
    ShadowRow,
    OutcomeRow,
    IdempotencyRow,
    ReturnAddressRow,
    DeliveryRow,
    TrialEntryRow,
)
_EMPTIED = (
    *("stage", "waiting", "subject", "study_instance_uid", "accession_number", "clinical", "inputs"),
    *("trace_id", "span_id", "body_digest", "series", "intake_flags", "probability", "interval", "folds", "decision"),
    *("withheld", "flags", "perfusion", "device", "precision", "figures", "figures_queued", "timings", "error"),
)


def erase_rows(
    session: Session, ids: Iterable[str], *, stops_unfinished: bool = True
) -> dict[str, tuple[list[str], int]]:
    """Erases inputs, clinical records, results, attributions, reviews and outcomes; empty rows stay.

    Args:
        session: a writing session.
        ids: the predictions.
        stops_unfinished: whether a study that is received or assembled now is stopped, too, if its last prediction is
            among these.

    Returns:
        For each prediction that was not erased before: the digests that nothing names any more, and the number of its
        other digests. A digest that several of the predictions named is returned for one of them.
    """
    row, ids = PredictionRow, list(ids)
    studies = lock_of_predictions(session, ids)
    found = select(row.id).where(among(session, row.id, ids), row.erased.is_(None)).order_by(row.id).with_for_update()
    erased, at = list(session.scalars(found)), now()
    these, unfinished = among(session, row.id, erased), row.status.in_([Status.QUEUED, Status.RUNNING])
    for change in (
        update(row).where(these, unfinished).values(status=Status.CANCELLED, finished=at),
        update(row).where(these).values(erased=at, progress=0.0, **dict.fromkeys(_EMPTIED)),
    ):
        session.execute(change.execution_options(synchronize_session=False))
    stop_without_last_prediction(session, studies, erased, unfinished=stops_unfinished)
    for table in _DELETED:
        session.execute(delete(table).where(among(session, table.prediction_id, erased)))
    named: dict[str, set[str]] = {prediction_id: set() for prediction_id in erased}
    names = select(ArtifactRow.prediction_id, ArtifactRow.digest).where(
        among(session, ArtifactRow.prediction_id, erased)
    )
    for prediction_id, digest in session.execute(names):
        named[prediction_id].add(digest)
    unnamed = _delete_names(session, erased, set[str]().union(*named.values()))
    session.expire_all()
    result: dict[str, tuple[list[str], int]] = {}
    for prediction_id, digests in named.items():
        orphans = digests & unnamed
        unnamed -= orphans
        result[prediction_id] = sorted(orphans), len(digests) - len(orphans)
    return result


def referenced(session: Session, digests: Iterable[str]) -> set[str]:
    """The given digests that at least one prediction or received instance refers to."""
    found = set[str]()
    for part in _parts(digests):
        found |= set(session.scalars(select(ArtifactRow.digest).where(among(session, ArtifactRow.digest, part))))
        found |= _of_instances(session, part)
    return found


def _of_instances(session: Session, digests: Sequence[str]) -> set[str]:
    """The given digests that a received instance refers to."""
    found = session.scalars(select(InstanceRow.digest).where(among(session, InstanceRow.digest, digests)))
    return {digest for digest in found if digest is not None}


def _delete_names(session: Session, ids: Sequence[str], digests: set[str]) -> set[str]:
    """Deletes the artifacts of these predictions, which name ``digests``; returns those that nothing names now."""
    for part in _parts(digests):
        # Locked before the count, so that a transaction that adds an artifact of one of these blobs waits.
        blobs = select(BlobRow.digest).where(among(session, BlobRow.digest, part)).order_by(BlobRow.digest)
        session.execute(blobs.with_for_update()).all()
    session.execute(delete(ArtifactRow).where(among(session, ArtifactRow.prediction_id, ids)))
    unnamed = set(digests)
    for part in _parts(digests):
        unnamed -= set(session.scalars(select(ArtifactRow.digest).where(among(session, ArtifactRow.digest, part))))
    for part in _parts(unnamed):
        session.execute(delete(BlobRow).where(among(session, BlobRow.digest, part)))
        unnamed -= _of_instances(session, part)
    return unnamed


def _parts(digests: Iterable[str]) -> Iterator[list[str]]:
    """The digests in order, in lists for one statement each."""
    ordered = iter(sorted(digests))
    while part := list(islice(ordered, _IN_ONE_STATEMENT)):
        yield part
