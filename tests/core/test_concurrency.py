"""Executors: order, results and errors of tasks in other threads."""

from __future__ import annotations

import gc
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest

from app.core.concurrency import BoundedExecutor, SerialExecutor, submit


def fail() -> None:
    raise ValueError("no")


def test_submitted_task_returns_its_result_or_raises_its_error() -> None:
    assert submit(threading.get_ident).result() != threading.get_ident()
    with pytest.raises(ValueError, match="no"):
        submit(fail).result()


def test_serial_executor_runs_one_task_at_a_time_in_one_thread() -> None:
    serial, lock = SerialExecutor("serial"), threading.Lock()

    def task() -> int:
        assert lock.acquire(blocking=False)
        try:
            return threading.get_ident()
        finally:
            lock.release()

    with ThreadPoolExecutor(8) as callers:
        threads = {future.result() for future in [callers.submit(serial, task) for _ in range(200)]}
    assert len(threads) == 1
    assert serial(lambda: serial(task)) in threads  # a nested task runs at once
    with pytest.raises(ValueError, match="no"):
        serial(fail)


def test_thread_of_a_deleted_serial_executor_ends() -> None:
    serial = SerialExecutor("deleted")
    thread = serial(threading.current_thread)
    del serial
    gc.collect()
    thread.join(10)
    assert not thread.is_alive()


def test_bounded_executor_keeps_the_order_and_the_bound() -> None:
    done: list[int] = []
    proceed = threading.Event()

    def first() -> None:
        proceed.wait(10)

    with BoundedExecutor(3) as bounded:
        bounded(first)
        for number in range(2):
            bounded(partial(done.append, number))
        fourth = threading.Thread(target=lambda: bounded(partial(done.append, 2)))
        fourth.start()  # it waits for the first task
        fourth.join(0.2)
        assert fourth.is_alive()
        proceed.set()
        fourth.join(10)
        bounded.catch_up()
        assert done == [0, 1, 2]


def test_error_of_a_bounded_task_is_raised_by_the_next_call() -> None:
    done: list[str] = []
    with BoundedExecutor(1) as bounded:
        bounded(fail)
        with pytest.raises(ValueError, match="no"):
            bounded(partial(done.append, "after"))
    assert done == []
    with BoundedExecutor(4) as bounded:
        bounded(fail)
        with pytest.raises(ValueError, match="no"):
            bounded.catch_up()


def test_end_of_the_block_waits_for_the_running_task() -> None:
    started, finished = threading.Event(), threading.Event()

    def slow() -> None:
        started.set()
        threading.Event().wait(0.2)
        finished.set()

    with BoundedExecutor(8) as bounded:
        bounded(slow)
        started.wait(10)
        bounded(fail)  # dropped, or its error is not collected any more
    assert finished.is_set()
