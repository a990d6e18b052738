"""Webhooks by real workers to a real receiver: signed, with ids only, and tried until they arrive."""

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
from app.worker.queue import WEBHOOK_JOB, Queue
from app.worker.webhooks import WebhookSender
from tests import study
from tests.deployment import Deployment, wait
from tests.receiver import Receiver, receiving


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving(204) as receiver:
        yield receiver


def subscribe(database: Database, receiver: Receiver, tenant: str = "pacs") -> Webhook:
    with database.session() as session:
        return webhooks.create(session, tenant, receiver.url)


def finish(database: Database) -> str:
    """Id of a prediction that has finished."""
    new = study.new_prediction()
    with database.session() as session:
        study.add_and_queue(session, Queue(database), new)
        predictions.cancel(session, new.id, None)
    return new.id


def make_sender(database: Database, receiver: Receiver) -> WebhookSender:
    return WebhookSender(database, Queue(database), EgressClient(f"http://127.0.0.1:{receiver.port}"), 5.0)


def audited(database: Database, prediction_id: str) -> list[tuple[str, int]]:
    """Audit entries of the messages about a prediction: action and number of the try."""
    query = "SELECT action, detail FROM audit WHERE target = :id AND action LIKE 'webhook.%' ORDER BY seq"
    with database.reading() as session:
        rows = session.execute(text(query), {"id": prediction_id}).all()
    return [(action, (json.loads(detail) if isinstance(detail, str) else detail)["tries"]) for action, detail in rows]


def queued(database: Database) -> list[tuple[str, str]]:
    """Tries in the queue: ids and states."""
    table = "workflow_status" if database.sqlite else "dbos.workflow_status"
    with database.reading() as session:
        rows = session.execute(
            text(f"SELECT workflow_uuid, status FROM {table} WHERE name = :name ORDER BY 1"), {"name": WEBHOOK_JOB}
        ).all()
    return [(row[0], row[1]) for row in rows]


def test_message_has_an_id_and_a_valid_signature(database: Database, receiver: Receiver) -> None:
    webhook, prediction_id = subscribe(database, receiver), finish(database)
    make_sender(database, receiver).deliver(webhook.id, prediction_id, 1)
    message = receiver.verified(webhook.secret)
    assert message["type"] == "prediction.cancelled"
    assert message["data"] == {"id": prediction_id}
    assert set(message) == {"type", "timestamp", "data"}
    assert audited(database, prediction_id) == [("webhook.delivered", 1)]


def test_changed_message_has_no_valid_signature(database: Database, receiver: Receiver) -> None:
    webhook, prediction_id = subscribe(database, receiver), finish(database)
    make_sender(database, receiver).deliver(webhook.id, prediction_id, 1)
    receiver.bodies[0] = receiver.bodies[0].replace(b"cancelled", b"succeeded")
    with pytest.raises(WebhookVerificationError):
        receiver.verified(webhook.secret)


@pytest.mark.parametrize("status", [500, 404, 302, 199])
def test_refused_message_is_queued_again(database: Database, status: int) -> None:
    with receiving(status) as receiver:
        webhook, prediction_id = subscribe(database, receiver), finish(database)
        make_sender(database, receiver).deliver(webhook.id, prediction_id, 1)
    assert audited(database, prediction_id) == []
    assert queued(database)[-1] == (f"{WEBHOOK_JOB}-{webhook.id}-{prediction_id}-2", "DELAYED")


def test_try_whose_failure_is_noted_is_not_made_again(database: Database) -> None:
    """As when its worker is killed before the engine counts the job as done."""
    with receiving(500, 204) as receiver:
        webhook, prediction_id = subscribe(database, receiver), finish(database)
        sender = make_sender(database, receiver)
        for _ in range(2):
            sender.deliver(webhook.id, prediction_id, 1)
        assert len(receiver.bodies) == 1
        sender.deliver(webhook.id, prediction_id, 2)
        assert len(receiver.bodies) == 2
    assert audited(database, prediction_id) == [("webhook.delivered", 2)]


