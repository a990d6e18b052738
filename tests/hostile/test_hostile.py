"""Hostile files, documents and requests against the real service: no 5xx, no death, no echo, and others go on.

A seeded slice runs with the other tests; the whole of it is the soak.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import text

from tests.api.conftest import volume
from tests.api.server import Server, started
from tests.hostile import clinical, http, requests, volumes
from tests.hostile.http import CANARY, Attack
from tests.hostile.judge import Siege, as_document, as_part, besiege

MIB = 1024 * 1024
GOOD = volume()


def attacks() -> Iterator[Attack]:
    return requests.attacks(GOOD)


def documents() -> Iterator[Attack]:
    return (as_document(name, GOOD, document) for name, document in clinical.documents())


def files() -> Iterator[Attack]:
    return (as_part(name, sent_as.value, data) for name, sent_as, data in volumes.volumes())


def headers() -> Iterator[Attack]:
    return (as_part(name, sent_as.value, data) for name, sent_as, data in volumes.mutated())


CORPORA: dict[str, Callable[[], Iterator[Attack]]] = {
    "requests": attacks,
    "documents": documents,
    "files": files,
    "headers": headers,
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, model_store: Path) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("siege")
    with started(folder, model_store, queue_limit="1000000", header_timeout="2", stall_timeout="5") as server:
        yield server


@pytest.fixture(scope="module")
def manned(tmp_path_factory: pytest.TempPathFactory, model_store: Path) -> Iterator[Server]:
    """The same with a worker, which meets what the door let in."""
    bounds = {"queue_limit": "1000000", "header_timeout": "2", "stall_timeout": "5", "threads": "1"}
    with started(tmp_path_factory.mktemp("siege"), model_store, worker=True, **bounds) as server:
        yield server


def all_worked_off(server: Server) -> Counter[str]:
    """How many predictions ended how, once all have; the worker that did it must be the first one."""
    states = Counter[str]()
    end = time.monotonic() + 900
    while not states or states["queued"] or states["running"]:
        assert time.monotonic() < end, states
        time.sleep(1)
        with server.database().reading() as session:
            found = session.execute(text("SELECT status, count(*) FROM predictions GROUP BY status"))
            states = Counter(dict(found.all()))
    assert "the worker ended" not in (server.folder / "log").read_text()
    return states


def held(server: Server, attacks: Iterable[Attack], **bounds: int) -> Siege:
    """The siege, after everything that must be true of it whatever was sent."""
    siege = besiege(server, attacks, **bounds)
    print(f"{siege.sent} sent, {siege.statuses}, p99 {siege.p99:.3f} s, grown {siege.grown / MIB:.1f} MiB")
    assert not siege.faults, "\n".join(siege.faults[:20])
    assert siege.grown < 64 * MIB
    log = (server.folder / "log").read_text()
    assert "Traceback" not in log
    assert "unhandled" not in log
    assert CANARY not in log
    assert "JANE" not in log
    assert list((server.folder / "blobs" / ".incoming").iterdir()) == []
    return siege


@pytest.mark.parametrize(("corpus", "count"), [("requests", 130), ("documents", 80), ("files", 70), ("headers", 60)])
def test_a_slice_of_each_corpus(server: Server, corpus: str, count: int) -> None:
    attacks = [attack for attack in CORPORA[corpus]() if not attack.waits]
    siege = held(server, random.Random(count).sample(attacks, count))
    assert siege.sent == count


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("corpus", CORPORA)
def test_the_whole_corpus(manned: Server, corpus: str) -> None:
    siege = held(manned, CORPORA[corpus]())
    assert siege.p99 < 2.0
    print(f"worked off: {dict(all_worked_off(manned))}")


def test_a_head_that_does_not_come_is_cut_off(server: Server) -> None:
    half = Attack("half a head", (b"GET /livez HTTP/1.1\r\nHost: x\r\nX-Slow: ",), waits=True)
    letters = tuple(b"%c" % byte for byte in b"GET /livez HTTP/1.1\r\nX-Slow: aaaaa")
    drip = Attack("letter by letter", letters, pause=0.1, waits=True)
    siege = besiege(server, [half, drip] * 10, at_once=20)
    assert siege.sent == 20
    assert siege.statuses.keys() == {408}  # who goes on writing may see the hang-up before the answer
    assert siege.statuses[408] >= 10
    assert not siege.faults


def test_a_body_that_falls_silent_is_cut_off(tmp_path: Path, model_store: Path) -> None:
    head = http.form(b"--X\r\n" + b"x" * 500)[:-300]
    with started(tmp_path, model_store, stall_timeout="0.5") as server:
        siege = besiege(server, [Attack("silent", (head,), waits=True)] * 10, at_once=10)
    assert siege.statuses == {408: 10}
    assert not siege.faults
