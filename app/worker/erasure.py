"""Erasure of predictions: ledger first, then rows, then bytes; and its repetition after a restore of the database.

Design notes:
- Every erasure of the service uses this class: `DELETE`, `rlvo subjects erase`, the retention period, and the replay.
- The ledger is written after the checks and before the rows are deleted. So an erasure is never only in the database,
  whose backup may be older.
- Revoked API keys, removed webhooks and removed DICOM destinations are in the ledger too, because a restore would make
  them valid again.
- A full disk refuses no erasure: a part of the reserve is released (`app.core.disk_reserve`).
- This module loads no torch, because the API process imports it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple

from sqlalchemy.orm import Session

from app.core.config import Settings
from app.core.disk_reserve import DiskReserve
from app.database import api_keys, audit, destinations, erasures, row_erasure, studies, webhooks
from app.database.session import Database, now
from app.sdk.errors import Erased, RlvoError
from app.storage.erasure_ledger import EntryKind, ErasureLedger, LedgerEntry, entries, find
from app.storage.factory import ledger_of, reserve_of
from app.storage.local import Storage

log = logging.getLogger("rlvo.erasure")

REPLAY = "replay"


class _Queries(NamedTuple):
    """What can be ended: queries for the valid ones among some ids, the end of one, all ends; and the action."""

    valid: Callable[[Session, Iterable[str]], set[str]]
    end: Callable[[Session, str], bool]
    ended: Callable[[Session], dict[str, datetime]]
    action: str


_ENDED: Mapping[EntryKind, _Queries] = {
    EntryKind.KEY: _Queries(api_keys.valid, api_keys.revoke, api_keys.revocations, "key.revoke"),
    EntryKind.WEBHOOK: _Queries(webhooks.active, webhooks.end, webhooks.removals, "webhook.remove"),
    EntryKind.DESTINATION: _Queries(
        destinations.active, destinations.end, destinations.removals, "dicom.destination.remove"
    ),
}


@dataclass
class LedgerComparison:
    """Ledger and database, compared.

    Attributes:
        restored: Predictions that are erased in the ledger and not in the database.
        studies: Received studies that are erased in the ledger and not in the database.
        valid_again: API keys and webhooks that are ended in the ledger and valid in the database.
        unknown: Number of erased predictions that the database does not have.
        unrecorded: Entries that the ledger does not have.
    """

    restored: list[str] = field(default_factory=list)
    studies: list[str] = field(default_factory=list)
    valid_again: list[tuple[EntryKind, str]] = field(default_factory=list)
    unknown: int = 0
    unrecorded: list[LedgerEntry] = field(default_factory=list)

    @property
    def undone(self) -> int:
        """Number of erasures, revocations and removals that the database does not have any more."""
        return len(self.restored) + len(self.studies) + len(self.valid_again)

    def lines(self) -> list[str]:
        """Return the findings as text, one per line."""
        findings = [f"restored: prediction {each} is erased in the ledger of erasures" for each in self.restored]
        findings += [f"restored: study {each} is erased in the ledger of erasures" for each in self.studies]
        findings += [f"restored: {kind} {each} is ended in the ledger of erasures" for kind, each in self.valid_again]
        if self.undone:
            findings.append("the database is older than the ledger of erasures; `rlvo erasures replay` erases again")
        if self.unrecorded:
            findings.append(f"{len(self.unrecorded)} erasures are not in the ledger; `rlvo erasures replay` adds them")
        if self.unknown:
            findings.append(f"{self.unknown} erasures of the ledger are of predictions that the database does not have")
        return findings


@dataclass(frozen=True)
class Eraser:
    """Erases predictions and received studies from the database and the storage, and keeps the ledger."""

    database: Database
    storage: Storage
    ledger: ErasureLedger
    reserve: DiskReserve

    @classmethod
    def of(cls, settings: Settings, database: Database, storage: Storage) -> Eraser:
        """Make the eraser that the settings describe."""
        return cls(database, storage, ledger_of(settings), reserve_of(settings))

    def erase(self, prediction_id: str, tenant: str | None, *, actor: str, why: str) -> None:
        """Erase a prediction; ``tenant`` is None for the operator.

        Raises:
            PredictionNotFound: The tenant has no such prediction.
            Erased: It is erased already.
            Unavailable: The database or the ledger cannot be reached. If the ledger has the entry by then, the next
                replay completes the erasure.
        """
        with self.database.reading() as session:
            erasures.check(session, prediction_id, tenant)
        entry = LedgerEntry.new(EntryKind.PREDICTION, prediction_id, now(), actor=actor, why=why)
        self.reserve.run(lambda: self.ledger.add(entry))
        with suppress(Erased):  # a replay at the same time has read the new entry, and erased the rows first
            self._erase_rows(prediction_id, tenant, actor=actor, why=why)

    def erase_all(self, ids: Sequence[str], *, actor: str, why: str) -> int:
        """Erase predictions of any tenant in one transaction, and return how many were not erased yet.

        Raises:
            Unavailable: As `erase`.
        """
        at = now()
        self.reserve.run(
            lambda: self.ledger.add_all(
                [LedgerEntry.new(EntryKind.PREDICTION, each, at, actor=actor, why=why) for each in ids]
            )
        )

        def transaction() -> dict[str, list[str]]:
            with self.database.session() as session:
                return erasures.erase_all(session, ids, actor=actor, why=why)

        erased = self.reserve.run(transaction)
        self._delete(digest for digests in erased.values() for digest in digests)
        return len(erased)

    def erase_study(self, uid: str, tenant: str | None, *, actor: str, why: str) -> None:
        """Erase a received study: its predictions, its instances, and everything else that is stored of it.

        Raises:
            NotFound: The tenant has no such study.
            Unavailable: As `erase`.
        """
        with self.database.reading() as session:
            study_id, made = studies.identify(session, tenant, uid)
        entry = LedgerEntry.new(EntryKind.STUDY, study_id, now(), actor=actor, why=why)
        self.reserve.run(lambda: self.ledger.add(entry))
        for prediction_id in made:
            with suppress(Erased):
                self.erase(prediction_id, None, actor=actor, why=why)
        self._erase_study_rows(study_id, actor=actor, why=why)

    def end(self, kind: EntryKind, target: str, *, actor: str) -> bool:
        """Revoke an API key or remove a webhook; return False if there is no valid one with this id.

        The database is first here: a revocation must not wait for the ledger. A later replay adds a missing entry.

        Raises:
            DatabaseUnavailable, StorageFull: The database refuses the change.
        """
        if not self.reserve.run(lambda: self._end(kind, target, actor)):
            return False
        try:
            self.ledger.add(LedgerEntry.new(kind, target, now(), actor=actor, why="request"))
        except RlvoError as error:
            log.warning("the ledger of erasures is completed later: %s", error.detail)
        return True

    def compare(self) -> LedgerComparison:
        """Compare the ledger with the database. Raises Unavailable."""
        ledger = entries(self.ledger)
        erased = ledger[EntryKind.PREDICTION]
        with self.database.reading() as session:
            states = erasures.states(session, erased)
            back = studies.existing(session, ledger[EntryKind.STUDY])
            valid = {kind: queries.valid(session, ledger[kind]) for kind, queries in _ENDED.items()}
            missing = {each.target: each for each in erasures.recorded(session) if each.target not in erased}
            unrecorded = [
                LedgerEntry.new(EntryKind.PREDICTION, each.target, each.at, actor=each.actor, why=each.why)
                for each in missing.values()
            ]
            unrecorded += [
                LedgerEntry.new(kind, target, at, actor="operator", why="request")
                for kind, queries in _ENDED.items()
                for target, at in queries.ended(session).items()
                if target not in ledger[kind]
            ]
        return LedgerComparison(
            restored=sorted(each for each, is_erased in states.items() if not is_erased),
            studies=sorted(back),
            valid_again=[(kind, each) for kind, ids in valid.items() for each in sorted(ids)],
            unknown=len(erased) - len(states),
            unrecorded=unrecorded,
        )

    def replay(self, *, actor: str) -> LedgerComparison:
        """Make the database and the ledger agree; return how they differed before.

        Predictions that are erased in the ledger are erased again, and ended keys and webhooks end again. Erasures that
        the ledger does not have, such as those of earlier releases, are added to it.

        Raises:
            Unavailable: The database or the ledger cannot be reached.
        """
        found = self.compare()
        for prediction_id in found.restored:
            first = find(self.ledger, EntryKind.PREDICTION, prediction_id)
            try:
                self._erase_rows(prediction_id, None, actor=actor, why=REPLAY, first=first.at)
            except Erased:  # another process replays the same ledger
                continue
        for study_id in found.studies:
            self._erase_study_rows(study_id, actor=actor, why=REPLAY)
        for kind, target in found.valid_again:
            self._end(kind, target, actor)
        for entry in found.unrecorded:
            self.ledger.add(entry)
        if found.undone:
            log.warning("%d erasures were undone by a restore of the database, and are repeated", found.undone)
        return found

    def merge(self, copy: ErasureLedger) -> int:
        """Add the entries of a copy of the ledger; return how many were new. Raises Unavailable."""
        known, added = entries(self.ledger), 0
        for kind, targets in entries(copy).items():
            for target in targets - known[kind]:
                self.ledger.add(find(copy, kind, target))
                added += 1
        return added

    def _erase_rows(self, prediction_id: str, tenant: str | None, *, actor: str, why: str, first: str = "") -> None:
        """Erase the rows of a prediction, then its bytes; bytes that cannot be deleted now are left to the sweep."""

        def transaction() -> list[str]:
            with self.database.session() as session:
                return erasures.erase(session, prediction_id, tenant, actor=actor, why=why, first=first)

        self._delete(self.reserve.run(transaction))

    def _erase_study_rows(self, study_id: str, *, actor: str, why: str) -> None:
        """Erase the rows of a study, whose predictions are erased, and then the bytes of its instances."""

        def transaction() -> list[str]:
            with self.database.session() as session:
                digests = studies.erase(session, study_id)
                if digests is None:  # another process has erased it
                    return []
                audit.append(session, actor, "study.erase", study_id, {"why": why, "instances": len(digests)})
                return sorted(set(digests) - row_erasure.referenced(session, digests))

        self._delete(self.reserve.run(transaction))

    def _delete(self, digests: Iterable[str]) -> None:
        for digest in digests:
            try:
                self.storage.delete(digest)
            except (RlvoError, OSError) as error:
                log.warning("an erased file is deleted by a later sweep: %s", type(error).__name__)
        self.reserve.fill()

    def _end(self, kind: EntryKind, target: str, actor: str) -> bool:
        with self.database.session() as session:
            if ended := _ENDED[kind].end(session, target):
                audit.append(session, actor, _ENDED[kind].action, target)
        return ended
