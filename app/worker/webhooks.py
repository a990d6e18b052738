"""Webhook messages: notifies the systems of a tenant that a prediction has finished.

Design notes:
- Messages and signatures follow Standard Webhooks 1.0 (standardwebhooks.com): headers webhook-id, webhook-timestamp and
  webhook-signature, HMAC-SHA256 over ``id.timestamp.body``.
- A message has the id and the status of the prediction, but no number and no subject. The receiver reads them by API.
- A message is queued in the transaction that finishes the prediction, a further try in the one that notes the failure.
  So each message is sent at least once; the receiver recognises a repetition by its webhook-id.
- A worker can be killed after it has noted a failure and before the engine counts the job as done. The job then runs
  again, finds the next try queued, and sends nothing.
- Each try is one job of the queue. Between tries, no thread and no connection is held.
- A webhook whose receiver answers 410 Gone is ended, as the standard says.
"""

from __future__ import annotations

import json
import logging
import random
import ssl
from dataclasses import dataclass
from datetime import UTC, datetime

import httpx
from standardwebhooks import Webhook as Signer

from app.core.egress import EgressClient, EgressRefused
from app.database import audit, webhooks
from app.database.session import Database, now, retry_until_available
from app.database.webhooks import Webhook
from app.sdk.types import Status
from app.worker.queue import Queue

log = logging.getLogger("rlvo.webhooks")

TRIES = 9
BACKOFF_FACTOR = 5.0  # pauses: 5 s, 25 s, 2 min, 10 min, 52 min, 4 h, 22 h, then a day
LONGEST_PAUSE = 86400.0

_GONE = 410


@dataclass(frozen=True)
class WebhookSender:
    """Delivers queued messages; ``backoff`` is the number of seconds before the second try."""

    database: Database
    queue: Queue
    egress: EgressClient
    backoff: float

    def deliver(self, webhook_id: str, prediction_id: str, tries: int) -> None:
        """Makes one try, and queues the next one if it fails. The first try has ``tries`` = 1."""
        if retry_until_available(lambda: self.queue.has_message(webhook_id, prediction_id, tries + 1)):
            return
        pending = retry_until_available(lambda: self._message(webhook_id, prediction_id))
        if pending is not None:
            webhook, body = pending
            status, error = send(self.egress, webhook, f"{prediction_id}-{webhook_id}", body)
            retry_until_available(lambda: self._note(webhook, prediction_id, tries, status, error))

    def _message(self, webhook_id: str, prediction_id: str) -> tuple[Webhook, str] | None:
        with self.database.reading() as session:
            webhook, finished = webhooks.find(session, webhook_id), webhooks.finished(session, prediction_id)
        return None if webhook is None or finished is None else (webhook, message(prediction_id, *finished))

    def _note(self, webhook: Webhook, prediction_id: str, tries: int, status: int, error: str) -> None:
        """Records the result of a try and queues the next try in the same transaction."""
        detail = {"webhook": webhook.id, "tries": tries, "status": status} | ({"why": error} if error else {})
        log.info("webhook %s of %s: try %d, %d %s", webhook.id, prediction_id, tries, status, error)
        with self.database.session() as session:
            if 200 <= status < 300:
                audit.append(session, "worker", "webhook.delivered", prediction_id, detail)
            elif status == _GONE or error == "refused" or tries >= TRIES:
                if status == _GONE:
                    webhooks.end(session, webhook.id)
                audit.append(session, "worker", "webhook.given-up", prediction_id, detail)
            else:
                self.queue.queue_message(session, webhook.id, prediction_id, tries + 1, delay=self._pause(tries))

    def _pause(self, tries: int) -> float:
        """Seconds after a try, with up to a fifth more, so that a receiver that returns is not flooded."""
        pause = min(self.backoff * BACKOFF_FACTOR ** (tries - 1), LONGEST_PAUSE)
        return pause * random.uniform(1.0, 1.2)  # noqa: S311 - jitter, no secret


def send(egress: EgressClient, webhook: Webhook, message_id: str, body: str) -> tuple[int, str]:
    """Sends one signed message.

    Returns:
        The HTTP status and an empty text; or 0 and the kind of the error, ``refused`` for a host that is not allowed.
    """
    sent = datetime.now(UTC)
    headers = {
        "Content-Type": "application/json",
        "User-Agent": "rlvo",
        "webhook-id": message_id,
        "webhook-timestamp": str(int(sent.timestamp())),
        "webhook-signature": Signer(webhook.secret).sign(message_id, sent, body),
    }
    try:
        return egress.post(webhook.url, body.encode(), headers), ""
    except EgressRefused:
        return 0, "refused"
    except (OSError, httpx.HTTPError, ssl.SSLError) as error:
        return 0, type(error).__name__


def message(prediction_id: str, status: Status, finished: datetime) -> str:
    """Body of a message: event, time and id."""
    return json.dumps(
        {
            "type": f"prediction.{status}",
            "timestamp": finished.isoformat(timespec="milliseconds"),
            "data": {"id": prediction_id},
        }
    )


def test_message(webhook: Webhook) -> tuple[str, str]:
    """Id and body of a test message, which an operator sends to check the receiver."""
    created = now()
    body = {"type": "webhook.test", "timestamp": created.isoformat(timespec="milliseconds"), "data": {"id": webhook.id}}
    return f"test-{webhook.id}-{int(created.timestamp())}", json.dumps(body)
