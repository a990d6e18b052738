"""Storage commitment in the listener: takes the reports of archives, and may answer the requests of senders.

Design notes:
- A sender may delete what is committed. This service deletes received files after `RLVO_DICOM_KEEP_HOURS`, so it is not
  an archive: without `RLVO_DICOM_STORAGE_COMMITMENT=answer` it does not accept requests (docs/decisions/0090).
- An answer says what is stored at its time: an instance counts if its blob is read and has the recorded sha-256.
- The answer goes to an association of the sender that is open and quiet, else to a new one, if a destination has the
  AE title of the sender. It is tried again for a day.

Sources: DICOM PS3.4, annex J; PS3.7, annex D.3.3.4 (role selection).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from contextlib import suppress
from datetime import timedelta
from typing import Any

from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import build_context, evt
from sqlalchemy.orm import Session

from app.core.config import Settings
from app.core.egress import EgressClient
from app.database import audit, commitments
from app.database.commitments import CommitmentRequest
from app.database.session import now
from app.dicom import commitment
from app.dicom.association import association
from app.dicom.commitment import PUSH_MODEL, PUSH_MODEL_INSTANCE, Malformed, Report
from app.dicom.errors import ArchiveFailed
from app.dicom.reception import Reception
from app.sdk.deliveries import CommitmentState
from app.sdk.errors import RlvoError

__all__ = ["CommitmentService"]

log = logging.getLogger("rlvo.dicom")

_SUCCESS, _CANNOT_PROCESS, _NO_SUCH_ACTION, _NO_SUCH_EVENT = 0x0000, 0x0110, 0x0123, 0x0113
_INVALID_ARGUMENT, _NO_RESOURCES = 0x0115, 0x0213
_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 600.0
_LEASE_SECONDS = 300.0
_NETWORK_SECONDS = 30.0
_INDEX_PATIENCE = 30.0  # seconds to wait for another process that indexes what was received
_GIVEN_UP_AFTER = timedelta(days=1)


class CommitmentService:
    """Requests of senders, and reports of archives.

    Args:
        settings: whether requests are answered, and the listed hosts.
        reception: where instances arrive.
        tenant: tenant of the sender of an association; None if it may not send.
        open_associations: associations that are open and quiet.
    """

    def __init__(
        self,
        settings: Settings,
        reception: Reception,
        tenant: Callable[[Any], str | None],
        open_associations: Callable[[], Iterable[Any]],
    ) -> None:
        self._answers = settings.dicom_storage_commitment == "answer"
        self._egress = EgressClient(settings.dicom_hosts, setting="RLVO_DICOM_HOSTS")
        self._reception = reception
        self._database, self._storage = reception.database, reception.storage
        self._tenant = tenant
        self._open = open_associations

    def negotiate(self, opening: Any) -> None:
        """Accept the SOP class for this association, in the role that the sender may have."""
        role = opening.requestor.role_selection.get(PUSH_MODEL)
        reports = role is not None and bool(role.scp_role)
        if not reports and not self._answers and not self._is_expected(opening):
            return
        contexts = opening.acceptor.supported_contexts
        opening.acceptor.supported_contexts = [*contexts, _context(reports=reports)]

    def _is_expected(self, opening: Any) -> bool:
        """Whether an archive may report without asking for its role, as some do."""
        asked = {str(each.abstract_syntax) for each in opening.requestor.primitive.presentation_context_definition_list}
        tenant = self._tenant(opening)
        if PUSH_MODEL not in asked or tenant is None:
            return False
        with suppress(RlvoError), self._database.reading() as session:
            return commitments.expects_report(session, tenant, _title(opening))
        return False

    def requested(self, event: evt.Event) -> tuple[int, None]:
        """Answer N-ACTION: take over the duty to report what is stored."""
        if event.action_type != commitment.REQUEST or not self._answers:
            return _NO_SUCH_ACTION, None
        tenant = self._tenant(event.assoc)
        try:
            with commitment.understood():
                transaction_uid, instances = commitment.read_request(event.action_information)
            if tenant is None:
                return _CANNOT_PROCESS, None
            with self._database.session() as session:
                title = _title(event.assoc)
                commitments.request(session, tenant, title, transaction_uid, instances, delay=_FIRST_PAUSE)
        except Malformed as error:
            log.warning("a request for storage commitment is not understood (%s)", error)
            return _INVALID_ARGUMENT, None
        except RlvoError as error:
            log.warning("a request for storage commitment cannot be stored now: %s", error.code)
            return _NO_RESOURCES, None
        log.info("storage commitment of %d instances is asked for", len(instances))
        return _SUCCESS, None

    def reported(self, event: evt.Event) -> tuple[int, None]:
        """Answer N-EVENT-REPORT: note what an archive says of results."""
        if event.event_type not in (commitment.ALL_COMMITTED, commitment.SOME_FAILED):
            return _NO_SUCH_EVENT, None
        tenant = self._tenant(event.assoc)
        try:
            with commitment.understood():
                report = commitment.read_report(event.event_information)
            if tenant is None:
                return _CANNOT_PROCESS, None
            with self._database.session() as session:
                found = _note(session, tenant, _title(event.assoc), report)
        except Malformed as error:
            log.warning("a report of storage commitment is not understood (%s)", error)
            return _INVALID_ARGUMENT, None
        except RlvoError as error:
            log.warning("a report of storage commitment cannot be stored now: %s", error.code)
            return _NO_RESOURCES, None
        if not found:
            log.warning("a report of storage commitment is for no request of this service")
        return _SUCCESS, None

    def answer(self) -> bool:
        """Try to answer the request that has been due longest; returns False if there is none. Raises Unavailable."""
        with self._database.reading() as session:
            if not commitments.is_due(session):
                return False
        with self._database.session() as session:
            due = commitments.claim(session, lease=_LEASE_SECONDS)
        if due is None:
            return False
        failed = self._failures(due)
        event = commitment.SOME_FAILED if failed else commitment.ALL_COMMITTED
        message = commitment.report_message(due.transaction_uid, due.instances, failed)
        sent = self._send_open(due, event, message) or self._send_new(due, event, message)
        given_up = not sent and now() - due.created > _GIVEN_UP_AFTER
        if given_up:
            log.error("a request for storage commitment is given up: its sender takes no answer")
        with self._database.session() as session:
            if sent or given_up:
                commitments.answered(session, due.id)
            else:
                pause = min(_FIRST_PAUSE * 2 ** min(due.tries, 20), _LONGEST_PAUSE)
                commitments.postpone(session, due.id, seconds=pause)
        return True

    def _failures(self, due: CommitmentRequest) -> dict[str, int]:
        """Failure reason of each instance that is not stored."""
        while self._reception.index(wait=_INDEX_PATIENCE):
            pass
        uids = [uid for _, uid in due.instances]
        with self._database.reading() as session:
            stored = commitments.stored(session, due.tenant, uids)
        failed = {}
        for sop_class, uid in due.instances:
            if uid not in stored:
                failed[uid] = commitment.NO_SUCH_INSTANCE
            elif stored[uid][0] != sop_class:
                failed[uid] = commitment.OTHER_CLASS
            elif not self._storage.verify(stored[uid][1]):
                failed[uid] = commitment.PROCESSING_FAILURE
        return failed

    def _send_open(self, due: CommitmentRequest, event: int, message: Dataset) -> bool:
        """Report on an open association of the sender."""
        for each in self._open():
            accepted = {str(context.abstract_syntax) for context in each.accepted_contexts}
            if PUSH_MODEL in accepted and (self._tenant(each), _title(each)) == (due.tenant, due.title):
                with suppress(RuntimeError, ValueError):  # it has ended meanwhile
                    status, _ = each.send_n_event_report(message, event, PUSH_MODEL, PUSH_MODEL_INSTANCE)
                    return "Status" in status
        return False

    def _send_new(self, due: CommitmentRequest, event: int, message: Dataset) -> bool:
        """Report on a new association, if the address of the sender is known."""
        with self._database.reading() as session:
            receiver = commitments.receiver(session, due.tenant, due.title)
        if receiver is None:
            return False
        try:
            with association(self._egress, _NETWORK_SECONDS, receiver, [PUSH_MODEL], as_scp=[PUSH_MODEL]) as opened:
                status, _ = opened.send_n_event_report(message, event, PUSH_MODEL, PUSH_MODEL_INSTANCE)
        except ArchiveFailed as failure:
            log.info("a report of storage commitment is not sent: %s", failure)
            return False
        return "Status" in status


def _note(session: Session, tenant: str, title: str, report: Report) -> bool:
    """Note the report of an archive; returns False if the archive was not asked in this transaction."""
    noted = commitments.report(session, tenant, title, report.transaction_uid, report.committed, report.reasons)
    if noted is None:
        return False
    state = noted.state
    if state is CommitmentState.ASKED:
        log.warning("a report of storage commitment leaves instances out; the archive is asked again")
    elif noted.changed and state is not CommitmentState.UNANSWERED:
        audit.append(session, "listener", f"dicom.{state}", noted.prediction_id, {"why": noted.reason or "all"})
    return True


def _title(of: Any) -> str:
    return str(of.requestor.primitive.calling_ae_title).strip()


def _context(*, reports: bool) -> Any:
    """A supported context of the SOP class; ``reports``: the sender has the role of an archive."""
    made = build_context(PUSH_MODEL, [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
    if reports:
        made.scu_role, made.scp_role = False, True
    return made
