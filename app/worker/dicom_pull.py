"""Fetching of studies from an archive, as jobs of the queue.

Design notes:
- A killed worker loses nothing: the job runs again, and instances that are here already are known.
- One request is one try. Its failure is a word that the study shows; who asked can ask again.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import partial

from app.core.config import Settings
from app.core.egress import EgressClient
from app.core.logging import error_location
from app.core.sealing import open_text
from app.database import audit, pulls
from app.database.destinations import Destination
from app.database.pulls import DuePull
from app.database.session import Database, retry_until_available
from app.dicom.errors import ArchiveFailed
from app.dicom.reception import Reception
from app.dicom.retrieval import FoundStudy, Retrieval, StudyQuery
from app.dicom.return_address import key_of
from app.sdk.errors import RlvoError
from app.sdk.studies import PullState
from app.storage.local import Storage

__all__ = ["DicomPull"]

log = logging.getLogger("rlvo.dicom")

_INDEX_PATIENCE = 10.0  # seconds to wait for another process that indexes what was received


@dataclass(frozen=True)
class DicomPull:
    """Fetches studies.

    Attributes:
        key: opens the credentials of the archives.
        ae_title: AE title of the listener, which C-MOVE sends to.
    """

    database: Database
    reception: Reception
    retrieval: Retrieval
    key: bytes | None
    ae_title: str

    @classmethod
    def of(cls, settings: Settings, database: Database, storage: Storage) -> DicomPull:
        """Make the fetching that the settings describe."""
        egress = EgressClient(settings.dicom_hosts, setting="RLVO_DICOM_HOSTS")
        retrieval = Retrieval(egress, settings.dicom_max_instance_bytes)
        reception, key = Reception.of(settings, database, storage), key_of(settings.dicom_return_key)
        return cls(database, reception, retrieval, key, settings.dicom_ae_title)

    def find(self, source: Destination, query: StudyQuery) -> list[FoundStudy]:
        """Ask an archive for a study. Raises ArchiveFailed."""
        return self.retrieval.find(source, query, self._authorization(source))

    def pull(self, study_id: str, run: int) -> None:
        """Fetch a study, and note what became of it."""
        due = retry_until_available(partial(self._due, study_id, run))
        if due is None:
            return
        state, reason, instances = PullState.DONE, "", None
        try:
            instances = self._fetch(due)
        except ArchiveFailed as failure:
            state, reason = PullState.FAILED, str(failure)
        except RlvoError as error:
            state, reason = PullState.FAILED, error.code
        except Exception as error:  # noqa: BLE001 - also errors of the network library
            log.info("a study is not fetched: %s", error_location(error))
            state, reason = PullState.FAILED, "failed"
        log.info("a study is fetched: %s %s", state, reason)
        retry_until_available(partial(self._note, study_id, run, state, reason, instances))

    def _due(self, study_id: str, run: int) -> DuePull | None:
        with self.database.reading() as session:
            return pulls.due(session, study_id, run)

    def _fetch(self, due: DuePull) -> int:
        """The number of instances of the study."""
        if due.source is None:
            raise ArchiveFailed("removed")
        found = self.find(due.source, StudyQuery(uid=due.uid))
        if not found:
            raise ArchiveFailed("not-found")
        authorization = self._authorization(due.source)
        arrived = self.retrieval.fetch(due.source, found[0], authorization, self.reception, self.ae_title)
        while self.reception.index(wait=_INDEX_PATIENCE):
            pass
        return arrived

    def _note(self, study_id: str, run: int, state: PullState, reason: str, instances: int | None) -> None:
        with self.database.session() as session:
            if pulls.note(session, study_id, run, state, reason, instances):
                audit.append(session, "worker", f"study.pull.{state}", study_id, {"why": reason} if reason else {})

    def _authorization(self, source: Destination) -> str | None:
        return open_text(source.secret, self.key) if source.secret and self.key else None
