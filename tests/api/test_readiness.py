"""Readiness answers within two seconds, whatever hangs."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import anyio
import pytest

from app.api import readiness
from app.api.readiness import NO_ANSWER
from tests.api.conftest import RunningService

pytestmark = pytest.mark.anyio


async def checks(service: RunningService) -> dict[str, str]:
    """The results of the checks, which arrive in time."""
    started = time.monotonic()
    answer = await service.http.get("/readyz")
    assert time.monotonic() - started < 2
    results: dict[str, str] = answer.json()["checks"]
    assert answer.status_code == (200 if set(results.values()) == {"ok"} else 503)
    return results


@contextmanager
def locked(service: RunningService) -> Iterator[None]:
    """Another process holds the lock of the SQLite file."""
    connection = sqlite3.connect(service.services.settings.data_dir / "rlvo.sqlite", isolation_level=None)
    connection.execute("BEGIN EXCLUSIVE")
    try:
        yield
    finally:
        connection.execute("ROLLBACK")
        connection.close()


async def until(condition: Callable[[dict[str, str]], bool], service: RunningService) -> None:
    """Waits for results; on a busy machine a check that meets no fault can take longer than a probe waits."""
    with anyio.fail_after(60):
        while not condition(await checks(service)):
            await anyio.sleep(0.1)


async def test_locked_database_is_told_within_two_seconds(service: RunningService) -> None:
    service.worker.heartbeat("tiny@1.0.0")
    await until(lambda results: set(results.values()) == {"ok"}, service)
    with locked(service):
        threads = threading.active_count()
        for _ in range(5):
            results = await checks(service)
            assert (results["database"], results["worker"], results["storage"]) == (NO_ANSWER, NO_ANSWER, "ok")
        async with anyio.create_task_group() as tasks:
            for _ in range(20):
                tasks.start_soon(checks, service)
        # One thread of each check, however many requests arrive. The background loops wait in one that existed before.
        assert threading.active_count() <= threads + 3
        assert (await service.http.get("/livez")).status_code == 200
    service.worker.heartbeat("tiny@1.0.0")
    await until(lambda results: set(results.values()) == {"ok"}, service)


async def test_hanging_storage_is_told_and_does_not_delay_the_other_checks(
    service: RunningService, monkeypatch: pytest.MonkeyPatch
) -> None:
    service.worker.heartbeat("tiny@1.0.0")
    end = threading.Event()
    monkeypatch.setattr(service.services.storage, "probe", end.wait)  # as a network folder whose server is gone
    await until(lambda results: results | {"storage": NO_ANSWER, "database": "ok", "worker": "ok"} == results, service)
    end.set()
    monkeypatch.undo()
    await until(lambda results: results["storage"] == "ok", service)


async def test_checks_do_not_wait_for_uploads(service: RunningService) -> None:
    end = threading.Event()
    async with anyio.create_task_group() as tasks:
        for _ in range(60):  # more than all threads for uploads and for the database
            tasks.start_soon(service.services.run_in_thread, end.wait)
        await anyio.sleep(0.1)
        await until(lambda results: results["storage"] == "ok", service)
        end.set()


async def test_check_without_a_thread_is_told(service: RunningService, monkeypatch: pytest.MonkeyPatch) -> None:
    class NoThread(threading.Thread):
        def start(self) -> None:
            raise RuntimeError("can't start new thread")

    monkeypatch.setattr(readiness.threading, "Thread", NoThread)
    results = await checks(service)
    assert (results["database"], results["erasures"]) == ("unavailable", "ok")  # the latter needs no thread
    monkeypatch.undo()
    await until(lambda results: results["database"] == "ok", service)


async def test_service_whose_worker_cannot_be_started_says_why(service: RunningService) -> None:
    service.services.worker_fault = lambda: "the worker process cannot be started: EAGAIN"
    await until(lambda results: results["worker"] == "the worker process cannot be started: EAGAIN", service)
    service.worker.heartbeat("tiny@1.0.0")  # a worker of another machine
    await until(lambda results: results["worker"] == "ok", service)
