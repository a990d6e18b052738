"""Webhooks: signed as the standard says, ids only, tried until they arrive, by real workers to a real receiver."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.orm import Session
from standardwebhooks import WebhookVerificationError

from app.core.egress import EgressClient
from app.database import predictions, webhooks
from app.database.session import Database
from app.database.webhooks import Webhook
from app.sdk.types import Status
from app.worker.queue import NEWS_JOB, Queue
from app.worker.webhooks import WebhookSender
from tests import study
from tests.receiver import Receiver, receiving
from tests.site import Site, wait
from tests.worker.test_process import model_store, site

__all__ = ["model_store", "site"]


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving(204) as receiver:
        yield receiver


def subscribe(database: Database, receiver: Receiver, tenant: str = "pacs") -> Webhook:
    with database.session() as session:
        return webhooks.create(session, tenant, receiver.url)


def finish(database: Database) -> str:
    """A prediction that has finished: its id."""
    new = study.new_prediction()
    with database.session() as session:
        study.add_and_queue(session, Queue(database), new)
        predictions.cancel(session, new.id, None)
    return new.id


def postman(database: Database, receiver: Receiver) -> WebhookSender:
    return WebhookSender(database, Queue(database), EgressClient(f"http://127.0.0.1:{receiver.port}"), 5.0)


def audited(database: Database, prediction_id: str) -> list[tuple[str, int]]:
    """What the audit tells of the messages about a prediction: how they ended, at which try."""
    query = "SELECT action, detail FROM audit WHERE target = :id AND action LIKE 'webhook.%' ORDER BY seq"
    with database.reading() as session:
        rows = session.execute(text(query), {"id": prediction_id}).all()
    return [(action, (json.loads(detail) if isinstance(detail, str) else detail)["tries"]) for action, detail in rows]


def queued(database: Database) -> list[tuple[str, str]]:
    """The tries that are in the queue: their ids and states."""
    table = "workflow_status" if database.sqlite else "dbos.workflow_status"
    with database.reading() as session:
        rows = session.execute(
            text(f"SELECT workflow_uuid, status FROM {table} WHERE name = :name ORDER BY 1"), {"name": NEWS_JOB}
        ).all()
    return [(row[0], row[1]) for row in rows]


def test_a_message_holds_an_id_and_verifies(database: Database, receiver: Receiver) -> None:
    webhook, prediction_id = subscribe(database, receiver), finish(database)
    postman(database, receiver).deliver(webhook.id, prediction_id, 1)
    told = receiver.verified(webhook.secret)
    assert told["type"] == "prediction.cancelled"
    assert told["data"] == {"id": prediction_id}
    assert set(told) == {"type", "timestamp", "data"}
    assert audited(database, prediction_id) == [("webhook.delivered", 1)]


def test_a_changed_message_does_not_verify(database: Database, receiver: Receiver) -> None:
    webhook, prediction_id = subscribe(database, receiver), finish(database)
    postman(database, receiver).deliver(webhook.id, prediction_id, 1)
    receiver.bodies[0] = receiver.bodies[0].replace(b"cancelled", b"succeeded")
    with pytest.raises(WebhookVerificationError):
        receiver.verified(webhook.secret)


@pytest.mark.parametrize("status", [500, 404, 302, 199])
def test_what_was_not_taken_is_queued_for_later(database: Database, status: int) -> None:
    with receiving(status) as receiver:
        webhook, prediction_id = subscribe(database, receiver), finish(database)
        postman(database, receiver).deliver(webhook.id, prediction_id, 1)
    assert audited(database, prediction_id) == []
    assert queued(database)[-1] == (f"{NEWS_JOB}-{webhook.id}-{prediction_id}-2", "DELAYED")


def test_the_last_try_gives_up(database: Database) -> None:
    with receiving(500) as receiver:
        webhook, prediction_id = subscribe(database, receiver), finish(database)
        postman(database, receiver).deliver(webhook.id, prediction_id, 9)
    assert audited(database, prediction_id) == [("webhook.given-up", 9)]
    assert queued(database) == []


def test_who_is_gone_is_told_nothing_more(database: Database) -> None:
    with receiving(410) as receiver:
        webhook, prediction_id = subscribe(database, receiver), finish(database)
        for _ in range(2):
            postman(database, receiver).deliver(webhook.id, prediction_id, 1)
    assert len(receiver.bodies) == 1
    with database.reading() as session:
        assert webhooks.wanting(session, prediction_id) == []
        assert webhooks.listed(session)[0].ended


def test_a_host_that_was_taken_off_the_list_is_not_called(database: Database, receiver: Receiver) -> None:
    webhook, prediction_id = subscribe(database, receiver), finish(database)
    WebhookSender(database, Queue(database), EgressClient(""), 5.0).deliver(webhook.id, prediction_id, 1)
    assert receiver.bodies == []
    assert audited(database, prediction_id) == [("webhook.given-up", 1)]


def test_of_an_erased_prediction_nothing_is_told(database: Database, receiver: Receiver) -> None:
    webhook, prediction_id = subscribe(database, receiver), finish(database)
    with database.session() as session:
        predictions.erase(session, prediction_id, None)
    postman(database, receiver).deliver(webhook.id, prediction_id, 1)
    assert receiver.bodies == []


def test_finishing_and_telling_are_one_transaction(database: Database, receiver: Receiver) -> None:
    webhook, prediction_id = subscribe(database, receiver), finish(database)
    subscribe(database, receiver, tenant="another")
    queue = Queue(database)
    with database.engine.begin() as connection, Session(connection) as session:
        queue.announce(session, prediction_id)
        connection.rollback()
    assert queued(database) == []
    for _ in range(2):  # the second time says nothing new
        with database.session() as session:
            queue.announce(session, prediction_id)
    assert queued(database) == [(f"{NEWS_JOB}-{webhook.id}-{prediction_id}-1", "ENQUEUED")]


def test_a_worker_tells_until_it_is_heard(site: Site) -> None:
    with receiving(503, 500, 200) as receiver:
        webhook = subscribe(site.database, receiver)
        site.worker(RLVO_WEBHOOK_HOSTS=f"http://127.0.0.1:{receiver.port}", RLVO_WEBHOOK_BACKOFF="0.2")
        prediction_id = site.submit(subject="CANARY")
        wait(lambda: audited(site.database, prediction_id) == [("webhook.delivered", 3)])
    assert site.find(prediction_id).status is Status.SUCCEEDED
    told = [receiver.verified(webhook.secret, number) for number in range(3)]
    assert told[0] == told[1] == told[2]
    assert told[0]["type"] == "prediction.succeeded"
    assert len({headers["webhook-id"] for headers in receiver.headers}) == 1
    assert "CANARY" not in str((receiver.bodies, receiver.headers))


@pytest.mark.parametrize("moment", ["while it sends", "between two tries"])
def test_a_message_outlives_the_worker_that_was_to_send_it(site: Site, moment: str) -> None:
    with receiving(500, 204) as receiver:
        webhook = subscribe(site.database, receiver)
        settings = {"RLVO_WEBHOOK_HOSTS": f"http://127.0.0.1:{receiver.port}", "RLVO_WEBHOOK_BACKOFF": "1"}
        first = site.worker(**settings)
        prediction_id = site.submit()
        wait(lambda: len(receiver.bodies) == 1)
        if moment == "between two tries":
            wait(lambda: queued(site.database)[-1] == (f"{NEWS_JOB}-{webhook.id}-{prediction_id}-2", "DELAYED"))
        first.kill()
        site.worker(**settings)
        wait(lambda: [ending for ending, _ in audited(site.database, prediction_id)] == ["webhook.delivered"])
        assert receiver.verified(webhook.secret)["data"] == {"id": prediction_id}


def test_the_operator_adds_tries_and_removes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, receiver: Receiver
) -> None:
    from typer.testing import CliRunner

    from app.cli.__main__ import app

    monkeypatch.setenv("RLVO_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("RLVO_WEBHOOK_HOSTS", f"http://127.0.0.1:{receiver.port}")
    command = CliRunner()
    secret = command.invoke(app, ["webhooks", "add", receiver.url, "--tenant", "pacs"]).stdout.strip()
    assert secret.startswith("whsec_")
    listed = command.invoke(app, ["webhooks", "list"]).stdout
    assert "pacs" in listed
    assert secret[6:] not in listed
    webhook_id = listed.split("\n")[3].split()[0]
    assert command.invoke(app, ["webhooks", "test", webhook_id]).stdout == "answered 204\n"
    assert receiver.verified(secret)["type"] == "webhook.test"
    assert command.invoke(app, ["webhooks", "remove", webhook_id]).exit_code == 0
    assert command.invoke(app, ["webhooks", "remove", webhook_id]).exit_code == 2
    assert command.invoke(app, ["webhooks", "test", webhook_id]).exit_code == 2
    assert "does not list" in str(
        command.invoke(app, ["webhooks", "add", "https://a.example/", "--tenant", "pacs"]).exception
    )
