"""SIGKILL of worker and API: an accepted study (202) is finished exactly once."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.sdk import Client, Prediction, Stage, Status
from tests.api.test_stow import RELATED
from tests.api.test_stow import body as related

from .service_process import RunningService, eventually
from .test_dicom_kills import write_study

pytestmark = pytest.mark.xdist_group("e2e")


@pytest.fixture(scope="module")
def undisturbed(service: RunningService, study: dict[str, Any]) -> Prediction:
    with service.client() as client:
        return client.predict(**study)


def assert_finished_once(service: RunningService, client: Client, prediction_id: str, expected: Prediction) -> None:
    prediction = client.wait(prediction_id)
    assert prediction.status is Status.SUCCEEDED, prediction.error
    assert prediction.probability == expected.probability
    assert prediction.attribution == expected.attribution
    audited = "SELECT count(*) FROM audit WHERE target = ? AND action = 'prediction.succeeded'"
    assert service.query(audited, prediction_id) == [(1,)]


@pytest.mark.parametrize(
    "stage",
    # In the middle of the other stages, this is a soak test; a kill at each of their ends is in tests/worker.
    [stage if stage is Stage.RECORD else pytest.param(stage, marks=pytest.mark.soak) for stage in Stage],
)
def test_killed_worker_loses_and_repeats_nothing(
    service: RunningService, study: dict[str, Any], undisturbed: Prediction, stage: Stage
) -> None:
    with service.client() as client:
        for _ in range(20):  # a step may end between the query and the kill; then the next study is tried
            submitted = client.submit(**study)
            state = "SELECT status, stage FROM predictions WHERE id = ?"
            while service.query(state, submitted.id)[0] not in {("running", stage), ("succeeded", None)}:
                time.sleep(0.0005)
            killed = service.kill_worker()
            was_in_stage = service.query(state, submitted.id)[0] == ("running", stage)
            assert_finished_once(service, client, submitted.id, undisturbed)
            eventually(
                lambda pid=killed: service.workers() and pid not in service.workers(), "killed worker is deregistered"
            )
            if was_in_stage:
                return
    pytest.fail(f"the worker was never killed in the stage {stage}")


def test_accepted_study_survives_a_killed_api_and_its_worker_stops(
    service: RunningService, study: dict[str, Any], undisturbed: Prediction
) -> None:
    before = service.workers()
    with service.client() as client:
        submitted = client.submit(**study)
        service.kill_api()
        service.start()
        assert_finished_once(service, client, submitted.id, undisturbed)
    eventually(lambda: len(service.workers()) == 1 and service.workers() != before, "exactly one new worker")


def test_study_that_a_killed_api_was_assembling_is_taken_over_within_the_lease(
    service: RunningService, patient: dict[str, Path], tmp_path: Path
) -> None:
    with service.client() as client:
        for number in range(5):  # an assembly may end between the query and the kill; then the next study is tried
            uid = send_instances(service, client, patient, tmp_path / "sent", number)
            if was_killed_during_assembly(service, client, uid):
                return
    pytest.fail("the API was never killed while it assembled a study")


def was_killed_during_assembly(service: RunningService, client: Client, uid: str) -> bool:
    """Kill the API while it assembles a study; whether it did so at the kill. In any case the study has one answer."""
    row, begun = "SELECT state, due FROM studies WHERE uid = ?", ("assembling", "predicted")
    client.studies.complete(uid)
    eventually(lambda: service.query(row, uid)[0][0] in begun, "the study is being assembled")
    service.kill_api()
    ((state, due),) = service.query(row, uid)
    was_assembling = bool(state == "assembling")
    if was_assembling:
        held = datetime.fromisoformat(due).replace(tzinfo=UTC) - datetime.now(UTC)
        assert held.total_seconds() <= float(service.environment["RLVO_LEASE"])
    service.start()
    eventually(lambda: client.studies.get(uid).predictions, "it is predicted")
    (prediction,) = client.studies.get(uid).predictions
    assert client.wait(prediction.id).status is Status.SUCCEEDED
    return was_assembling


def send_instances(service: RunningService, client: Client, patient: dict[str, Path], folder: Path, number: int) -> str:
    """Send a DICOM study and its record; return its UID when all instances are known."""
    uid, sent = write_study(folder / str(number), patient, number)
    content = related(*[path.read_bytes() for path in sent.values()])
    stored = httpx.post(
        f"{service.url}/dicomweb/studies", content=content, headers={"Content-Type": RELATED}, timeout=60
    )
    assert stored.status_code == 200
    client.studies.set_clinical(uid, json.loads(patient["clinical"].read_text()))
    eventually(lambda: client.studies.get(uid).instances == len(sent), "all instances are known")
    return uid


def test_audit_chain_and_stored_files_are_valid_after_kills(service: RunningService) -> None:
    audit = service.rlvo("audit", "verify")
    assert audit.returncode == 0, audit.stderr
    fsck = service.rlvo("fsck", "--deep")
    assert fsck.returncode == 0, fsck.stdout
