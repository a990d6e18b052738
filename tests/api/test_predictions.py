"""Predictions over HTTP: submit, read, follow, list, cancel, erase."""

from __future__ import annotations

import asyncio
import hashlib
import json
from typing import Any

import httpx
import pytest

from app.core.config import Settings
from app.database import job_state, row_erasure, trials
from app.database.predictions import Artifact
from app.database.tables import PredictionRow
from app.sdk.types import FiguresState, Prediction, PredictionPage, Stage
from tests.api.conftest import MAP, RunningService, running, volume
from tests.database.test_trials import PROTOCOL

pytestmark = pytest.mark.anyio

CLINICAL = {"age": 71, "nihss": 14, "atrial_fibrillation": False}


async def test_study_is_accepted_and_recorded(service: RunningService) -> None:
    answer = await service.submit(
        clinical=(None, json.dumps(CLINICAL)), subject=(None, "S-17"), explain=(None, "false")
    )
    assert answer.status_code == 202
    sent = Prediction.model_validate(answer.json())
    assert answer.headers["location"] == f"/v1/predictions/{sent.id}"
    assert answer.headers["preference-applied"] == "respond-async"
    assert sent.inputs["cta"].shape == [8, 9, 10]
    assert sent.inputs["cta"].spacing_mm == [2, 2, 3]
    assert service.services.storage.verify(sent.inputs["cta"].sha256)
    assert sent.model.name == "tiny"
    read = await service.http.get(answer.headers["location"])
    assert read.json() == answer.json()
    study = service.worker.begin(sent.id)
    assert (study.clinical, study.explain) == (CLINICAL, False)


@pytest.mark.parametrize(
    ("header", "batch"),
    [("u=5", True), ("i, u=7", True), (" u = 4 ", True), ("u=3", False), ("u=0", False), ("u=9", False), ("", False)],
)
async def test_urgency_above_three_is_batch(service: RunningService, header: str, batch: bool) -> None:
    files = {"cta": ("x.nii.gz", volume(), "application/octet-stream")}
    headers = {"Prefer": "respond-async", "Priority": header}
    sent = (await service.http.post("/v1/predictions", files=files, headers=headers)).json()["id"]
    with service.services.database.reading() as session:
        row = session.get(PredictionRow, sent)
        assert row is not None
        assert (row.queue_position > 1_000_000_000) is batch


async def test_life_cycle_is_the_same_on_both_databases(settings: Settings, database_url: str) -> None:
    async with running(settings.model_copy(update={"database_url": database_url})) as service:
        sent = [
            (await service.submit(subject=(None, "S-1"), clinical=(None, json.dumps(CLINICAL)))).json()["id"]
            for _ in range(3)
        ]
        first = (await service.http.get("/v1/predictions?limit=2&subject=S-1")).json()
        rest = (await service.http.get("/v1/predictions", params={"cursor": first["next"]})).json()
        assert [item["id"] for item in first["items"] + rest["items"]] == sent[::-1]
        service.worker.succeed(sent[0])
        assert (await service.http.get(f"/v1/predictions/{sent[0]}?wait=5")).json()["status"] == "succeeded"
        assert (await service.http.get(f"/v1/predictions/{sent[0]}/maps/attribution-cta.nii.gz")).content == MAP
        assert (await service.http.post(f"/v1/predictions/{sent[1]}/cancel")).json()["status"] == "cancelled"
        assert (await service.http.delete(f"/v1/predictions/{sent[0]}")).status_code == 204
        assert (await service.http.get(f"/v1/predictions/{sent[0]}")).status_code == 410
        figures = (await service.http.get("/metrics")).text
        assert 'rlvo_queue_depth{priority="acute"} 1.0' in figures
        assert 'rlvo_predictions_total{status="cancelled"} 1.0' in figures


async def test_stored_file_is_uncompressed_and_scrubbed(service: RunningService) -> None:
    packed = (await service.submit()).json()["inputs"]["cta"]["sha256"]
    plain = (await service.submit(cta=("x.nii", volume(compressed=False)))).json()["inputs"]["cta"]["sha256"]
    assert packed == plain
    assert len(service.blobs()) == 1


async def test_waiting_submission_returns_the_finished_prediction(service: RunningService) -> None:
    async with asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(service.submit(prefer="wait=20"))
        listed: list[Any] = []
        while not listed:
            await asyncio.sleep(0.02)
            listed = (await service.http.get("/v1/predictions")).json()["items"]
        await asyncio.to_thread(service.worker.succeed, listed[0]["id"])
    answer = waiting.result()
    assert answer.status_code == 200
    assert answer.json()["status"] == "succeeded"
    assert answer.json()["attribution"]["clinical"][1]["value"] is None  # present, although it is unknown
    assert answer.headers["preference-applied"] == "wait=20"


