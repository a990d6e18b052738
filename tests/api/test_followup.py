"""Figures, report and FHIR of a prediction; reviews and outcomes over HTTP."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from app.database.predictions import Artifact
from app.sdk.types import Prediction
from tests.api.conftest import House

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
async def path(house: House) -> str:
    """The address of a prediction that succeeded and left files."""
    sent = (await house.submit()).json()["id"]
    artifacts = [
        Artifact(name, house.services.storage.put(content), len(content), kind)
        for name, (content, kind) in FILES.items()
    ]
    house.worker.succeed(sent, artifacts)
    return f"/v1/predictions/{sent}"


@pytest.mark.parametrize("name", FILES)
async def test_what_a_browser_shows_can_run_nothing(house: House, path: str, name: str) -> None:
    answer = await house.http.get(f"{path}/{name}")
    assert (answer.content, answer.headers["content-type"]) == FILES[name]
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'")
    assert "sandbox" in policy
    assert "script" not in policy
    assert answer.headers["content-disposition"].startswith("inline")
    assert (
        await house.http.get(f"{path}/{name}", headers={"If-None-Match": answer.headers["etag"]})
    ).status_code == 304


async def test_a_figure_that_is_not_there(house: House, path: str) -> None:
    assert (await house.http.get(f"{path}/figures/overlay-ncct.png")).status_code == 404
    assert (await house.http.get(f"{path}/figures/overlay-cta.gif")).status_code == 422
    queued = (await house.submit()).json()["id"]
    assert (await house.http.get(f"/v1/predictions/{queued}/report.html")).json()["code"] == "not-finished"


async def test_fhir_by_the_accept_header(house: House, path: str) -> None:
    answer = await house.http.get(path, headers={"Accept": "application/fhir+json"})
    assert answer.headers["content-type"] == "application/fhir+json"
    assert answer.json() == (await house.http.get(f"{path}/fhir")).json()
    plain = await house.http.get(path)
    assert Prediction.model_validate(plain.json()).probability is not None
    assert "Accept" in plain.headers["vary"]


async def test_reviews(house: House, path: str) -> None:
    assert (await house.http.get(f"{path}/reviews")).json() == []
    first = await house.http.post(f"{path}/reviews", json=AGREE)
    again = await house.http.post(f"{path}/reviews", json=AGREE)
    assert (first.status_code, again.status_code) == (201, 200)
    assert first.json() == again.json()
    second = await house.http.post(f"{path}/reviews", json=OVERRIDE)
    assert (await house.http.get(f"{path}/reviews")).json() == [first.json(), second.json()]
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
async def test_a_review_that_cannot_be_used(house: House, path: str, body: Any, field: str) -> None:
    answer = await house.http.post(f"{path}/reviews", json=body)
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid-request")
    assert answer.json()["errors"][0]["field"] == field
    assert "CANARY" not in answer.text
    assert "Jane" not in answer.text


async def put(house: House, path: str, body: Any = OUTCOME, **headers: str) -> httpx.Response:
    return await house.http.put(
        f"{path}/outcome", json=body, headers={n.replace("_", "-"): v for n, v in headers.items()}
    )


async def test_an_outcome_is_corrected_by_whoever_has_seen_it(house: House, path: str) -> None:
    assert (await house.http.get(f"{path}/outcome")).status_code == 404
    assert (await put(house, path, If_Match='"x"')).status_code == 412
    first = await put(house, path)
    assert first.json()["refractory"] is True
    blind = await put(house, path)
    assert (blind.status_code, blind.json()["code"]) == (428, "precondition-required")
    better = {"etici": "3", "rescue_treatment": False, "final_stenosis_percent": 10}
    second = await put(house, path, better, If_Match=first.headers["etag"])
    assert second.json()["refractory"] is False
    late = await put(house, path, If_Match=first.headers["etag"])
    assert (late.status_code, late.json()["code"]) == (412, "etag-mismatch")
    read = await house.http.get(f"{path}/outcome")
    assert (read.json(), read.headers["etag"]) == (second.json(), second.headers["etag"])


@pytest.mark.parametrize("changed", [{"etici": "2b"}, {"final_stenosis_percent": 101}, {"rescue_treatment": "no"}])
async def test_an_outcome_that_cannot_be_used(house: House, path: str, changed: dict[str, Any]) -> None:
    assert (await put(house, path, OUTCOME | changed)).status_code == 422


async def test_a_prediction_that_has_not_succeeded_is_not_followed_up(house: House) -> None:
    sent = (await house.submit()).json()["id"]
    for answer in (
        await house.http.post(f"/v1/predictions/{sent}/reviews", json=AGREE),
        await put(house, f"/v1/predictions/{sent}"),
    ):
        assert (answer.status_code, answer.json()["code"]) == (409, "not-finished")


async def test_the_audit_knows_of_it_and_holds_no_finding(house: House, path: str) -> None:
    await house.http.post(f"{path}/reviews", json=OVERRIDE)
    await put(house, path)
    with house.services.database.engine.connect() as connection:
        rows = connection.exec_driver_sql("SELECT action, detail FROM audit ORDER BY seq").all()
    assert [row[0] for row in rows[-2:]] == ["prediction.review", "prediction.outcome"]
    assert "moved" not in str(rows)
    assert "2a" not in str(rows[-2:])


async def test_an_erasure_takes_all_of_it(house: House, path: str) -> None:
    await house.http.post(f"{path}/reviews", json=OVERRIDE)
    await put(house, path)
    assert (await house.http.delete(path)).status_code == 204
    for name in ("reviews", "outcome", "report.html", "figures/waterfall.svg"):
        assert (await house.http.get(f"{path}/{name}")).status_code == 410
