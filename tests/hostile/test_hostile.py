"""Hostile files, documents and requests against the real service.

None may cause a 5xx, stop the service, be repeated in a response, or delay other clients. A seeded sample runs with the
other tests; the soak tests send everything.
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
from tests.deployment import wait
from tests.hostile import clinical, http, requests, volumes
from tests.hostile.http import CANARY, Attack
from tests.hostile.runner import AT_ONCE, AttackReport, as_document, as_part, run_attacks

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
    folder = tmp_path_factory.mktemp("hostile")
    with started(folder, model_store, queue_limit="1000000", header_timeout="2", stall_timeout="5") as server:
        yield server


@pytest.fixture(scope="module")
def server_with_worker(tmp_path_factory: pytest.TempPathFactory, model_store: Path) -> Iterator[Server]:
    """The same with a worker, which processes the studies that were accepted."""
    limits = {"queue_limit": "1000000", "header_timeout": "2", "stall_timeout": "5", "threads": "1"}
    with started(tmp_path_factory.mktemp("hostile"), model_store, worker=True, **limits) as server:
        yield server


def wait_for_predictions(server: Server) -> Counter[str]:
    """Waits until all predictions have finished; counts them by status and checks that the worker was not restarted."""
    states = Counter[str]()
    end = time.monotonic() + 900
    while not states or states["queued"] or states["running"]:
        assert time.monotonic() < end, states
        time.sleep(1)
        with server.database().reading() as session:
            rows = session.execute(text("SELECT status, count(*) FROM predictions GROUP BY status"))
            states = Counter(dict(rows.all()))
    assert "the worker ended" not in (server.folder / "log").read_text()
    return states


def check_attacks(server: Server, attacks: Iterable[Attack]) -> AttackReport:
    """Sends the attacks and checks the responses, the memory, the log and the temporary files of the service."""
    report = run_attacks(server, attacks)
    growth = report.memory_growth / MIB
    print(f"{report.sent} sent, {report.statuses}, p99 {report.p99:.3f} s, memory growth {growth:.1f} MiB")
    print(*report.late, sep="\n")
    assert not report.faults, "\n".join(report.faults[:20])
    assert len(report.late) <= AT_ONCE, report.late  # as many as one pause of the machine delays
    assert report.memory_growth < 64 * MIB
    log = (server.folder / "log").read_text()
    assert "Traceback" not in log
    assert "unhandled" not in log
    assert CANARY not in log
    assert "JANE" not in log
    wait(lambda: server.incoming() == [])  # the route ends after the answer of the parser
    return report


@pytest.mark.parametrize(("corpus", "count"), [("requests", 130), ("documents", 80), ("files", 70), ("headers", 60)])
def test_sample_of_each_corpus(server: Server, corpus: str, count: int) -> None:
    attacks = [attack for attack in CORPORA[corpus]() if not attack.waits]
    report = check_attacks(server, random.Random(count).sample(attacks, count))
    assert report.sent == count


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("corpus", CORPORA)
def test_the_whole_corpus(server_with_worker: Server, corpus: str) -> None:
    report = check_attacks(server_with_worker, CORPORA[corpus]())
    assert report.p99 < 2.0
    print(f"finished: {dict(wait_for_predictions(server_with_worker))}")


def test_incomplete_head_gives_408(server: Server) -> None:
    half = Attack("half a head", (b"GET /livez HTTP/1.1\r\nHost: x\r\nX-Slow: ",), waits=True)
    letters = tuple(b"%c" % byte for byte in b"GET /livez HTTP/1.1\r\nX-Slow: aaaaa")
    drip = Attack("letter by letter", letters, pause=0.1, waits=True)
    report = run_attacks(server, [half, drip] * 10, at_once=20)
    assert report.sent == 20
    # A client that keeps writing may see the closed connection before the answer.
    assert report.statuses.keys() == {408}
    assert report.statuses[408] >= 10
    assert not report.faults


def test_stalled_body_gives_408(tmp_path: Path, model_store: Path) -> None:
    head = http.form(b"--X\r\n" + b"x" * 500)[:-300]
    with started(tmp_path, model_store, stall_timeout="0.5") as server:
        report = run_attacks(server, [Attack("silent", (head,), waits=True)] * 10, at_once=10)
    assert report.statuses == {408: 10}
    assert not report.faults
