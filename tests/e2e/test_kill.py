"""kill -9 at the worst moments: what was answered 202 is finished, once."""

from __future__ import annotations

import time
from typing import Any

import pytest

from app.sdk import Client, Prediction, Stage, Status

from .house import House, eventually

pytestmark = pytest.mark.xdist_group("journeys")


@pytest.fixture(scope="module")
def undisturbed(house: House, study: dict[str, Any]) -> Prediction:
    with house.client() as client:
        return client.predict(**study)


def finished_once(house: House, client: Client, prediction_id: str, like: Prediction) -> None:
    prediction = client.wait(prediction_id)
    assert prediction.status is Status.SUCCEEDED, prediction.error
    assert prediction.probability == like.probability
    assert prediction.attribution == like.attribution
    ends = house.ask("SELECT count(*) FROM audit WHERE target = ? AND action = 'prediction.succeeded'", prediction_id)
    assert ends == [(1,)]


@pytest.mark.parametrize("stage", list(Stage))
def test_the_worker_is_killed_in_each_step(
    house: House, study: dict[str, Any], undisturbed: Prediction, stage: Stage
) -> None:
    with house.client() as client:
        for _ in range(20):  # a step of a tiny model may end between the look and the kill; then another one is tried
            submitted = client.submit(**study)
            moment = "SELECT status, stage FROM predictions WHERE id = ?"
            while house.ask(moment, submitted.id)[0] not in {("running", stage), ("succeeded", None)}:
                time.sleep(0.0005)
            killed = house.kill_worker()
            hit = house.ask(moment, submitted.id)[0] == ("running", stage)
            finished_once(house, client, submitted.id, undisturbed)
            eventually(lambda dead=killed: house.workers() and dead not in house.workers(), "the dead one struck off")
            if hit:
                return
    pytest.fail(f"the worker was never caught in {stage}")


def test_the_api_is_killed_right_after_it_accepted(
    house: House, study: dict[str, Any], undisturbed: Prediction
) -> None:
    with house.client() as client:
        submitted = client.submit(**study)
        house.kill_api()
        house.start()
        finished_once(house, client, submitted.id, undisturbed)


def test_nobody_is_left_behind_by_a_killed_api(house: House) -> None:
    before = house.workers()
    house.kill_api()
    house.start()
    eventually(lambda: len(house.workers()) == 1 and house.workers() != before, "a new worker, and none but it")


def test_the_audit_still_holds(house: House) -> None:
    verdict = house.rlvo("audit", "verify")
    assert verdict.returncode == 0, verdict.stderr
    checked = house.rlvo("fsck", "--deep")
    assert checked.returncode == 0, checked.stdout
