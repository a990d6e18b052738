"""Send result objects to a DICOM destination: STOW-RS (PS3.18, 10.5) or C-STORE (PS3.4, annexes B and J).

Design notes:
- Each instance is one request. UIDs are fixed, so a repetition after a lost answer stores no second instance.
- Only hosts that the operator listed are called (`app.core.egress`).
- The reason of a failure is a word, never the text of the other side, which could name the patient.
- An archive that offers storage commitment is asked for it on the same association, and often answers on a new one that
  it opens to the listener; the caller notes the transaction before it is sent. DICOMweb has no storage commitment.
"""

from __future__ import annotations

import time
import zipfile
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

from pydicom import dcmread
from pydicom.dataset import Dataset
from pynetdicom import evt
from pynetdicom.pdu import P_DATA_TF

from app.core.egress import EgressClient, EgressRefused
from app.database.destinations import Destination, DestinationKind
from app.dicom.archive_faults import http_faults
from app.dicom.association import VERIFICATION, association, host_and_port, reach
from app.dicom.commitment import (
    PUSH_MODEL,
    PUSH_MODEL_INSTANCE,
    REQUEST,
    Malformed,
    Report,
    new_transaction,
    read_report,
    request_message,
    understood,
)
from app.dicom.errors import ArchiveFailed

__all__ = ["Sender"]

_BOUNDARY = "rlvo-instance"
_TYPE = f'multipart/related; type="application/dicom"; boundary={_BOUNDARY}'
_STORED, _ACCEPTED = 200, 202
_WARNINGS = range(0xB000, 0xC000)  # C-STORE: stored, with a remark
_SECONDS = 30.0
_REPORT_SECONDS = 2.0
_INVALID_ARGUMENT = 0x0115
Begin = Callable[[str, Sequence[str]], bool]
"""Notes a Transaction UID with its SOP Instance UIDs; False if nothing is to be asked any more."""
Said = Report | str | None
"""What an archive has said of the commitment by now: a report, which may name only some instances; the reason of its
refusal; None if it was not asked, or answers later."""