def test_last_try_gives_up(database: Database) -> None:
    with receiving(500) as receiver:
        webhook, prediction_id = subscribe(database, receiver), finish(database)
        make_sender(database, receiver).deliver(webhook.id, prediction_id, 9)
    assert audited(database, prediction_id) == [("webhook.given-up", 9)]
    assert queued(database) == []


def test_receiver_that_answers_410_gets_no_more_messages(database: Database) -> None:
    with receiving(410) as receiver:
        webhook, prediction_id = subscribe(database, receiver), finish(database)
        for _ in range(2):
            make_sender(database, receiver).deliver(webhook.id, prediction_id, 1)
    assert len(receiver.bodies) == 1
    with database.reading() as session:
        assert webhooks.subscribed(session, prediction_id) == []
        assert webhooks.listed(session)[0].ended


def test_host_that_is_no_longer_allowed_gets_no_message(database: Database, receiver: Receiver) -> None:
    webhook, prediction_id = subscribe(database, receiver), finish(database)
    WebhookSender(database, Queue(database), EgressClient(""), 5.0).deliver(webhook.id, prediction_id, 1)
    assert receiver.bodies == []
    assert audited(database, prediction_id) == [("webhook.given-up", 1)]


def test_erased_prediction_sends_no_message(database: Database, receiver: Receiver) -> None:
    webhook, prediction_id = subscribe(database, receiver), finish(database)
    with database.session() as session:
        predictions.erase(session, prediction_id, None)
    make_sender(database, receiver).deliver(webhook.id, prediction_id, 1)
    assert receiver.bodies == []


def test_message_is_queued_in_the_transaction_of_the_prediction(database: Database, receiver: Receiver) -> None:
    webhook, prediction_id = subscribe(database, receiver), finish(database)
    subscribe(database, receiver, tenant="another")
    queue = Queue(database)
    with database.engine.begin() as connection, Session(connection) as session:
        queue.queue_webhooks(session, prediction_id)
        connection.rollback()
    assert queued(database) == []
    for _ in range(2):  # the second call adds no job
        with database.session() as session:
            queue.queue_webhooks(session, prediction_id)
    assert queued(database) == [(f"{WEBHOOK_JOB}-{webhook.id}-{prediction_id}-1", "ENQUEUED")]


def test_worker_repeats_a_message_until_it_arrives(deployment: Deployment) -> None:
    with receiving(503, 500, 200) as receiver:
        webhook = subscribe(deployment.database, receiver)
        deployment.start_worker(RLVO_WEBHOOK_HOSTS=f"http://127.0.0.1:{receiver.port}", RLVO_WEBHOOK_BACKOFF="0.2")
        prediction_id = deployment.submit(subject="CANARY")
        wait(lambda: audited(deployment.database, prediction_id) == [("webhook.delivered", 3)])
    assert deployment.find(prediction_id).status is Status.SUCCEEDED
    messages = [receiver.verified(webhook.secret, number) for number in range(3)]
    assert messages[0] == messages[1] == messages[2]
    assert messages[0]["type"] == "prediction.succeeded"
    assert len({headers["webhook-id"] for headers in receiver.headers}) == 1
    assert "CANARY" not in str((receiver.bodies, receiver.headers))


@pytest.mark.parametrize("kill_time", ["while it sends", "between two tries"])
def test_message_survives_a_kill_of_its_worker(deployment: Deployment, kill_time: str) -> None:
    with receiving(500, 204) as receiver:
        webhook = subscribe(deployment.database, receiver)
        settings = {"RLVO_WEBHOOK_HOSTS": f"http://127.0.0.1:{receiver.port}", "RLVO_WEBHOOK_BACKOFF": "1"}
        first = deployment.start_worker(**settings)
        prediction_id = deployment.submit()
        wait(lambda: len(receiver.bodies) == 1)
        if kill_time == "between two tries":
            second_try = f"{WEBHOOK_JOB}-{webhook.id}-{prediction_id}-2"
            wait(lambda: queued(deployment.database)[-1] == (second_try, "DELAYED"))
        first.kill()
        deployment.start_worker(**settings)
        wait(lambda: [ending for ending, _ in audited(deployment.database, prediction_id)] == ["webhook.delivered"])
        assert receiver.verified(webhook.secret)["data"] == {"id": prediction_id}


def test_operator_adds_tests_and_removes_a_webhook(
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
