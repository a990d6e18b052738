"""The service against its OpenAPI document: schemathesis generates requests and checks every response."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlalchemy import select

from app.database import job_state, model_requests, workers
from app.database.session import now
from app.database.tables import PredictionRow
from app.database.workers import LoadResult, WorkerRecord
from app.sdk.types import Failure, Status
from tests.api.server import Server, started

ROOT = Path(__file__).parents[2]
FAILURE = Failure(code="modality-implausible", title="The volume does not match its field", detail="No head was found")


@contextmanager
def refusing_worker(server: Server) -> Iterator[None]:
    """Plays a worker that fails every queued prediction, so that waits and event streams end.

    It answers every load request at once, because its only version is always loaded.
    """
    stop = threading.Event()

    def refuse() -> None:
        database = server.database()
        while not stop.wait(0.05):
            with database.session() as session:
                done = {
                    f"{each.name}@{each.version}": LoadResult(each.generation, None)
                    for each in model_requests.current(session)
                }
                workers.heartbeat(session, WorkerRecord("w", "here", 1, "cpu", ("tiny@1.0.0",), now(), now(), 1, done))
                queued = select(PredictionRow.id).where(PredictionRow.status == Status.QUEUED)
                for prediction_id in session.scalars(queued).all():
                    if study := job_state.start(session, prediction_id):
                        job_state.fail(session, study, FAILURE)
        database.close()

    thread = threading.Thread(target=refuse)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def failures(report: Path) -> Iterator[str]:
    """Failed checks of a report in NDJSON: the check, the request and the response, with parts of their bodies."""
    lines = report.read_text().splitlines() if report.exists() else []  # there is none if it did not start
    for line in lines:
        recorder = json.loads(line).get("ScenarioFinished", {}).get("recorder", {})
        for case, checks in recorder.get("checks", {}).items():
            for check in checks:
                if failure := check.get("failure_info", {}).get("failure"):
                    sent = recorder["interactions"][case]
                    request, response = sent["request"], sent["response"] or {}
                    content = body(request.get("body"), 3000)  # a request without a body has no such member
                    yield (
                        f"{failure['title']}: {request['method']} {request['uri']} got {response.get('status_code')} "
                        f"{body(response.get('content'), 600)}; sent {request['headers']} {content}"
                    )


def body(content: dict[str, str] | None, length: int) -> bytes:
    """The first bytes of a body in such a report."""
    return base64.b64decode(content["$base64"])[:length] if content else b""


def test_every_response_matches_the_openapi_document(tmp_path: Path, model_store: Path) -> None:
    own_store = shutil.copytree(model_store, tmp_path / "models")  # valid requests move aliases in it
    with started(tmp_path, own_store, wait_max="0.1") as server, refusing_worker(server):
        command = ["-m", "schemathesis.cli", "--config-file", "schemathesis.toml", "run", f"{server.url}/openapi.json"]
        reports = ["--report-ndjson-path", str(tmp_path / "report.ndjson")]
        # One thread: with two, a run once ended in a SystemError of Python's own parser.
        options = ["--checks", "all", "--max-examples", "5", "--seed", "1", "--workers", "1", "--continue-on-failure"]
        run = subprocess.run(
            [sys.executable, *command, *options, *reports], cwd=ROOT, capture_output=True, text=True, check=False
        )
        log = (tmp_path / "log").read_text()
    if run.returncode:  # the requests come last, because the log of the CI keeps the end
        pytest.fail(run.stdout + run.stderr + "\n".join(failures(tmp_path / "report.ndjson")))
    assert "Selected: 49/49" in run.stdout
    assert "unhandled" not in log
    assert "Traceback" not in log
