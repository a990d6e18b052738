"""Whose turn it is: acute before batch, callers by turns, and nobody starves."""

from __future__ import annotations

from collections import Counter

import pytest
from sqlalchemy import select

from app.database import job_state, predictions
from app.database.session import Database
from app.database.tables import PredictionRow
from app.sdk.types import Priority, Status
from app.worker.queue import Queue
from tests.study import add_and_queue, new_prediction


class Line:
    """The queue as a worker meets it: the smallest turn first, then the order of arrival."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.callers: dict[str, str] = {}

    def join(self, caller: str, count: int = 1, priority: Priority = Priority.ACUTE) -> None:
        with self.database.session() as session:
            for _ in range(count):
                new = new_prediction(caller, priority=priority)
                self.callers[new.id] = caller + ("" if priority is Priority.ACUTE else "-batch")
                predictions.add(session, new)

    def serve(self, count: int) -> list[str]:
        """Who is served next, one after the other."""
        served = []
        for _ in range(count):
            with self.database.session() as session:
                waiting = select(PredictionRow.id).where(PredictionRow.status == Status.QUEUED)
                first = session.scalars(waiting.order_by(PredictionRow.queue_position, PredictionRow.created)).first()
                if first is None:
                    break
                job_state.start(session, first)
                served.append(self.callers[first])
        return served


@pytest.fixture
def line(database: Database) -> Line:
    return Line(database)


def test_who_sends_few_does_not_wait_for_who_sends_many(line: Line) -> None:
    line.join("big", 30)
    assert line.serve(5) == ["big"] * 5
    line.join("small", 3)
    assert line.serve(6).count("small") == 3
    line.join("small", 1)
    assert "small" in line.serve(2)
    assert Counter(line.serve(100)) == {"big": 21}


def test_within_a_caller_the_order_is_that_of_arrival(line: Line, database: Database) -> None:
    line.join("big", 10)
    line.serve(5)
    line.join("big", 3)
    with database.reading() as session:
        in_turn = session.scalars(
            select(PredictionRow.created)
            .where(PredictionRow.status == Status.QUEUED)
            .order_by(PredictionRow.queue_position, PredictionRow.created)
        ).all()
    assert in_turn == sorted(in_turn)


def test_an_acute_study_goes_before_every_batch(line: Line) -> None:
    line.join("research", 20, Priority.BATCH)
    line.join("pacs", 2)
    line.join("research", 1)
    assert sorted(line.serve(3)) == ["pacs", "pacs", "research"]
    assert line.serve(100) == ["research-batch"] * 20


def test_the_job_engine_serves_by_turns(line: Line, database: Database) -> None:
    queue = Queue(database)
    sent = []
    for caller, priority in (
        ("a", Priority.BATCH),
        ("a", Priority.ACUTE),
        ("a", Priority.ACUTE),
        ("b", Priority.ACUTE),
    ):
        new = new_prediction(caller, priority=priority)
        with database.session() as session:
            add_and_queue(session, queue, new)
        sent.append(new.id)
    jobs = queue._client.list_workflows(status="ENQUEUED")
    in_turn = sorted(jobs, key=lambda job: (job.priority or 0, job.created_at or 0))
    assert [job.workflow_id for job in in_turn] == [sent[1], sent[3], sent[2], sent[0]]
