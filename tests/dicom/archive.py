"""A real archive by pynetdicom that answers requests for storage commitment as a test wants."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from pynetdicom import AE, AllStoragePresentationContexts, evt

from app.dicom.commitment import PUSH_MODEL, PUSH_MODEL_INSTANCE, report_message


@dataclass
class Archive:
    """What an archive has received.

    Attributes:
        stored: SOP Instance UIDs.
        asked: transactions and their instances.
    """

    port: int = 0
    stored: list[str] = field(default_factory=list)
    asked: list[tuple[str, list[tuple[str, str]]]] = field(default_factory=list)


@contextmanager
def archive(
    *, failed: int | None = None, status: int = 0, silent: bool = False, listed: int | None = None
) -> Iterator[Archive]:
    """Run an archive with the AE title ARCHIVE, which reports on the association of the request.

    Args:
        failed: failure reason of all instances; None: all are committed.
        status: status of its answer to requests.
        silent: it never reports.
        listed: number of instances that its reports name; None: all.
    """
    made = Archive()
    entity = AE("ARCHIVE")
    entity.supported_contexts = AllStoragePresentationContexts
    entity.add_supported_context(PUSH_MODEL)

    def store(event: evt.Event) -> int:
        made.stored.append(str(event.request.AffectedSOPInstanceUID))  # type: ignore[union-attr]
        return 0

    def request(event: evt.Event) -> tuple[int, None]:
        message = event.action_information
        items = [(str(i.ReferencedSOPClassUID), str(i.ReferencedSOPInstanceUID)) for i in message.ReferencedSOPSequence]
        made.asked.append((str(message.TransactionUID), items))
        return status, None

    def sent(event: evt.Event) -> None:
        """Report when the answer to the request has left."""
        if type(event.message).__name__ == "N_ACTION_RSP" and not silent and not status:
            transaction, items = made.asked[-1][0], made.asked[-1][1][:listed]
            reasons = dict.fromkeys([uid for _, uid in items], failed) if failed else {}
            report(event.assoc, transaction, items, reasons)

    handlers = [(evt.EVT_C_STORE, store), (evt.EVT_N_ACTION, request), (evt.EVT_DIMSE_SENT, sent)]
    server: Any = entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=handlers)
    made.port = server.server_address[1]
    try:
        yield made
    finally:
        server.shutdown()


def report(association: Any, transaction: str, items: list[tuple[str, str]], failed: Mapping[str, int]) -> None:
    """Send a report on an association, from another thread than its own."""
    message = report_message(transaction, items, failed)
    event = 2 if failed else 1
    arguments = (message, event, PUSH_MODEL, PUSH_MODEL_INSTANCE)
    threading.Thread(target=association.send_n_event_report, args=arguments, daemon=True).start()