async def test_failed_prediction_is_returned_within_the_wait(service: RunningService) -> None:
    sent = (await service.submit()).json()
    service.worker.fail(sent["id"])
    answer = await service.http.get(f"/v1/predictions/{sent['id']}?wait=5")
    assert (answer.status_code, answer.json()["error"]["code"]) == (200, "modality-implausible")


@pytest.mark.parametrize(
    ("code", "status"), [("modality-implausible", 422), ("quarantined", 500), ("unavailable", 500), ("cancelled", 409)]
)
async def test_prediction_that_ends_without_a_result_within_the_wait_is_a_problem_with_its_address(
    service: RunningService, code: str, status: int
) -> None:
    async with asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(service.submit(prefer="wait=20"))
        listed: list[Any] = []
        while not listed:
            await asyncio.sleep(0.02)
            listed = (await service.http.get("/v1/predictions")).json()["items"]
        address = f"/v1/predictions/{listed[0]['id']}"
        if code == "cancelled":
            await service.http.post(f"{address}/cancel")
        else:
            await asyncio.to_thread(service.worker.fail, listed[0]["id"], code)
    answer = waiting.result()
    problem = answer.json()
    assert (answer.status_code, problem["status"]) == (status, status)
    expected = {"cancelled": "conflict", "unavailable": "internal-error"}.get(code, code)
    assert (problem["code"], problem["type"]) == (expected, f"/problems/{expected}")
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["preference-applied"] == "wait=20"
    assert answer.headers["location"] == problem["prediction_url"] == address
    assert problem["prediction"] == listed[0]["id"]
    record = await service.http.get(address)
    assert (record.status_code, record.json()["status"]) == (200, "cancelled" if status == 409 else "failed")


@pytest.mark.parametrize("prefer", ["respond-async", "wait=5"])
async def test_repeated_request_of_a_failed_study_has_the_same_problem(service: RunningService, prefer: str) -> None:
    async def send() -> httpx.Response:
        files = {"cta": ("x.nii.gz", volume(), "application/octet-stream")}
        return await service.http.post(
            "/v1/predictions", files=files, headers={"Prefer": prefer, "Idempotency-Key": "study-1"}
        )

    async with asyncio.TaskGroup() as tasks:
        first = tasks.create_task(send())
        listed: list[Any] = []
        while not listed:
            await asyncio.sleep(0.02)
            listed = (await service.http.get("/v1/predictions")).json()["items"]
        if prefer == "respond-async":  # A prediction is listed before its answer is written.
            await first
        await asyncio.to_thread(service.worker.fail, listed[0]["id"])
    assert first.result().status_code == (202 if prefer == "respond-async" else 422)
    again = await send()
    assert (again.status_code, again.json()["code"]) == (422, "modality-implausible")
    assert again.json()["prediction"] == listed[0]["id"]
    assert again.headers["idempotency-replayed"] == "true"


async def test_wait_ends_after_its_time(service: RunningService) -> None:
    sent = (await service.submit()).json()
    began = asyncio.get_running_loop().time()
    answer = await service.http.get(f"/v1/predictions/{sent['id']}?wait=0.3")
    assert answer.json()["status"] == "queued"
    assert 0.25 < asyncio.get_running_loop().time() - began < 3


async def test_unchanged_prediction_gives_304(service: RunningService) -> None:
    sent = await service.submit()
    path = sent.headers["location"]
    assert (await service.http.get(path, headers={"If-None-Match": sent.headers["etag"]})).status_code == 304
    service.worker.begin(sent.json()["id"])
    assert (await service.http.get(path, headers={"If-None-Match": sent.headers["etag"]})).status_code == 200


