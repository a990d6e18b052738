"""The DICOM listener: receives instances by C-STORE, answers C-ECHO, and takes part in storage commitment.

Design notes:
- Nothing is decoded but the command of a message; the data set goes to a file as it arrives. The file meta information
  of this file has the UIDs of the command, so `head` finds a data set with others.
- What one association may use is limited: bytes of one PDU and of one instance, and the seconds of each PDU. Beyond
  these, the association ends and no other one.
- pynetdicom's own log shows values of messages, so it is switched off; this module logs counts and reasons.

Sources: DICOM PS3.4, annex B (storage service class); PS3.7, 9.1.1 (C-STORE) and annex C (status codes).
"""

from __future__ import annotations

import logging
import socket
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from socketserver import BaseServer
from typing import Any

from pynetdicom import AE, _config, evt
from pynetdicom.transport import ThreadedAssociationServer

from app.core.config import Settings
from app.dicom.callers import AeCaller, may_connect, tenant_of, tls_context, validated_callers
from app.dicom.commitment_service import CommitmentService
from app.dicom.errors import OtherUids, Unreadable
from app.dicom.reception import Outcome, Reception
from app.sdk.errors import RlvoError

__all__ = ["MAX_ASSOCIATIONS", "Listener"]

log = logging.getLogger("rlvo.dicom")

MAX_ASSOCIATIONS = 8
_MAX_CONNECTIONS = 64  # with those that have not asked for an association yet
_MAX_PDU_BYTES = 256 * 1024
_PDU_SLACK = 4096  # for senders that do not count the headers
_REQUEST_SECONDS = 5.0  # within which a connection must ask for an association, and a TLS handshake must end
_PDU_SECONDS = 60.0  # within which a PDU must arrive, and after which an idle association ends
_READ_BYTES = 64 * 1024
_HELD_BYTES = 2 * 1024 * 1024  # of a message that is not C-STORE, which is held in memory
_QUIET_SECONDS = 0.5  # without a byte, after which a sender is taken to wait
_INDEX_PAUSE = 0.5
_CLEAR_PAUSE = 30.0
_ANSWER_PAUSE = 1.0

_VERIFICATION = "1.2.840.10008.1.1"
_SUCCESS = 0x0000
_STATUS = {
    Outcome.STORED: _SUCCESS,
    Outcome.KNOWN: _SUCCESS,
    Outcome.CONFLICT: 0x0111,  # duplicate SOP instance
    Outcome.TOO_MANY: 0xA700,  # refused: out of resources
}
_OUT_OF_RESOURCES, _OTHER_CLASS, _CANNOT_UNDERSTAND = 0xA700, 0xA900, 0xC000
_INVALID_PDU, _ENDING = "Evt19", "Sta13"  # event and state of the state machine of PS3.8, 9.2
_PERMANENT, _TRANSIENT = 1, 2
_USER, _PRESENTATION = 1, 3
_UNKNOWN_TITLE, _LIMIT = 3, 2


