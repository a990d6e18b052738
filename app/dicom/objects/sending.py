"""Send result objects to a DICOM destination: STOW-RS (PS3.18, 10.5) or C-STORE (PS3.4, annex B).

Design notes:
- Each instance is one request. UIDs are fixed, so a repetition after a lost answer stores no second instance.
- Only hosts that the operator listed are called (`app.core.egress`).
- The reason of a failure is a word, never the text of the other side, which could name the patient.
"""

from __future__ import annotations

import logging
import socket
import ssl
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
from pydicom import dcmread
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

from app.core.egress import EgressClient, EgressRefused
from app.database.destinations import Destination, DestinationKind
from app.dicom.objects.kinds import SendFailed

__all__ = ["Sender"]

_BOUNDARY = "rlvo-instance"
_TYPE = f'multipart/related; type="application/dicom"; boundary={_BOUNDARY}'
_STORED, _ACCEPTED = 200, 202
_VERIFICATION = "1.2.840.10008.1.1"
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
        """Open and close a connection, so that no objects are made for an archive that is away.

        A C-STORE connection with TLS is opened with its handshake, whose failure an association does not tell apart.

        Raises:
            SendFailed: there is no connection.
        """
        try:
            if destination.kind is DestinationKind.STOW:
                url = self.egress.check(destination.address)
                host, port = url.host, url.port or (443 if url.scheme == "https" else 80)
            else:
                host, port = _host_and_port(destination)
            connection = socket.create_connection((self.egress.pinned(host, port), port), self.seconds)
            with connection:
                if destination.kind is DestinationKind.C_STORE and destination.tls:
                    ssl.create_default_context().wrap_socket(connection, server_hostname=host).close()
        except EgressRefused:
            raise SendFailed("not-listed") from None
        except TimeoutError:
            raise SendFailed("timeout") from None
        except ssl.SSLError:
            raise SendFailed("tls") from None
        except OSError:
            raise SendFailed("unreachable") from None

    def send(self, destination: Destination, archive: Path, authorization: str | None) -> None:
        """Send all objects of an archive.

        Args:
            destination: the PACS.
            archive: ZIP archive of DICOM files.
            authorization: value of the Authorization header (STOW-RS).

        Raises:
            SendFailed: at least one object is not stored.
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
            SendFailed: it does not answer, or refuses.
        """
        if destination.kind is DestinationKind.C_STORE:
            self.reach(destination)
            self._echo(destination)
            return
        headers = {"Accept": "application/dicom+json"} | _authorized(authorization)
        status = self._http("GET", f"{destination.address}?limit=1", b"", headers)
        if status not in (200, 204):
            raise SendFailed(f"refused-{status}")

    def _post(self, destination: Destination, content: bytes, authorization: str | None) -> None:
        start = f"--{_BOUNDARY}\r\nContent-Type: application/dicom\r\n\r\n".encode()
        body = start + content + f"\r\n--{_BOUNDARY}--\r\n".encode()
        headers = {"Content-Type": _TYPE, "Accept": "application/dicom+json"} | _authorized(authorization)
        status = self._http("POST", destination.address, body, headers)
        if status != _STORED:  # 202: some instances were not stored, and each request has one instance
            raise SendFailed("not-stored" if status == _ACCEPTED else f"refused-{status}")

    def _http(self, method: str, url: str, body: bytes, headers: dict[str, str]) -> int:
        try:
            return self.egress.request(method, url, body, headers, seconds=self.seconds)
        except EgressRefused:
            raise SendFailed("not-listed") from None
        except httpx.TimeoutException:
            raise SendFailed("timeout") from None
        except ssl.SSLError:
            raise SendFailed("tls") from None
        except (OSError, httpx.HTTPError):
            raise SendFailed("unreachable") from None

    def _store(self, destination: Destination, packed: zipfile.ZipFile) -> None:
        instances = [dcmread(BytesIO(packed.read(name))) for name in packed.namelist()]
        classes = {str(each.SOPClassUID) for each in instances}
        with _association(self, destination, classes) as association:
            for each in instances:
                status = association.send_c_store(each)
                if not status:
                    raise SendFailed("timeout")
                if status.Status != 0 and status.Status not in _WARNINGS:
                    raise SendFailed(f"refused-{status.Status:04x}")

    def _echo(self, destination: Destination) -> None:
        with _association(self, destination, {_VERIFICATION}) as association:
            status = association.send_c_echo()
            if not status or status.Status != 0:
                raise SendFailed("refused")


@contextmanager
def _association(sender: Sender, destination: Destination, classes: set[str]) -> Iterator[Any]:
    """An association that accepts all these SOP classes, for the block. Raises SendFailed."""
    from pynetdicom import AE

    logging.getLogger("pynetdicom").setLevel(logging.CRITICAL)  # its messages show names
    host, port = _host_and_port(destination)
    entity = AE(ae_title=destination.calling)
    entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = entity.connection_timeout = sender.seconds
    for each in sorted(classes):
        entity.add_requested_context(each, [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
    try:
        address = sender.egress.pinned(host, port)
    except EgressRefused:
        raise SendFailed("not-listed") from None
    except OSError:
        raise SendFailed("unreachable") from None
    tls = (ssl.create_default_context(), host) if destination.tls else None
    association = entity.associate(address, port, ae_title=destination.called, tls_args=tls)
    try:
        if association.is_rejected:
            raise SendFailed("rejected")
        if not association.is_established:
            raise SendFailed("unreachable")
        if {str(each.abstract_syntax) for each in association.accepted_contexts} != classes:
            raise SendFailed("class-not-accepted")
        yield association
    finally:
        if association.is_established:
            association.release()


def _host_and_port(destination: Destination) -> tuple[str, int]:
    host, _, port = destination.address.rpartition(":")
    return host, int(port)


def _authorized(authorization: str | None) -> dict[str, str]:
    return {"Authorization": authorization} if authorization else {}
