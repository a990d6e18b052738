"""Fair queue positions: acute before batch, a fair share for each caller, and no starvation."""

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


class SimulatedQueue:
    """The queue as a worker sees it: the smallest position first, then the order of arrival."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.callers: dict[str, str] = {}

    def add(self, caller: str, count: int = 1, priority: Priority = Priority.ACUTE) -> None:
        with self.database.session() as session:
            for _ in range(count):
                new = new_prediction(caller, priority=priority)
                self.callers[new.id] = caller + ("" if priority is Priority.ACUTE else "-batch")
                predictions.add(session, new)

    def serve(self, count: int) -> list[str]:
        """Serves the next predictions and returns their callers."""
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
def queue(database: Database) -> SimulatedQueue:
    return SimulatedQueue(database)


def test_caller_with_few_predictions_does_not_wait_for_one_with_many(queue: SimulatedQueue) -> None:
    queue.add("big", 30)
    assert queue.serve(5) == ["big"] * 5
    queue.add("small", 3)
    assert queue.serve(6).count("small") == 3
    queue.add("small", 1)
    assert "small" in queue.serve(2)
    assert Counter(queue.serve(100)) == {"big": 21}


def test_order_within_a_caller_is_the_order_of_arrival(queue: SimulatedQueue, database: Database) -> None:
    queue.add("big", 10)
    queue.serve(5)
    queue.add("big", 3)
    with database.reading() as session:
        in_order = session.scalars(
            select(PredictionRow.created)
            .where(PredictionRow.status == Status.QUEUED)
            .order_by(PredictionRow.queue_position, PredictionRow.created)
        ).all()
    assert in_order == sorted(in_order)


def test_acute_study_is_before_each_batch(queue: SimulatedQueue) -> None:
    queue.add("research", 20, Priority.BATCH)
    queue.add("pacs", 2)
    queue.add("research", 1)
    assert sorted(queue.serve(3)) == ["pacs", "pacs", "research"]
    assert queue.serve(100) == ["research-batch"] * 20


def test_job_engine_serves_by_position(database: Database) -> None:
    engine = Queue(database)
    sent = []
    for caller, priority in (
        ("a", Priority.BATCH),
        ("a", Priority.ACUTE),
        ("a", Priority.ACUTE),
        ("b", Priority.ACUTE),
    ):
        new = new_prediction(caller, priority=priority)
        with database.session() as session:
            add_and_queue(session, engine, new)
        sent.append(new.id)
    jobs = engine._client.list_workflows(status="ENQUEUED")
    in_order = sorted(jobs, key=lambda job: (job.priority or 0, job.created_at or 0))
    assert [job.workflow_id for job in in_order] == [sent[1], sent[3], sent[2], sent[0]]
