"""The life of a prediction over HTTP: sent, read, followed, listed, cancelled, erased."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest

from app.core.config import Settings
from app.database import predictions
from app.database.tables import PredictionRow
from app.sdk.types import Prediction, PredictionPage, Stage
from tests.api.conftest import MAP, House, running, volume

pytestmark = pytest.mark.anyio

CLINICAL = {"age": 71, "nihss": 14, "atrial_fibrillation": False}


async def test_a_study_is_accepted_and_on_record(house: House) -> None:
    answer = await house.submit(clinical=(None, json.dumps(CLINICAL)), subject=(None, "S-17"), explain=(None, "false"))
    assert answer.status_code == 202
    sent = Prediction.model_validate(answer.json())
    assert answer.headers["location"] == f"/v1/predictions/{sent.id}"
    assert answer.headers["preference-applied"] == "respond-async"
    assert sent.inputs["cta"].shape == [8, 9, 10]
    assert sent.inputs["cta"].spacing_mm == [2, 2, 3]
    assert house.services.storage.verify(sent.inputs["cta"].sha256)
    assert sent.model.name == "tiny"
    read = await house.http.get(answer.headers["location"])
    assert read.json() == answer.json()
    study = house.worker.begin(sent.id)
    assert (study.clinical, study.explain) == (CLINICAL, False)


@pytest.mark.parametrize(
    ("header", "batch"),
    [("u=5", True), ("i, u=7", True), (" u = 4 ", True), ("u=3", False), ("u=0", False), ("u=9", False), ("", False)],
)
async def test_an_urgency_above_three_is_a_batch(house: House, header: str, batch: bool) -> None:
    files = {"cta": ("x.nii.gz", volume(), "application/octet-stream")}
    headers = {"Prefer": "respond-async", "Priority": header}
    sent = (await house.http.post("/v1/predictions", files=files, headers=headers)).json()["id"]
    with house.services.database.reading() as session:
        row = session.get(PredictionRow, sent)
        assert row is not None
        assert (row.turn > 1_000_000_000) is batch


async def test_a_whole_life_is_the_same_on_either_database(settings: Settings, database_url: str) -> None:
    async with running(settings.model_copy(update={"database_url": database_url})) as house:
        sent = [
            (await house.submit(subject=(None, "S-1"), clinical=(None, json.dumps(CLINICAL)))).json()["id"]
            for _ in range(3)
        ]
        first = (await house.http.get("/v1/predictions?limit=2&subject=S-1")).json()
        rest = (await house.http.get("/v1/predictions", params={"cursor": first["next"]})).json()
        assert [item["id"] for item in first["items"] + rest["items"]] == sent[::-1]
        house.worker.succeed(sent[0])
        assert (await house.http.get(f"/v1/predictions/{sent[0]}?wait=5")).json()["status"] == "succeeded"
        assert (await house.http.get(f"/v1/predictions/{sent[0]}/maps/attribution-cta.nii.gz")).content == MAP
        assert (await house.http.post(f"/v1/predictions/{sent[1]}/cancel")).json()["status"] == "cancelled"
        assert (await house.http.delete(f"/v1/predictions/{sent[0]}")).status_code == 204
        assert (await house.http.get(f"/v1/predictions/{sent[0]}")).status_code == 410
        figures = (await house.http.get("/metrics")).text
        assert 'rlvo_queue_depth{priority="acute"} 1.0' in figures
        assert 'rlvo_predictions_total{status="cancelled"} 1.0' in figures


async def test_what_is_kept_is_the_plain_scrubbed_file(house: House) -> None:
    packed = (await house.submit()).json()["inputs"]["cta"]["sha256"]
    plain = (await house.submit(cta=("x.nii", volume(compressed=False)))).json()["inputs"]["cta"]["sha256"]
    assert packed == plain
    assert len(house.blobs()) == 1


async def test_the_answer_of_a_wait_is_the_finished_prediction(house: House) -> None:
    async with asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(house.submit(prefer="wait=20"))
        listed: list[Any] = []
        while not listed:
            await asyncio.sleep(0.02)
            listed = (await house.http.get("/v1/predictions")).json()["items"]
        await asyncio.to_thread(house.worker.succeed, listed[0]["id"])
    answer = waiting.result()
    assert answer.status_code == 200
    assert answer.json()["status"] == "succeeded"
    assert answer.json()["attribution"]["clinical"][1]["value"] is None  # present, though unknown
    assert answer.headers["preference-applied"] == "wait=20"


async def test_a_failure_within_the_wait_is_an_answer_too(house: House) -> None:
    sent = (await house.submit()).json()
    house.worker.fail(sent["id"])
    answer = await house.http.get(f"/v1/predictions/{sent['id']}?wait=5")
    assert (answer.status_code, answer.json()["error"]["code"]) == (200, "modality-implausible")


async def test_a_wait_ends_when_its_time_is_over(house: House) -> None:
    sent = (await house.submit()).json()
    began = asyncio.get_running_loop().time()
    answer = await house.http.get(f"/v1/predictions/{sent['id']}?wait=0.3")
    assert answer.json()["status"] == "queued"
    assert 0.25 < asyncio.get_running_loop().time() - began < 3


async def test_a_caller_who_has_the_state_is_told_so(house: House) -> None:
    sent = await house.submit()
    path = sent.headers["location"]
    assert (await house.http.get(path, headers={"If-None-Match": sent.headers["etag"]})).status_code == 304
    house.worker.begin(sent.json()["id"])
    assert (await house.http.get(path, headers={"If-None-Match": sent.headers["etag"]})).status_code == 200


async def test_events_tell_each_state_and_end(house: House) -> None:
    sent = (await house.submit()).json()
    lines: list[str] = []

    async def follow() -> None:
        async with house.http.stream("GET", f"/v1/predictions/{sent['id']}/events") as answer:
            assert answer.headers["content-type"].startswith("text/event-stream")
            lines.extend([line async for line in answer.aiter_lines()])

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(follow())
        await asyncio.sleep(0.15)
        study = house.worker.begin(sent["id"])
        house.worker.advance(study, Stage.PREDICT)
        await asyncio.sleep(0.3)
        house.worker.succeed(sent["id"])
    states = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: ")]
    assert [(state["status"], state["stage"]) for state in states] == [
        ("queued", None),
        ("running", "predict"),
        ("succeeded", None),
    ]
    assert states[-1]["progress"] == 1


async def test_pages_follow_each_other_without_a_gap(house: House) -> None:
    sent = [(await house.submit(subject=(None, f"S-{n % 2}"))).json()["id"] for n in range(5)]
    seen: list[str] = []
    params: dict[str, str] = {"limit": "2"}
    while True:
        page = PredictionPage.model_validate((await house.http.get("/v1/predictions", params=params)).json())
        seen += [item.id for item in page.items]
        if page.next is None:
            break
        params["cursor"] = page.next
    assert seen == sent[::-1]
    of_one = (await house.http.get("/v1/predictions", params={"subject": "S-1", "model": "tiny@1.0.0"})).json()["items"]
    assert [item["id"] for item in of_one] == [sent[3], sent[1]]
    none = await house.http.get("/v1/predictions", params={"created_after": "2100-01-01T00:00:00Z", "status": "queued"})
    assert none.json() == {"items": [], "next": None}


async def test_cancel_ends_a_prediction_and_is_refused_once_it_has_finished(house: House) -> None:
    sent = (await house.submit()).json()["id"]
    for _ in range(2):
        answer = await house.http.post(f"/v1/predictions/{sent}/cancel")
        assert (answer.status_code, answer.json()["status"]) == (200, "cancelled")
    done = (await house.submit()).json()["id"]
    house.worker.succeed(done)
    assert (await house.http.post(f"/v1/predictions/{done}/cancel")).status_code == 409


async def test_erasure_leaves_410_and_no_row_of_the_patient(house: House) -> None:
    sent = (await house.submit(subject=(None, "S-9"))).json()["id"]
    house.worker.succeed(sent)
    assert (await house.http.delete(f"/v1/predictions/{sent}")).status_code == 204
    for method, path in (("GET", ""), ("DELETE", ""), ("GET", "/events"), ("GET", "/maps/attribution-cta.nii.gz")):
        answer = await house.http.request(method, f"/v1/predictions/{sent}{path}")
        assert (answer.status_code, answer.json()["code"]) == (410, "erased")
    with house.services.database.reading() as session:
        assert predictions.referenced(session, house.blobs()) == set()


async def test_an_erasure_has_a_certificate(house: House) -> None:
    sent = (await house.submit()).json()["id"]
    house.worker.succeed(sent)
    address = f"/v1/predictions/{sent}/erasure"
    early = await house.http.get(address)
    assert (early.status_code, early.json()["code"]) == (404, "not-found")
    await house.http.delete(f"/v1/predictions/{sent}")
    found = (await house.http.get(address)).json()
    assert (found["id"], found["complete"], len(found["blobs"])) == (sent, False, 2)  # the bytes are seconds old
    assert found["entry"]["action"] == "prediction.erase"
    for digest in house.blobs():
        house.services.storage.delete(digest, grace=0)
    assert (await house.http.get(address)).json()["complete"] is True


async def test_a_map_is_served_as_it_was_stored(house: House) -> None:
    sent = (await house.submit()).json()["id"]
    path = f"/v1/predictions/{sent}/maps/attribution-cta.nii.gz"
    early = await house.http.get(path)
    assert (early.status_code, early.json()["code"]) == (409, "not-finished")
    house.worker.succeed(sent)
    answer = await house.http.get(path)
    assert answer.content == MAP
    assert answer.headers["content-disposition"] == f'attachment; filename="{sent}-attribution-cta.nii.gz"'
    assert answer.headers["content-type"] == "application/gzip"
    assert (await house.http.get(path, headers={"If-None-Match": answer.headers["etag"]})).status_code == 304
    assert (await house.http.get(f"/v1/predictions/{sent}/maps/other.nii.gz")).status_code == 404


async def test_a_damaged_map_is_never_served(house: House) -> None:
    sent = (await house.submit()).json()["id"]
    house.worker.succeed(sent)
    digest = next(each for each in house.blobs() if house.services.storage.read(each) == MAP)
    house.services.storage.path(digest).write_bytes(MAP[:-1] + b"!")
    answer = await house.http.get(f"/v1/predictions/{sent}/maps/attribution-cta.nii.gz")
    assert (answer.status_code, answer.json()["code"]) == (500, "internal-error")


async def test_a_prediction_has_a_fhir_form_once_it_succeeded(house: House) -> None:
    sent = (await house.submit()).json()["id"]
    assert (await house.http.get(f"/v1/predictions/{sent}/fhir")).status_code == 409
    house.worker.succeed(sent)
    answer = await house.http.get(f"/v1/predictions/{sent}/fhir")
    assert answer.headers["content-type"] == "application/fhir+json"
    assert answer.json()["resourceType"] == "Bundle"


async def test_a_full_queue_is_said_before_the_body_is_read(house: House) -> None:
    house.services.settings = house.services.settings.model_copy(update={"queue_limit": 1})
    assert (await house.submit()).status_code == 202

    async def body() -> Any:
        pytest.fail("the body was read")
        yield b""

    headers = {"Content-Type": "multipart/form-data; boundary=x", "Expect": "100-continue"}
    answer = await house.http.post("/v1/predictions", content=body(), headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (429, "queue-full")
    assert int(answer.headers["retry-after"]) >= 1


async def test_a_draining_service_takes_nothing_and_sends_waiters_home(house: House) -> None:
    sent = (await house.submit()).json()["id"]
    async with asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(house.http.get(f"/v1/predictions/{sent}?wait=25"))
        await asyncio.sleep(0.1)
        house.services.drain()
    assert waiting.result().json()["status"] == "queued"
    refused: httpx.Response = await house.submit()
    assert (refused.status_code, refused.json()["code"]) == (503, "draining")


@pytest.mark.parametrize(
    ("asked", "explain", "exact"), [("true", True, False), ("exact", True, True), ("false", False, False)]
)
async def test_how_to_explain_is_on_record(house: House, asked: str, explain: bool, exact: bool) -> None:
    answer = await house.submit(explain=(None, asked))
    study = house.worker.begin(answer.json()["id"])
    assert (study.explain, study.exact) == (explain, exact)
