"""Figures, report and FHIR bundle of a prediction; reviews and outcomes."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest

from app.database.predictions import Artifact
from app.sdk.types import FiguresState, Prediction
from tests.api.conftest import RunningService

pytestmark = pytest.mark.anyio

FILES = {
    "figures/overlay-cta.png": (b"\x89PNG", "image/png"),
    "figures/waterfall.svg": (b"<svg/>", "image/svg+xml"),
    "report.html": (b"<!doctype html>", "text/html; charset=utf-8"),
}
AGREE = {"reviewer": "R-1", "verdict": "agree"}
OVERRIDE = {"reviewer": "R-1", "verdict": "override", "reason": "image-quality", "comment": "moved"}
OUTCOME = {"etici": "2a", "rescue_treatment": False, "final_stenosis_percent": 30}


@pytest.fixture
async def path(service: RunningService) -> str:
    """The address of a prediction that succeeded and has files."""
    sent = (await service.submit()).json()["id"]
    artifacts = [
        Artifact(name, service.services.storage.put(content), len(content), kind)
        for name, (content, kind) in FILES.items()
    ]
    service.worker.succeed(sent, artifacts)
    return f"/v1/predictions/{sent}"


@pytest.mark.parametrize("name", FILES)
async def test_files_for_browsers_cannot_run_scripts(service: RunningService, path: str, name: str) -> None:
    answer = await service.http.get(f"{path}/{name}")
    assert (answer.content, answer.headers["content-type"]) == FILES[name]
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'")
    assert "sandbox" in policy
    assert "script" not in policy
    assert answer.headers["content-disposition"].startswith("inline")
    assert (
        await service.http.get(f"{path}/{name}", headers={"If-None-Match": answer.headers["etag"]})
    ).status_code == 304


async def test_missing_figure_gives_404_and_unknown_format_422(service: RunningService, path: str) -> None:
    assert (await service.http.get(f"{path}/figures/overlay-ncct.png")).status_code == 404
    assert (await service.http.get(f"{path}/figures/overlay-cta.gif")).status_code == 422
    queued = (await service.submit()).json()["id"]
    assert (await service.http.get(f"/v1/predictions/{queued}/report.html")).json()["code"] == "not-finished"


async def test_report_is_read_as_soon_as_it_is_drawn(service: RunningService) -> None:
    sent = (await service.submit()).json()["id"]
    report = Artifact("report.html", service.services.storage.put(b"<!doctype html>"), 15, "text/html")
    service.worker.succeed(sent, figures=FiguresState.PENDING)
    path = f"/v1/predictions/{sent}"
    record = await service.http.get(path)
    assert (record.json()["status"], record.json()["figures"]) == ("succeeded", "pending")
    for name in ("report.html", "figures/waterfall.svg", "dicom"):
        early = await service.http.get(f"{path}/{name}", params={"wait": "0"})
        assert (early.status_code, early.json()["code"]) == (409, "figures-not-ready")
        assert early.headers["retry-after"] == "1"
    assert (await service.http.get(f"{path}/maps/attribution-cta.nii.gz")).status_code == 200
    async with asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(service.http.get(f"{path}/report.html"))
        objects = tasks.create_task(service.http.get(f"{path}/dicom", params={"wait": "60"}))
        await asyncio.sleep(0.1)
        assert not objects.done()
        service.worker.finish_figures(sent, report)
    assert (waiting.result().status_code, waiting.result().content) == (200, b"<!doctype html>")
    assert "no return address" in objects.result().json()["detail"]  # the study was not sent as DICOM
    changed = await service.http.get(path, headers={"If-None-Match": record.headers["etag"]})
    assert (changed.status_code, changed.json()["figures"]) == (200, "ready")
    assert (await service.http.get(f"{path}/figures/overlay-ncct.png")).status_code == 404


async def test_first_request_for_a_figure_has_all_figures_drawn(service: RunningService) -> None:
    sent, other = [(await service.submit()).json()["id"] for _ in range(2)]
    for each in (sent, other):
        service.worker.succeed(each, figures=FiguresState.PENDING)
    path = f"/v1/predictions/{sent}"
    for name in ("report.html", "report.html", "figures/waterfall.svg", "figures/waterfall.png"):
        assert (await service.http.get(f"{path}/{name}", params={"wait": "0"})).status_code == 409
    await service.http.get(f"/v1/predictions/{other}")
    assert service.worker.figure_jobs() == [f"draw-{sent}-1"]


async def test_report_that_cannot_be_drawn_says_that_the_service_tries_again(service: RunningService) -> None:
    sent = (await service.submit()).json()["id"]
    service.worker.succeed(sent, figures=FiguresState.PENDING)
    answer = (await service.http.get(f"/v1/predictions/{sent}")).json()
    service.worker.finish_figures(sent)
    failed = await service.http.get(f"/v1/predictions/{sent}/report.html")
    assert (failed.status_code, failed.json()["code"]) == (409, "figures-not-ready")
    assert "tries again" in failed.json()["detail"]
    assert (await service.http.get(f"/v1/predictions/{sent}")).json() == answer | {"figures": "failed"}


async def test_accept_header_selects_fhir(service: RunningService, path: str) -> None:
    answer = await service.http.get(path, headers={"Accept": "application/fhir+json"})
    assert answer.headers["content-type"] == "application/fhir+json"
    assert answer.json() == (await service.http.get(f"{path}/fhir")).json()
    plain = await service.http.get(path)
    assert Prediction.model_validate(plain.json()).probability is not None
    assert "Accept" in plain.headers["vary"]


async def test_reviews_are_recorded_once_and_listed_in_order(service: RunningService, path: str) -> None:
    assert (await service.http.get(f"{path}/reviews")).json() == []
    first = await service.http.post(f"{path}/reviews", json=AGREE)
    again = await service.http.post(f"{path}/reviews", json=AGREE)
    assert (first.status_code, again.status_code) == (201, 200)
    assert first.json() == again.json()
    second = await service.http.post(f"{path}/reviews", json=OVERRIDE)
    assert (await service.http.get(f"{path}/reviews")).json() == [first.json(), second.json()]
    assert second.json() | OVERRIDE == second.json()


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"verdict": "agree"}, "reviewer"),
        ({**AGREE, "reviewer": "Dr. Jane Doe"}, "reviewer"),
        ({**AGREE, "verdict": "maybe"}, "verdict"),
        ({"reviewer": "R-1", "verdict": "override"}, "body"),
        ({**AGREE, "comment": "x" * 501}, "comment"),
        ({**AGREE, "CANARY": 1}, "body"),
        ([], "body"),
    ],
)
async def test_invalid_review_is_refused(service: RunningService, path: str, body: Any, field: str) -> None:
    answer = await service.http.post(f"{path}/reviews", json=body)
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid-request")
    assert answer.json()["errors"][0]["field"] == field
    assert "CANARY" not in answer.text
    assert "Jane" not in answer.text


async def put(service: RunningService, path: str, body: Any = OUTCOME, **headers: str) -> httpx.Response:
    return await service.http.put(
        f"{path}/outcome", json=body, headers={n.replace("_", "-"): v for n, v in headers.items()}
    )


async def test_correcting_an_outcome_needs_its_present_etag(service: RunningService, path: str) -> None:
    assert (await service.http.get(f"{path}/outcome")).status_code == 404
    assert (await put(service, path, If_Match='"x"')).status_code == 412
    first = await put(service, path)
    assert first.json()["refractory"] is True
    without_tag = await put(service, path)
    assert (without_tag.status_code, without_tag.json()["code"]) == (428, "precondition-required")
    better = {"etici": "3", "rescue_treatment": False, "final_stenosis_percent": 10}
    second = await put(service, path, better, If_Match=first.headers["etag"])
    assert second.json()["refractory"] is False
    stale = await put(service, path, If_Match=first.headers["etag"])
    assert (stale.status_code, stale.json()["code"]) == (412, "etag-mismatch")
    read = await service.http.get(f"{path}/outcome")
    assert (read.json(), read.headers["etag"]) == (second.json(), second.headers["etag"])


@pytest.mark.parametrize("percent", [0, 1, 1.5, 60.5, 100])
async def test_a_stenosis_in_per_cent_is_recorded(service: RunningService, path: str, percent: float) -> None:
    stored = await put(service, path, OUTCOME | {"final_stenosis_percent": percent})
    assert (stored.status_code, stored.json()["final_stenosis_percent"]) == (200, percent)


async def test_a_stenosis_as_a_fraction_is_refused(service: RunningService, path: str) -> None:
    refused = await put(service, path, OUTCOME | {"final_stenosis_percent": 0.7})
    assert (refused.status_code, refused.json()["errors"][0]["field"]) == (422, "final_stenosis_percent")
    assert "write percent, as 60 and not 0.6" in refused.json()["detail"]


@pytest.mark.parametrize("changed", [{"etici": "2"}, {"final_stenosis_percent": 101}, {"rescue_treatment": "no"}])
async def test_invalid_outcome_is_refused(service: RunningService, path: str, changed: dict[str, Any]) -> None:
    assert (await put(service, path, OUTCOME | changed)).status_code == 422


@pytest.mark.parametrize(("spelling", "grade"), [("2b", "2b"), ("TICI 2b", "2b"), ("eTICI 2B-50", "2b50")])
async def test_spellings_of_etici_are_accepted(service: RunningService, path: str, spelling: str, grade: str) -> None:
    stored = await put(service, path, OUTCOME | {"etici": spelling})
    assert (stored.status_code, stored.json()["etici"]) == (200, grade)


async def test_followup_of_an_unfinished_prediction_is_refused(service: RunningService) -> None:
    sent = (await service.submit()).json()["id"]
    for answer in (
        await service.http.post(f"/v1/predictions/{sent}/reviews", json=AGREE),
        await put(service, f"/v1/predictions/{sent}"),
    ):
        assert (answer.status_code, answer.json()["code"]) == (409, "not-finished")


async def test_audit_entries_contain_no_findings(service: RunningService, path: str) -> None:
    await service.http.post(f"{path}/reviews", json=OVERRIDE)
    await put(service, path)
    with service.services.database.engine.connect() as connection:
        rows = connection.exec_driver_sql("SELECT action, detail FROM audit ORDER BY seq").all()
    assert [row[0] for row in rows[-2:]] == ["prediction.review", "prediction.outcome"]
    assert "moved" not in str(rows)
    assert "2a" not in str(rows[-2:])


async def test_erasure_includes_followup_and_files(service: RunningService, path: str) -> None:
    await service.http.post(f"{path}/reviews", json=OVERRIDE)
    await put(service, path)
    assert (await service.http.delete(path)).status_code == 204
    for name in ("reviews", "outcome", "report.html", "figures/waterfall.svg"):
        assert (await service.http.get(f"{path}/{name}")).status_code == 410
