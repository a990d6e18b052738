"""Work in other threads: its order, its results and its errors."""

from __future__ import annotations

import gc
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest

from app.core.concurrency import BoundedExecutor, SerialExecutor, submit


def refuse() -> None:
    raise ValueError("no")


def test_a_task_aside_gives_its_result_or_its_error() -> None:
    assert submit(threading.get_ident).result() != threading.get_ident()
    with pytest.raises(ValueError, match="no"):
        submit(refuse).result()


def test_one_thread_does_it_all_a_piece_at_a_time() -> None:
    alone, inside = SerialExecutor("alone"), threading.Lock()

    def piece() -> int:
        assert inside.acquire(blocking=False)
        try:
            return threading.get_ident()
        finally:
            inside.release()

    with ThreadPoolExecutor(8) as askers:
        threads = {asked.result() for asked in [askers.submit(alone, piece) for _ in range(200)]}
    assert len(threads) == 1
    assert alone(lambda: alone(piece)) in threads  # a task's own task is done at once, not waited for
    with pytest.raises(ValueError, match="no"):
        alone(refuse)


def test_the_one_thread_ends_with_whoever_owned_it() -> None:
    alone = SerialExecutor("owned")
    here = alone(threading.current_thread)
    del alone
    gc.collect()
    here.join(10)
    assert not here.is_alive()


def test_what_lies_behind_is_done_in_order_and_no_further_behind_than_allowed() -> None:
    done: list[int] = []
    go_on = threading.Event()

    def first() -> None:
        go_on.wait(10)

    with BoundedExecutor(3) as behind:
        behind(first)
        for number in range(2):
            behind(partial(done.append, number))
        late = threading.Thread(target=lambda: behind(partial(done.append, 2)))
        late.start()  # a fourth: it has to wait for the first
        late.join(0.2)
        assert late.is_alive()
        go_on.set()
        late.join(10)
        behind.catch_up()
        assert done == [0, 1, 2]


def test_an_error_behind_reaches_whoever_gives_the_next_task_and_drops_the_rest() -> None:
    done: list[str] = []
    with BoundedExecutor(1) as behind:
        behind(refuse)
        with pytest.raises(ValueError, match="no"):
            behind(partial(done.append, "after"))
    assert done == []
    with BoundedExecutor(4) as behind:
        behind(refuse)
        with pytest.raises(ValueError, match="no"):
            behind.catch_up()


def test_leaving_early_waits_for_the_task_in_hand() -> None:
    begun, finished = threading.Event(), threading.Event()

    def slow() -> None:
        begun.set()
        threading.Event().wait(0.2)
        finished.set()

    with BoundedExecutor(8) as behind:
        behind(slow)
        begun.wait(10)
        behind(refuse)  # never begun, or nobody's matter any more
    assert finished.is_set()