async def follow(service: RunningService, prediction_id: str, events: list[dict[str, Any]]) -> None:
    """Adds each event of a prediction when it is sent, because `httpx.ASGITransport` shows them at the end only."""

    async def noting(scope: Any, receive: Any, send: Any) -> None:
        async def note(message: Any) -> None:
            await send(message)
            lines = message.get("body", b"").decode().splitlines()
            events.extend(json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: "))

        await service.app(scope, receive, note)

    async with httpx.AsyncClient(transport=httpx.ASGITransport(noting), base_url="http://localhost") as http:
        answer = await http.get(f"/v1/predictions/{prediction_id}/events")
    assert answer.headers["content-type"].startswith("text/event-stream")


async def number_of(events: list[dict[str, Any]], number: int) -> None:
    async with asyncio.timeout(60):
        while len(events) < number:
            await asyncio.sleep(0.02)


async def test_events_report_each_state_and_end(service: RunningService) -> None:
    sent = (await service.submit()).json()["id"]
    events: list[dict[str, Any]] = []
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(follow(service, sent, events))
        await number_of(events, 1)
        with service.services.database.session() as session:  # one transaction: no event comes between the two
            study = job_state.start(session, sent)
            assert study
            assert job_state.advance(session, study, Stage.PREDICT)
        await number_of(events, 2)
        service.worker.succeed(sent)
    assert [(event["status"], event["stage"]) for event in events] == [
        ("queued", None),
        ("running", "predict"),
        ("succeeded", None),
    ]
    assert events[-1]["progress"] == 1


async def test_events_report_the_answer_and_then_the_figures(service: RunningService) -> None:
    sent = (await service.submit()).json()["id"]
    service.worker.succeed(sent, figures=FiguresState.PENDING)
    undrawn: list[dict[str, Any]] = []
    await follow(service, sent, undrawn)  # without a request for figures, the answer ends the stream
    assert [(event["status"], event["figures"]) for event in undrawn] == [("succeeded", "pending")]
    await service.http.get(f"/v1/predictions/{sent}/report.html", params={"wait": "0"})
    events: list[dict[str, Any]] = []
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(follow(service, sent, events))
        await number_of(events, 1)
        service.worker.finish_figures(sent)
    assert [(event["status"], event["figures"]) for event in events] == [
        ("succeeded", "pending"),
        ("succeeded", "failed"),
    ]


async def test_pages_cover_all_predictions(service: RunningService) -> None:
    sent = [(await service.submit(subject=(None, f"S-{n % 2}"))).json()["id"] for n in range(5)]
    seen: list[str] = []
    params: dict[str, str] = {"limit": "2"}
    while True:
        page = PredictionPage.model_validate((await service.http.get("/v1/predictions", params=params)).json())
        seen += [item.id for item in page.items]
        if page.next is None:
            break
        params["cursor"] = page.next
    assert seen == sent[::-1]
    of_one = (await service.http.get("/v1/predictions", params={"subject": "S-1", "model": "tiny@1.0.0"})).json()[
        "items"
    ]
    assert [item["id"] for item in of_one] == [sent[3], sent[1]]
    none = await service.http.get(
        "/v1/predictions", params={"created_after": "2100-01-01T00:00:00Z", "status": "queued"}
    )
    assert none.json() == {"items": [], "next": None}


async def test_cancel_is_refused_after_the_prediction_finished(service: RunningService) -> None:
    sent = (await service.submit()).json()["id"]
    for _ in range(2):
        answer = await service.http.post(f"/v1/predictions/{sent}/cancel")
        assert (answer.status_code, answer.json()["status"]) == (200, "cancelled")
    done = (await service.submit()).json()["id"]
    service.worker.succeed(done)
    assert (await service.http.post(f"/v1/predictions/{done}/cancel")).status_code == 409


async def test_erased_prediction_gives_410_and_has_no_rows(service: RunningService) -> None:
    sent = (await service.submit(subject=(None, "S-9"))).json()["id"]
    service.worker.succeed(sent)
    assert (await service.http.delete(f"/v1/predictions/{sent}")).status_code == 204
    for method, path in (("GET", ""), ("DELETE", ""), ("GET", "/events"), ("GET", "/maps/attribution-cta.nii.gz")):
        answer = await service.http.request(method, f"/v1/predictions/{sent}{path}")
        assert (answer.status_code, answer.json()["code"]) == (410, "erased")
    with service.services.database.reading() as session:
        assert row_erasure.referenced(session, service.blobs()) == set()


async def test_erasure_has_a_certificate(service: RunningService) -> None:
    sent = (await service.submit()).json()["id"]
    service.worker.succeed(sent)
    address = f"/v1/predictions/{sent}/erasure"
    early = await service.http.get(address)
    assert (early.status_code, early.json()["code"]) == (404, "not-found")
    await service.http.delete(f"/v1/predictions/{sent}")
    certificate = (await service.http.get(address)).json()
    assert (certificate["id"], len(certificate["blobs"])) == (sent, 2)
    assert certificate["complete"] is False  # the files are too new to be deleted
    assert certificate["entry"]["action"] == "prediction.erase"
    for digest in service.blobs():
        service.services.storage.delete(digest, grace=0)
    assert (await service.http.get(address)).json()["complete"] is True


async def test_unchanged_report_keeps_its_content_security_policy(service: RunningService) -> None:
    """A browser replaces the stored headers by those of the 304; with another policy the report loses its style."""
    sent = (await service.submit()).json()["id"]
    digest = service.services.storage.put(b"<style>p{color:red}</style>")
    service.worker.succeed(sent, [Artifact("report.html", digest, 27, "text/html")])
    path = f"/v1/predictions/{sent}/report.html"
    first = await service.http.get(path)
    again = await service.http.get(path, headers={"If-None-Match": first.headers["etag"]})
    assert (first.status_code, again.status_code) == (200, 304)
    assert "style-src 'unsafe-inline'" in first.headers["content-security-policy"]
    assert again.headers["content-security-policy"] == first.headers["content-security-policy"]


async def test_series_is_served_as_stored_until_the_erasure(service: RunningService) -> None:
    sent = (await service.submit()).json()
    address = f"/v1/predictions/{sent['id']}/inputs"
    answer = await service.http.get(f"{address}/cta.nii")  # no result is needed
    assert hashlib.sha256(answer.content).hexdigest() == sent["inputs"]["cta"]["sha256"]
    assert answer.headers["content-disposition"] == f'attachment; filename="{sent["id"]}-cta.nii"'
    assert answer.headers["cache-control"] == "private, no-store"
    service.worker.succeed(sent["id"])
    assert (await service.http.get(f"{address}/ncct.nii")).status_code == 404  # not sent
    assert (await service.http.get(f"{address}/report.nii")).status_code == 422
    await service.http.delete(f"/v1/predictions/{sent['id']}")
    assert (await service.http.get(f"{address}/cta.nii")).status_code == 410


async def test_map_is_served_unchanged(service: RunningService) -> None:
    sent = (await service.submit()).json()["id"]
    path = f"/v1/predictions/{sent}/maps/attribution-cta.nii.gz"
    early = await service.http.get(path)
    assert (early.status_code, early.json()["code"]) == (409, "not-finished")
    service.worker.succeed(sent)
    answer = await service.http.get(path)
    assert answer.content == MAP
    assert answer.headers["content-disposition"] == f'attachment; filename="{sent}-attribution-cta.nii.gz"'
    assert answer.headers["content-type"] == "application/gzip"
    assert (await service.http.get(path, headers={"If-None-Match": answer.headers["etag"]})).status_code == 304
    assert (await service.http.get(f"/v1/predictions/{sent}/maps/other.nii.gz")).status_code == 404


async def test_damaged_map_is_not_served(service: RunningService) -> None:
    sent = (await service.submit()).json()["id"]
    service.worker.succeed(sent)
    digest = next(each for each in service.blobs() if service.services.storage.read(each) == MAP)
    service.services.storage.path(digest).write_bytes(MAP[:-1] + b"!")
    answer = await service.http.get(f"/v1/predictions/{sent}/maps/attribution-cta.nii.gz")
    assert (answer.status_code, answer.json()["code"]) == (500, "internal-error")


async def test_finished_prediction_has_a_fhir_bundle(service: RunningService) -> None:
    sent = (await service.submit()).json()["id"]
    assert (await service.http.get(f"/v1/predictions/{sent}/fhir")).status_code == 409
    service.worker.succeed(sent)
    answer = await service.http.get(f"/v1/predictions/{sent}/fhir")
    assert answer.headers["content-type"] == "application/fhir+json"
    assert answer.json()["resourceType"] == "Bundle"


async def test_draining_service_refuses_studies_and_ends_waits(service: RunningService) -> None:
    sent = (await service.submit()).json()["id"]
    async with asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(service.http.get(f"/v1/predictions/{sent}?wait=25"))
        await asyncio.sleep(0.1)
        service.services.drain()
    assert waiting.result().json()["status"] == "queued"
    refused: httpx.Response = await service.submit()
    assert (refused.status_code, refused.json()["code"]) == (503, "draining")


async def test_version_of_a_silent_trial_that_is_not_in_the_store_is_named(service: RunningService) -> None:
    model = PROTOCOL["model"] | {"version": "9.9.9"}
    protocol = PROTOCOL | {"model": model, "population": {"tenants": ["local"]}}
    await service.services.write(trials.create, "silent", protocol)
    for parts in ({}, {"model": (None, "tiny")}):
        answer = await service.submit(**parts)
        assert (answer.status_code, answer.json()["code"]) == (503, "model-not-ready")
        assert answer.json()["detail"] == "The version of the silent trial is not in the model store."
