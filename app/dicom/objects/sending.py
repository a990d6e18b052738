"""Send result objects to a DICOM destination: STOW-RS (PS3.18, 10.5) or C-STORE (PS3.4, annex B).

Design notes:
- Each instance is one request. UIDs are fixed, so a repetition after a lost answer stores no second instance.
- Only hosts that the operator listed are called (`app.core.egress`).
- The reason of a failure is a word, never the text of the other side, which could name the patient.
"""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from pydicom import dcmread

from app.core.egress import EgressClient, EgressRefused
from app.database.destinations import Destination, DestinationKind
from app.dicom.archive_faults import http_faults
from app.dicom.association import VERIFICATION, association, host_and_port, reach
from app.dicom.errors import ArchiveFailed

__all__ = ["Sender"]

_BOUNDARY = "rlvo-instance"
_TYPE = f'multipart/related; type="application/dicom"; boundary={_BOUNDARY}'
_STORED, _ACCEPTED = 200, 202
_WARNINGS = range(0xB000, 0xC000)  # C-STORE: stored, with a remark
_SECONDS = 30.0


@dataclass(frozen=True)
class Sender:
    """Sends archives of objects.

    Attributes:
        egress: the listed hosts.
        seconds: limit of each network operation.
    """

    egress: EgressClient
    seconds: float = _SECONDS

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

    def send(self, destination: Destination, archive: Path, authorization: str | None) -> None:
        """Send all objects of an archive.

        Args:
            destination: the PACS.
            archive: ZIP archive of DICOM files.
            authorization: value of the Authorization header (STOW-RS).

        Raises:
            ArchiveFailed: at least one object is not stored.
        """
        with zipfile.ZipFile(archive) as packed:
            if destination.kind is DestinationKind.STOW:
                for name in packed.namelist():
                    self._post(destination, packed.read(name), authorization)
            else:
                self._store(destination, packed)

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

    def _store(self, destination: Destination, packed: zipfile.ZipFile) -> None:
        instances = [dcmread(BytesIO(packed.read(name))) for name in packed.namelist()]
        classes = {str(each.SOPClassUID) for each in instances}
        with association(self.egress, self.seconds, destination, classes) as opened:
            for each in instances:
                status = opened.send_c_store(each)
                if not status:
                    raise ArchiveFailed("timeout")
                if status.Status != 0 and status.Status not in _WARNINGS:
                    raise ArchiveFailed(f"refused-{status.Status:04x}")

    def _echo(self, destination: Destination) -> None:
        with association(self.egress, self.seconds, destination, {VERIFICATION}) as opened:
            status = opened.send_c_echo()
            if not status or status.Status != 0:
                raise ArchiveFailed("refused")


def _authorized(authorization: str | None) -> dict[str, str]:
    return {"Authorization": authorization} if authorization else {}
