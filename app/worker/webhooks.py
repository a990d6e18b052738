"""Tells a tenant's own systems that a prediction has finished.

Notable choices:
- Messages and signatures are those of Standard Webhooks (standardwebhooks.com, 1.0): headers webhook-id,
  webhook-timestamp and webhook-signature, HMAC-SHA256 over ``id.timestamp.body``.
- A message holds the prediction's id and how it ended; no number, no subject. Who wants more asks for it, with a key.
- It is queued in the very transaction that finishes the prediction, and each further try in the one that notes that the
  last one failed. So it is sent at least once whatever is killed; the receiver knows a repetition by its webhook-id.
- Each try is one job of the queue. Between tries nothing is held: no thread, no connection.
- A webhook whose receiver answers 410 Gone is ended, as the standard says.
"""

from __future__ import annotations

import json
import logging
import random
import ssl
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
GROWTH = 5.0
"""Each pause is so many times the one before: 5 s, 25 s, 2 min, 10 min, 52 min, 4 h, 22 h, and once more a day."""
LONGEST = 86400.0

_GONE = 410


class WebhookSender:
    """Delivers what is queued. One worker has one.

    :param backoff: seconds before the second try
    """

    def __init__(self, database: Database, queue: Queue, outbound: EgressClient, backoff: float) -> None:
        self._database = database
        self._queue = queue
        self._outbound = outbound
        self._backoff = backoff

    def deliver(self, webhook_id: str, prediction_id: str, tries: int) -> None:
        """One try, and where it fails the next one put into the queue. ``tries`` counts from 1."""
        told = retry_until_available(lambda: self._message(webhook_id, prediction_id))
        if told is not None:
            webhook, body = told
            status, why = send(self._outbound, webhook, f"{prediction_id}-{webhook_id}", body)
            retry_until_available(lambda: self._note(webhook, prediction_id, tries, status, why))

    def _message(self, webhook_id: str, prediction_id: str) -> tuple[Webhook, str] | None:
        with self._database.reading() as session:
            webhook, news = webhooks.find(session, webhook_id), webhooks.news(session, prediction_id)
        return None if webhook is None or news is None else (webhook, message(prediction_id, *news))

    def _note(self, webhook: Webhook, prediction_id: str, tries: int, status: int, why: str) -> None:
        """Puts on record how a try ended, and in the same transaction queues what follows from it."""
        detail = {"webhook": webhook.id, "tries": tries, "status": status} | ({"why": why} if why else {})
        log.info("webhook %s of %s: try %d, %d %s", webhook.id, prediction_id, tries, status, why)
        with self._database.session() as session:
            if 200 <= status < 300:
                audit.append(session, "worker", "webhook.delivered", prediction_id, detail)
            elif status == _GONE or why == "refused" or tries >= TRIES:
                if status == _GONE:
                    webhooks.end(session, webhook.id)
                audit.append(session, "worker", "webhook.given-up", prediction_id, detail)
            else:
                self._queue.tell(session, webhook.id, prediction_id, tries + 1, delay=self._pause(tries))

    def _pause(self, tries: int) -> float:
        """Seconds after the ``tries``-th try; up to a fifth more, so that receivers that come back are not flooded."""
        pause = min(self._backoff * GROWTH ** (tries - 1), LONGEST)
        return pause * random.uniform(1.0, 1.2)  # noqa: S311 - a spread, no secret


def send(outbound: EgressClient, webhook: Webhook, message_id: str, body: str) -> tuple[int, str]:
    """Sends one signed message; the status of the answer, or 0 and in a word why there was none."""
    moment = datetime.now(UTC)
    headers = {
        "Content-Type": "application/json",
        "User-Agent": "rlvo",
        "webhook-id": message_id,
        "webhook-timestamp": str(int(moment.timestamp())),
        "webhook-signature": Signer(webhook.secret).sign(message_id, moment, body),
    }
    try:
        return outbound.post(webhook.url, body.encode(), headers), ""
    except EgressRefused:
        return 0, "refused"
    except (OSError, httpx.HTTPError, ssl.SSLError) as error:
        return 0, type(error).__name__


def message(prediction_id: str, status: Status, finished: datetime) -> str:
    """The body: what happened, when, and to which id."""
    return json.dumps(
        {
            "type": f"prediction.{status}",
            "timestamp": finished.isoformat(timespec="milliseconds"),
            "data": {"id": prediction_id},
        }
    )


def test_message(webhook: Webhook) -> tuple[str, str]:
    """Id and body of a message that an operator sends to see whether it arrives."""
    moment = now()
    body = {"type": "webhook.test", "timestamp": moment.isoformat(timespec="milliseconds"), "data": {"id": webhook.id}}
    return f"test-{webhook.id}-{int(moment.timestamp())}", json.dumps(body)
