"""Delivery of results to DICOM destinations, as jobs of the queue.

Design notes:
- A delivery is queued in the transaction that records the answer, a further try in the one that notes the failure.
- Objects have fixed UIDs, so a repetition stores no second instance. An archive that was away for hours gets them once.
- A pause between tries is at most ten minutes, so that results arrive soon after the archive is back.
- The reason of a failure is a word. Nothing that the other side says is stored or logged.
- Figures are drawn after the answer; the delivery waits for them.
"""

from __future__ import annotations

import logging
import random
from dataclasses import dataclass
from datetime import timedelta

from app.core.egress import EgressClient
from app.core.logging import error_location
from app.core.sealing import open_text
from app.database import audit, destinations
from app.database.destinations import Pending
from app.database.session import Database, now, retry_until_available
from app.dicom.errors import ArchiveFailed
from app.dicom.objects.stored import ResultObjects
from app.sdk.deliveries import DeliveryState
from app.sdk.errors import Erased, NotFinished, NotFound, PredictionNotFound, RlvoError
from app.worker.queue import Queue

log = logging.getLogger("rlvo.dicom")

LONGEST_PAUSE = 600.0
FIGURES_PAUSE = 5.0
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
        state, reason, pause = self._try(due, prediction_id)
        given_up = now() - due.since > timedelta(days=self.days)
        if state is DeliveryState.WAITING and given_up:
            state = DeliveryState.GIVEN_UP
        retry_until_available(lambda: self._note(due, prediction_id, run, tries, state, reason, pause))

    def _pending(self, destination_id: str, prediction_id: str, run: int) -> Pending | None:
        with self.database.reading() as session:
            return destinations.pending(session, prediction_id, destination_id, run)

    def _try(self, due: Pending, prediction_id: str) -> tuple[DeliveryState, str, float]:
        """State, reason, and seconds until the next try."""
        pause = min(self.backoff * 2 ** min(due.tries, 20), LONGEST_PAUSE) * random.uniform(1.0, 1.2)  # noqa: S311
        try:
            self._send(due, prediction_id)
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

    def _send(self, due: Pending, prediction_id: str) -> None:
        from app.dicom.objects.sending import Sender  # here: only a service that sends needs the libraries

        destination, key, sender = due.destination, self.objects.key, Sender(self.egress)
        sender.reach(destination)
        authorization = open_text(destination.secret, key) if destination.secret and key else None
        with self.objects.archive(prediction_id, None) as archive:
            sender.send(destination, archive, authorization)

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
            if state is DeliveryState.WAITING:
                self.queue.queue_delivery(session, destination_id, prediction_id, run, tries + 1, delay=pause)
            else:
                audit.append(session, "worker", f"dicom.{state}", prediction_id, detail)