class Listener:
    """A C-STORE and C-ECHO provider.

    Args:
        settings: address, AE title, callers, TLS and limits.
        reception: where received instances go.

    Raises:
        ValueError: the settings would accept other machines without a list of callers, or are wrong.
    """

    def __init__(self, settings: Settings, reception: Reception) -> None:
        self._settings = settings
        self._reception = reception
        self._callers = validated_callers(settings)
        self._tls = tls_context(settings)
        self._meters: dict[Any, _Meter] = {}
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []
        self._server: _Server | None = None
        self._usual_folder: str | None = None
        self._commitment = CommitmentService(settings, reception, self._tenant, self._waiting)

    def start(self) -> int:
        """Listen in background threads.

        Returns:
            The port.

        Raises:
            OSError: the address cannot be used.
        """
        for name in ("pynetdicom", "pydicom"):
            logging.getLogger(name).setLevel(logging.CRITICAL + 1)
        _config.LOG_HANDLER_LEVEL = "none"
        _config.UNRESTRICTED_STORAGE_SERVICE = True
        _config.STORE_RECV_CHUNKED_DATASET = True
        self._usual_folder = tempfile.tempdir
        tempfile.tempdir = str(self._reception.draft().parent)  # where pynetdicom writes data sets
        application = AE(self._settings.dicom_ae_title)
        application.require_called_aet = True
        application.maximum_associations = _MAX_CONNECTIONS
        application.maximum_pdu_size = _MAX_PDU_BYTES
        application.acse_timeout = _REQUEST_SECONDS
        application.network_timeout = application.dimse_timeout = _PDU_SECONDS
        application.add_supported_context(_VERIFICATION)
        server = application.make_server(
            (self._settings.dicom_host, self._settings.dicom_port),
            contexts=application.supported_contexts,
            ssl_context=self._tls,
            evt_handlers=[
                (evt.EVT_CONN_OPEN, self._open),
                (evt.EVT_CONN_CLOSE, self._close),
                (evt.EVT_REQUESTED, self._requested),
                (evt.EVT_C_STORE, self._store),
                (evt.EVT_C_ECHO, lambda _: _SUCCESS),
                (evt.EVT_N_ACTION, self._commitment.requested),
                (evt.EVT_N_EVENT_REPORT, self._commitment.reported),
            ],
            server_class=_Server,
        )
        assert isinstance(server, _Server)
        server.callers = self._callers
        self._server = server
        for work in (lambda: server.serve_forever(poll_interval=0.2), self._index, self._clear, self._answer):
            thread = threading.Thread(target=work, daemon=True)
            thread.start()
            self._threads.append(thread)
        return int(server.server_address[1])

    def stop(self) -> None:
        """Accept nothing more, end all associations, and index what was received."""
        self._stop.set()
        if self._server is not None:
            self._server.shutdown()
            for association in self._server.active_associations:
                association.abort()
            self._server.server_close()
            tempfile.tempdir = self._usual_folder
        for thread in self._threads:
            thread.join(timeout=5)
        with suppress(RlvoError):
            while self._reception.index():
                pass

    def _open(self, event: evt.Event) -> None:
        association: Any = event.assoc
        meter = self._meters[association] = _Meter(association, self._settings.dicom_max_instance_bytes)
        association.dul.socket.recv = meter.read
        decode = association.dimse.receive_primitive

        def receive(primitive: Any) -> None:
            try:
                decode(primitive)
                if _held(association.dimse.message) > _HELD_BYTES:
                    raise OverflowError
            except Exception as error:  # noqa: BLE001 - it would end the thread and leave the connection open
                log.warning("an association ends: a message cannot be decoded (%s)", type(error).__name__)
                association.dul.event_queue.put(_INVALID_PDU)

        association.dimse.receive_primitive = receive

    def _close(self, event: evt.Event) -> None:
        self._end(event.assoc)

    def _end(self, association: Any) -> None:
        """Forget an association that has ended, and delete its unfinished file."""
        self._meters.pop(association, None)
        if file := getattr(association.dimse.message, "_data_set_file", None):
            with suppress(OSError):
                file.close()
                Path(file.name).unlink(missing_ok=True)

    def _end_dead(self) -> None:
        """Forget the associations whose threads have ended without closing the connection."""
        before = time.monotonic() - _REQUEST_SECONDS
        for association, meter in list(self._meters.items()):
            if meter.opened < before and not association.is_alive():
                self._end(association)

    def _requested(self, event: evt.Event) -> None:
        """Reject a sender that is not listed, or that is one too many."""
        association = event.assoc
        if self._tenant(association) is None:
            log.warning("an association is rejected: the AE title or address is not in RLVO_DICOM_CALLERS")
            association.acse.send_reject(_PERMANENT, _USER, _UNKNOWN_TITLE)
            association.kill()
        elif sum(each.is_established for each in list(self._meters)) >= MAX_ASSOCIATIONS:
            log.warning("an association is rejected: there are %d already", MAX_ASSOCIATIONS)
            association.acse.send_reject(_TRANSIENT, _PRESENTATION, _LIMIT)
            association.kill()
        else:
            self._commitment.negotiate(association)

    def _tenant(self, association: Any) -> str | None:
        title = association.requestor.primitive.calling_ae_title
        return tenant_of(self._callers, title, association.requestor.address)

    def _waiting(self) -> list[Any]:
        """Open associations whose senders have sent nothing for a moment."""
        before = time.monotonic() - _QUIET_SECONDS
        return [each for each, meter in list(self._meters.items()) if each.is_established and meter.last < before]

    def _store(self, event: evt.Event) -> int:
        """Make one instance durable; the status is the answer to the sender."""
        try:
            return self._stored(event)
        except Unreadable as error:
            log.warning("an instance is refused: it %s", error)
            return _OTHER_CLASS if isinstance(error, OtherUids) else _CANNOT_UNDERSTAND
        except RlvoError as error:
            log.warning("an instance cannot be stored now: %s", error.code)
            return _OUT_OF_RESOURCES
        finally:
            if meter := self._meters.get(event.assoc):
                meter.received = 0

    def _stored(self, event: evt.Event) -> int:
        tenant = self._tenant(event.assoc)
        if event.dataset_path is None or tenant is None:
            return _CANNOT_UNDERSTAND
        return _STATUS[self._reception.accept(tenant, event.dataset_path).outcome]

    def _index(self) -> None:
        while not self._stop.wait(_INDEX_PAUSE):
            self._quietly("the received instances", self._index_all)

    def _index_all(self) -> None:
        while self._reception.index() and not self._stop.is_set():
            pass

    def _answer(self) -> None:
        while not self._stop.wait(_ANSWER_PAUSE):
            self._quietly("the answers to requests for storage commitment", self._answer_all)

    def _answer_all(self) -> None:
        while self._commitment.answer() and not self._stop.is_set():
            pass

    def _clear(self) -> None:
        while not self._stop.wait(_CLEAR_PAUSE):
            self._quietly("the unfinished files", self._reception.clear)
            self._end_dead()

    def _quietly(self, what: str, work: Callable[[], object]) -> None:
        try:
            work()
        except RlvoError as error:
            log.warning("%s are tried again: %s", what, error.code)
        except Exception as error:  # noqa: BLE001 - the next try may succeed; the files stay
            log.error("%s are tried again: %s", what, type(error).__name__)


