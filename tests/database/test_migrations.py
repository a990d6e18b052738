"""Migrations keep the rows of earlier releases."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import text

from app.database import api_keys, job_state, model_requests, predictions, session, workers
from app.database.model_requests import LoadRequest
from app.database.session import Database
from app.database.tables import PredictionRow
from app.sdk.types import FoldSpread, Status

TIME = datetime(2026, 11, 20, 8, 30, 15, 250_000, tzinfo=UTC)
ID = "0193a0c4-7c1e-7b7e-9d0a-3f5a1c2b4d6e"


def upgrade_to(database: Database, revision: str) -> None:
    config = Config()
    config.set_main_option("script_location", str(session._MIGRATIONS))
    with database.engine.connect() as connection:
        if database.sqlite:
            connection.execute(text("BEGIN IMMEDIATE"))
        config.attributes["connection"] = connection
        command.upgrade(config, revision)
        connection.commit()


def insert(database: Database, table: str, **values: object) -> None:
    """Inserts a row as the release of that time did; SQLite stores UTC without a zone."""
    row = {
        name: value.strftime("%Y-%m-%d %H:%M:%S.%f") if database.sqlite and isinstance(value, datetime) else value
        for name, value in values.items()
    }
    columns, parameters = ", ".join(row), ", ".join(f":{name}" for name in row)
    with database.session() as connection:
        connection.execute(text(f"INSERT INTO {table} ({columns}) VALUES ({parameters})"), row)


@pytest.fixture
def database_0007(empty_database_url: str) -> Database:
    """A database of the release before migration 0008, with a request, a worker and a queued prediction."""
    database = Database(empty_database_url)
    upgrade_to(database, "0007")
    insert(database, "demands", name="tiny", version="1.0.0", wanted=True, ticket=3, asked=TIME)
    insert(database, "demands", name="tiny", version="0.9.0", wanted=False, ticket=1, asked=TIME)
    insert(
        database,
        "workers",
        id="w-1",
        host="node-1",
        pid=42,
        device="cpu",
        models=json.dumps(["tiny@1.0.0"]),
        answers=json.dumps({"tiny@1.0.0": {"ticket": 3, "error": None}}),
        usage=json.dumps({"resident": 10, "weights": 5, "device_used": 0, "device_whole": 0}),
        started=TIME,
        beat=TIME,
        beats=17,
    )
    insert(
        database,
        "predictions",
        id=ID,
        caller="pacs",
        status="queued",
        progress=0.0,
        created=TIME,
        run=2,
        attempts=1,
        turn=1_000_000_007,
        model_name="tiny",
        model_version="1.0.0",
        model_digest="sha256:" + "0" * 64,
        subject="S-1",
        explain=True,
        exact=True,
        clinical=json.dumps({"age": 71}),
        inputs=json.dumps({}),
    )
    return database


def test_upgrade_from_0007_keeps_all_values(database_0007: Database) -> None:
    database_0007.upgrade()
    with database_0007.reading() as reading:
        assert set(model_requests.current(reading)) == {
            LoadRequest("tiny", "1.0.0", True, 3),
            LoadRequest("tiny", "0.9.0", False, 1),
        }
        (worker,) = workers.registered(reading)
        row = reading.get_one(PredictionRow, ID)
        prediction = predictions.find(reading, ID, "pacs")
        study = job_state.recorded(reading, ID)
    assert (worker.id, worker.host, worker.pid, worker.models) == ("w-1", "node-1", 42, ("tiny@1.0.0",))
    assert (worker.started, worker.last_heartbeat, worker.heartbeats) == (TIME, TIME, 17)
    assert worker.usage == workers.Usage(resident=10, weights=5)
    assert worker.load_results == {}  # the worker writes them again with its next heartbeat
    assert (row.queue_position, row.run, row.attempts) == (1_000_000_007, 2, 1)
    assert (prediction.status, prediction.created, prediction.subject) == (Status.QUEUED, TIME, "S-1")
    assert (study.clinical, study.explain, study.exact) == ({"age": 71}, True, True)
    assert prediction.waiting is None
    with database_0007.reading() as reading:
        assert job_state.waiting(reading) == []  # a queued row of an earlier release waits for a worker only
    database_0007.close()


def test_keys_of_the_release_before_0012_that_may_predict_may_still_erase(database_0007: Database) -> None:
    upgrade_to(database_0007, "0011")
    for name, scopes in (("pacs", ["predict", "read"]), ("dashboard", ["read"]), ("admin", ["models:admin"])):
        key = {"id": name, "name": name, "tenant": name, "hash": name, "created": TIME, "scopes": json.dumps(scopes)}
        insert(database_0007, "api_keys", **key)
    database_0007.upgrade()
    with database_0007.reading() as reading:
        scopes = {key.name: set(key.scopes) for key in api_keys.listed(reading)}
    assert scopes == {"pacs": {"predict", "read", "erase"}, "dashboard": {"read"}, "admin": {"models:admin"}}
    database_0007.close()


def test_upgraded_database_accepts_new_rows(database_0007: Database) -> None:
    database_0007.upgrade()
    with database_0007.session() as writing:
        assert model_requests.request(writing, "tiny", "1.0.0", wanted=False) == 4
        started = job_state.start(writing, ID)
        assert started
        assert started.run == 3
        assert workers.deregister(writing, "w-1")
    database_0007.close()


def test_answer_of_the_release_before_0009_keeps_decision_and_interval(database_0007: Database) -> None:
    """The row has an interval with a level, flags without a severity, and a decision in spite of a warning."""
    upgrade_to(database_0007, "0008")
    with database_0007.session() as session:
        values = {
            "status": "succeeded",
            "probability": 0.37,
            "interval": json.dumps({"level": 0.9, "low": 0.24, "high": 0.51}),
            "folds": json.dumps([0.31, 0.35, 0.41, 0.4]),
            "decision": json.dumps({"refractory": True, "threshold": 0.22, "rule": "max F1", "conformal": None}),
            "flags": json.dumps([{"code": "alignment-poor", "detail": "cta: it is poor"}]),
        }
        columns = ", ".join(f"{name} = :{name}" for name in values)
        session.execute(text(f"UPDATE predictions SET {columns} WHERE id = :id"), values | {"id": ID})
    database_0007.upgrade()
    with database_0007.reading() as reading:
        prediction = predictions.find(reading, ID, "pacs")
        assert not job_state.recorded(reading, ID).accept_warnings
    assert prediction.interval == FoldSpread(low=0.31, high=0.41)
    assert prediction.decision
    assert (prediction.withheld, prediction.accept_warnings) == ([], False)
    assert [flag.code for flag in prediction.warnings] == ["alignment-poor"]
    database_0007.close()