@dataclass(frozen=True)
class Sender:
    """Sends archives of objects.

    Attributes:
        egress: the listed hosts.
        seconds: limit of each network operation.
        report_seconds: how long a report of storage commitment is waited for on the association of the request.
    """

    egress: EgressClient
    seconds: float = _SECONDS
    report_seconds: float = _REPORT_SECONDS

    def reach(self, destination: Destination) -> None:
        """Open and close a connection, before objects are made for an archive that is away. Raises ArchiveFailed."""
        if destination.kind is DestinationKind.C_STORE:
            reach(self.egress, self.seconds, *host_and_port(destination), tls=destination.tls)
            return
        try:
            url = self.egress.check(destination.address)
        except EgressRefused:
            raise ArchiveFailed("not-listed") from None
        reach(self.egress, self.seconds, url.host, url.port or (443 if url.scheme == "https" else 80))

    def send(
        self, destination: Destination, archive: Path, authorization: str | None, begin: Begin | None = None
    ) -> Said:
        """Send all objects of an archive, and ask for their storage commitment if the destination offers it.

        Args:
            destination: the PACS.
            archive: ZIP archive of DICOM files.
            authorization: value of the Authorization header (STOW-RS).
            begin: notes a request before it is sent; without it, nothing is asked.

        Raises:
            ArchiveFailed: at least one object is not stored.
        """
        with zipfile.ZipFile(archive) as packed:
            if destination.kind is DestinationKind.STOW:
                for name in packed.namelist():
                    self._post(destination, packed.read(name), authorization)
                return None
            return self._store(destination, packed, begin)

    def ask(self, destination: Destination, archive: Path, begin: Begin) -> Said:
        """Ask again for the storage commitment of what was sent. Returns as ``send``; raises ArchiveFailed."""
        reports: SimpleQueue[Report] = SimpleQueue()
        with zipfile.ZipFile(archive) as packed:
            instances = [dcmread(BytesIO(packed.read(name)), stop_before_pixels=True) for name in packed.namelist()]
        with self._associated(destination, [PUSH_MODEL], [], reports) as opened:
            return self._ask(opened, instances, begin, reports)

    def check(self, destination: Destination, authorization: str | None) -> None:
        """Ask the destination for an answer: C-ECHO, or a search for studies.

        Args:
            destination: the PACS.
            authorization: value of the Authorization header (STOW-RS).

        Raises:
            ArchiveFailed: it does not answer, or refuses.
        """
        if destination.kind is DestinationKind.C_STORE:
            self._echo(destination)
            return
        headers = {"Accept": "application/dicom+json"} | _authorized(authorization)
        status = self._http("GET", f"{destination.address}?limit=1", b"", headers)
        if status not in (200, 204):
            raise ArchiveFailed(f"refused-{status}")

    def _post(self, destination: Destination, content: bytes, authorization: str | None) -> None:
        start = f"--{_BOUNDARY}\r\nContent-Type: application/dicom\r\n\r\n".encode()
        body = start + content + f"\r\n--{_BOUNDARY}--\r\n".encode()
        headers = {"Content-Type": _TYPE, "Accept": "application/dicom+json"} | _authorized(authorization)
        status = self._http("POST", destination.address, body, headers)
        if status != _STORED:  # 202: some instances were not stored, and each request has one instance
            raise ArchiveFailed("not-stored" if status == _ACCEPTED else f"refused-{status}")

    def _http(self, method: str, url: str, body: bytes, headers: dict[str, str]) -> int:
        with http_faults():
            return self.egress.request(method, url, body, headers, seconds=self.seconds)

    def _store(self, destination: Destination, packed: zipfile.ZipFile, begin: Begin | None) -> Said:
        instances = [dcmread(BytesIO(packed.read(name))) for name in packed.namelist()]
        classes = {str(each.SOPClassUID) for each in instances}
        optional = [] if begin is None else [PUSH_MODEL]
        reports: SimpleQueue[Report] = SimpleQueue()
        with self._associated(destination, classes, optional, reports) as opened:
            for each in instances:
                status = opened.send_c_store(each)
                if not status:
                    raise ArchiveFailed("timeout")
                if status.Status != 0 and status.Status not in _WARNINGS:
                    raise ArchiveFailed(f"refused-{status.Status:04x}")
            offered = PUSH_MODEL in {str(each.abstract_syntax) for each in opened.accepted_contexts}
            return self._ask(opened, instances, begin, reports) if begin is not None and offered else None

    def _associated(
        self, destination: Destination, classes: Iterable[str], optional: Iterable[str], reports: SimpleQueue[Report]
    ) -> AbstractContextManager[Any]:
        """An association that also takes reports of storage commitment."""

        taken: list[Report] = []

        def take(event: evt.Event) -> tuple[int, None]:
            try:
                with understood():
                    taken.append(read_report(event.event_information))
            except Malformed:
                return _INVALID_ARGUMENT, None
            return 0, None

        def sent(event: evt.Event) -> None:
            """A report counts when it is answered: its association may end then, and not before."""
            if isinstance(event.pdu, P_DATA_TF):
                while taken:
                    reports.put(taken.pop(0))

        handlers = [(evt.EVT_N_EVENT_REPORT, take), (evt.EVT_PDU_SENT, sent)]
        return association(self.egress, self.seconds, destination, classes, optional=optional, handlers=handlers)

    def _ask(self, opened: Any, instances: Sequence[Dataset], begin: Begin, reports: SimpleQueue[Report]) -> Said:
        """Ask for the commitment of instances; what was stored stays so, whatever becomes of the question."""
        transaction_uid = new_transaction()
        uids = [str(each.SOPInstanceUID) for each in instances]
        if not begin(transaction_uid, uids):
            return None
        message = request_message(transaction_uid, [(str(e.SOPClassUID), str(e.SOPInstanceUID)) for e in instances])
        try:
            status, _ = opened.send_n_action(message, REQUEST, PUSH_MODEL, PUSH_MODEL_INSTANCE)
        except RuntimeError:  # the association has ended
            return None
        if not status:
            return None
        if status.Status != 0:
            return f"refused-{status.Status:04x}"
        return self._heard(reports, transaction_uid, uids)

    def _heard(self, reports: SimpleQueue[Report], transaction_uid: str, uids: Sequence[str]) -> Report | None:
        """What the reports of a transaction say until they name all instances, or until the time is over."""
        heard, end = None, time.monotonic() + self.report_seconds
        while (left := end - time.monotonic()) > 0 and (heard is None or not heard.names(uids)):
            with suppress(Empty):
                report = reports.get(timeout=left)
                if report.transaction_uid == transaction_uid:
                    heard = report if heard is None else heard.joined(report)
        return heard

    def _echo(self, destination: Destination) -> None:
        with association(self.egress, self.seconds, destination, {VERIFICATION}) as opened:
            status = opened.send_c_echo()
            if not status or status.Status != 0:
                raise ArchiveFailed("refused")


def _authorized(authorization: str | None) -> dict[str, str]:
    return {"Authorization": authorization} if authorization else {}