class _Server(ThreadedAssociationServer):
    """A server that closes connections that may not send, and that no TLS handshake stops."""

    callers: list[AeCaller]

    def get_request(self) -> tuple[socket.socket, Any]:
        """Accept a connection; its handshake is left to its own thread."""
        listener: Any = self.socket
        client, address = listener.accept()
        if self.ssl_context:
            client = self.ssl_context.wrap_socket(client, server_side=True, do_handshake_on_connect=False)
        return client, address

    def verify_request(self, request: Any, client_address: Any) -> bool:  # noqa: ARG002 - a method of the base class
        """Whether the connection may ask for an association."""
        return may_connect(self.callers, client_address[0]) and len(self.active_associations) < _MAX_CONNECTIONS

    def process_request(self, request: Any, client_address: Any) -> None:
        """Handle a connection in a thread, because a handshake waits for its client."""
        if self.ssl_context is None:
            super().process_request(request, client_address)
            return
        threading.Thread(target=self._handshake, args=(request, client_address), daemon=True).start()

    def _handshake(self, request: Any, client_address: Any) -> None:
        try:
            request.settimeout(_REQUEST_SECONDS)
            request.do_handshake()
            self.finish_request(request, client_address)
        except OSError:
            log.warning("a connection ends in its TLS handshake")
            self.shutdown_request(request)

    def shutdown(self) -> None:
        """End ``serve_forever``; the list of servers of the application does not have this one."""
        BaseServer.shutdown(self)

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002 - a method of the base class
        """Log no traceback, which would go to standard error."""
        log.warning("a connection ends with an error")


def _held(message: Any) -> int:
    """Bytes of an unfinished message that are held in memory."""
    parts = (getattr(message, name, None) for name in ("encoded_command_set", "data_set"))
    return sum(part.tell() for part in parts if part is not None)


class _Meter:
    """Reads from the socket of one association, within its limits."""

    def __init__(self, association: Any, max_bytes: int) -> None:
        self._association = association
        self._socket = association.dul.socket.socket
        self._max_bytes = max_bytes
        self.received = 0
        self.opened = self.last = time.monotonic()

    def read(self, size: int) -> bytearray:
        """Read exactly ``size`` bytes, or fewer at the end of the connection.

        Raises:
            OSError: a limit is exceeded; pynetdicom ends the association then.
        """
        self.received += size
        if size > _MAX_PDU_BYTES + _PDU_SLACK or self.received > self._max_bytes + _MAX_PDU_BYTES:
            log.warning("an association ends: a PDU or an instance is larger than the limit")
            self._socket.close()
            raise OSError("too large")
        if self._association.dul.state_machine.current_state == _ENDING:
            self._socket.close()
            raise OSError("the association has ended")
        seconds = _PDU_SECONDS if self._association.is_established else _REQUEST_SECONDS
        buffer, filled, deadline = bytearray(size), 0, time.monotonic() + seconds
        with memoryview(buffer) as view:
            while filled < size:
                self._socket.settimeout(max(deadline - time.monotonic(), 0.001))
                if not (count := self._socket.recv_into(view[filled:], min(size - filled, _READ_BYTES))):
                    break
                filled += count
        self.last = time.monotonic()
        return buffer if filled == size else buffer[:filled]
