"""Delivery of results to DICOM destinations, as jobs of the queue.

Design notes:
- A delivery is queued in the transaction that records the answer, a further try in the one that notes the failure.
- Objects have fixed UIDs, so a repetition stores no second instance. An archive that was away for hours gets them once.
- A pause between tries is at most ten minutes, so that results arrive soon after the archive is back.
- The reason of a failure is a word. Nothing that the other side says is stored or logged.
- Figures are drawn after the answer; the delivery waits for them.
- An archive that offers storage commitment is asked for it when everything is sent. It answers to the listener, or on
  the same association. Without a whole answer it is asked three times in all; the delivery stays delivered.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING

from app.core.egress import EgressClient
from app.core.logging import error_location
from app.core.sealing import open_text
from app.database import audit, commitments, destinations
from app.database.destinations import Pending
from app.database.session import Database, now, retry_until_available
from app.dicom.errors import ArchiveFailed
from app.dicom.objects.stored import ResultObjects
from app.sdk.deliveries import CommitmentState, DeliveryState
from app.sdk.errors import Erased, NotFinished, NotFound, PredictionNotFound, RlvoError
from app.worker.queue import Queue

if TYPE_CHECKING:
    from app.dicom.objects.sending import Said

log = logging.getLogger("rlvo.dicom")

LONGEST_PAUSE = 600.0
FIGURES_PAUSE = 5.0
ASKED_AFTER = (600.0, 3600.0, 6 * 3600.0)
"""Seconds after the delivery at which an archive that has not answered is asked again, and at last given up."""
_NO_OBJECTS = "no-objects"
_FIGURES = "figures-pending"  # no try of the destination


@dataclass(frozen=True)
class DicomDelivery:
    """Delivers results.

    Attributes:
        backoff: seconds before the second try; each further pause is twice as long.
        days: a delivery is given up after this time.
    """

    database: Database
    queue: Queue
    objects: ResultObjects
    egress: EgressClient
    backoff: float
    days: float

    def deliver(self, destination_id: str, prediction_id: str, run: int, tries: int) -> None:
        """Makes one try, and queues the next one if it fails. The first try of a run has ``tries`` = 1."""
        due = retry_until_available(lambda: self._pending(destination_id, prediction_id, run))
        if due is None:
            return
        if due.delivered:
            self._ask_again(due, prediction_id, run, tries)
            return
        state, reason, pause = self._try(due, prediction_id, run)
        given_up = now() - due.since > timedelta(days=self.days)
        if state is DeliveryState.WAITING and given_up:
            state = DeliveryState.GIVEN_UP
        retry_until_available(lambda: self._note(due, prediction_id, run, tries, state, reason, pause))

    def _pending(self, destination_id: str, prediction_id: str, run: int) -> Pending | None:
        with self.database.reading() as session:
            return destinations.pending(session, prediction_id, destination_id, run)

    def _try(self, due: Pending, prediction_id: str, run: int) -> tuple[DeliveryState, str, float]:
        """State, reason, and seconds until the next try."""
        pause = min(self.backoff * 2 ** min(due.tries, 20), LONGEST_PAUSE) * random.uniform(1.0, 1.2)  # noqa: S311
        try:
            self._send(due, prediction_id, run)
        except NotFinished:
            return DeliveryState.WAITING, _FIGURES, FIGURES_PAUSE
        except (NotFound, PredictionNotFound, Erased):
            return DeliveryState.GIVEN_UP, _NO_OBJECTS, 0.0
        except RlvoError as error:
            return DeliveryState.WAITING, error.code, pause
        except ArchiveFailed as failure:
            return DeliveryState.WAITING, str(failure), pause
        except Exception as error:  # noqa: BLE001 - also errors of the network library; the next try may succeed
            log.info("delivery of %s to %s: %s", prediction_id, due.destination.id, error_location(error))
            return DeliveryState.WAITING, "failed", pause
        return DeliveryState.DELIVERED, "", 0.0

    def _send(self, due: Pending, prediction_id: str, run: int) -> None:
        from app.dicom.objects.sending import Sender  # here: only a service that sends needs the libraries

        destination, key, sender = due.destination, self.objects.key, Sender(self.egress)
        sender.reach(destination)
        authorization = open_text(destination.secret, key) if destination.secret and key else None
        with self.objects.archive(prediction_id, None) as archive:
            begin = partial(self._begin, prediction_id, destination.id, run)
            said = sender.send(destination, archive, authorization, begin)
        self._said(due, prediction_id, run, said)

    def _begin(
        self, prediction_id: str, destination_id: str, run: int, transaction_uid: str, uids: Sequence[str]
    ) -> bool:
        """Note that the archive is asked for storage commitment now."""
        with self.database.session() as session:
            return commitments.ask(session, prediction_id, destination_id, run, transaction_uid, uids)

    def _said(self, due: Pending, prediction_id: str, run: int, said: Said) -> None:
        """Note what the archive has said of storage commitment by now."""
        if said is None:
            return
        archive = due.destination
        with self.database.session() as session:
            if isinstance(said, str):
                commitments.note(session, prediction_id, archive.id, run, CommitmentState.REFUSED, said)
            else:
                uid, failed = said.transaction_uid, said.reasons
                commitments.report(session, archive.tenant, archive.called, uid, said.committed, failed)

    def _ask_again(self, due: Pending, prediction_id: str, run: int, tries: int) -> None:
        """Ask an archive that has not answered, or give it up."""
        from app.dicom.objects.sending import Sender

        destination_id, gone = due.destination.id, (now() - due.changed).total_seconds()
        pause = next((later - gone for later in ASKED_AFTER if later > gone), None)
        if pause is not None:
            begin = partial(self._begin, prediction_id, destination_id, run)
            try:
                with self.objects.archive(prediction_id, None) as archive:
                    self._said(due, prediction_id, run, Sender(self.egress).ask(due.destination, archive, begin))
            except (ArchiveFailed, RlvoError) as failure:
                log.info("storage commitment of %s is not asked for: %s", prediction_id, type(failure).__name__)
        retry_until_available(lambda: self._follow(destination_id, prediction_id, run, tries, pause))

    def _follow(self, destination_id: str, prediction_id: str, run: int, tries: int, pause: float | None) -> None:
        """Queue the next question, or give the archive up, if there is no answer yet."""
        with self.database.session() as session:
            if destinations.pending(session, prediction_id, destination_id, run) is None:
                return
            if pause is not None:
                self.queue.queue_delivery(session, destination_id, prediction_id, run, tries + 1, delay=pause)
            else:
                commitments.note(session, prediction_id, destination_id, run, CommitmentState.UNANSWERED)

    def _note(
        self, due: Pending, prediction_id: str, run: int, tries: int, state: DeliveryState, reason: str, pause: float
    ) -> None:
        destination_id, made = due.destination.id, due.tries + (reason != _FIGURES)
        detail = {"destination": destination_id, "tries": made} | ({"why": reason} if reason else {})
        log.info("delivery of %s to %s: try %d, %s %s", prediction_id, destination_id, made, state, reason)
        with self.database.session() as session:
            if not destinations.note(session, prediction_id, destination_id, run, state, reason, tries=made):
                return
            if reason == _FIGURES:
                self.queue.draw_on_demand(session, prediction_id)
            if state is DeliveryState.DELIVERED and destinations.pending(session, prediction_id, destination_id, run):
                self.queue.queue_delivery(session, destination_id, prediction_id, run, tries + 1, delay=ASKED_AFTER[0])
            if state is DeliveryState.WAITING:
                self.queue.queue_delivery(session, destination_id, prediction_id, run, tries + 1, delay=pause)
            else:
                audit.append(session, "worker", f"dicom.{state}", prediction_id, detail)
