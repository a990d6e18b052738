"""Aliases over HTTP: nobody moves what they have not seen, and nothing moves that does not load."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from app.core.config import Settings
from app.database import shadow_scores, workers
from app.database.session import now
from app.database.workers import WorkerRecord
from app.inference.model_cache import ModelCache
from app.registry.model_store import ModelStore
from app.worker.model_loading import ModelLoader
from tests.api.conftest import House, running, settings_in
from tests.factory import tiny_version

pytestmark = pytest.mark.anyio
CHAMPION = "/v1/models/tiny/aliases/champion"


@pytest.fixture
async def busy(tmp_path: Path) -> AsyncIterator[House]:
    """A service over three versions, the last one damaged, with a worker's residency beside it."""
    store = tmp_path / "store"
    for seed, version in enumerate(("1.0.0", "1.1.0", "2.0.0")):
        tiny_version(store, version=version, seed=seed)
    ModelStore(store).set_alias("tiny", "champion", "1.0.0")
    (store / "tiny" / "2.0.0" / "fold-1.safetensors").write_bytes(b"x")
    over = threading.Event()
    async with running(settings_in(tmp_path / "data", store)) as house:
        database = house.services.database
        residency = ModelLoader(database, ModelCache(store, "cpu"))

        def go_on() -> None:
            while not over.wait(0.05):
                residency.tend()
                with database.session() as session:
                    workers.heartbeat(
                        session, WorkerRecord("w", "here", 1, "cpu", (), now(), now(), 1, residency.answers)
                    )

        hand = threading.Thread(target=go_on)
        hand.start()
        try:
            while not (await house.services.read(workers.live, 60.0)):
                pass
            yield house
        finally:
            over.set()
            hand.join()


async def test_an_alias_moves_for_who_has_seen_where_it_is(busy: House) -> None:
    seen = await busy.http.get(CHAMPION)
    assert seen.json()["version"] == "1.0.0"
    blind = await busy.http.put(CHAMPION, json={"version": "1.1.0"})
    assert (blind.status_code, blind.json()["code"]) == (428, "precondition-required")
    moved = await busy.http.put(CHAMPION, json={"version": "1.1.0"}, headers={"If-Match": seen.headers["etag"]})
    assert moved.status_code == 200, moved.text
    assert moved.json()["history"][-1] | {"at": ""} == {
        "version": "1.1.0",
        "previous": "1.0.0",
        "by": "local",
        "at": "",
    }
    stale = await busy.http.put(CHAMPION, json={"version": "1.0.0"}, headers={"If-Match": seen.headers["etag"]})
    assert (stale.status_code, stale.json()["code"]) == (412, "etag-mismatch")
    back = await busy.http.post(f"{CHAMPION}/rollback")
    assert back.json()["version"] == "1.0.0"
    assert back.headers["etag"] != seen.headers["etag"]  # there and back again is not the same
    assert (await busy.http.get("/v1/models/tiny")).json()["aliases"] == {"champion": "1.0.0"}


async def test_a_new_alias_needs_no_tag(busy: House) -> None:
    shadow = "/v1/models/tiny/aliases/shadow"
    assert (await busy.http.get(shadow)).status_code == 404
    assert (await busy.http.put(shadow, json={"version": "1.1.0"}, headers={"If-Match": '"x"'})).status_code == 412
    assert (await busy.http.put(shadow, json={"version": "1.1.0"})).json()["version"] == "1.1.0"


async def test_what_does_not_load_does_not_serve(busy: House) -> None:
    tag = (await busy.http.get(CHAMPION)).headers["etag"]
    refused = await busy.http.put(CHAMPION, json={"version": "2.0.0"}, headers={"If-Match": tag})
    assert (refused.status_code, refused.json()["code"]) == (503, "model-not-ready")
    assert "missing or is not the one" in refused.json()["detail"]
    assert (await busy.http.get(CHAMPION)).headers["etag"] == tag
    assert (await busy.http.post("/v1/models/tiny/versions/2.0.0/load")).status_code == 503
    assert (await busy.http.post("/v1/models/tiny/versions/1.1.0/load")).status_code == 200
    assert (await busy.http.post("/v1/models/tiny/versions/1.1.0/unload")).status_code == 202
    assert (await busy.http.post("/v1/models/tiny/versions/1.0.0/unload")).status_code == 409


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"[]", 422),
        (b"{}", 422),
        (b'{"version": "../x"}', 422),
        (b'{"version": "1.0.0", "a": 1}', 422),
        (b'{"version": "9.9.9"}', 404),
    ],
)
async def test_what_is_no_version_is_refused(busy: House, body: bytes, status: int) -> None:
    tag = (await busy.http.get(CHAMPION)).headers["etag"]
    answer = await busy.http.put(CHAMPION, content=body, headers={"If-Match": tag})
    assert answer.status_code == status, answer.text


async def test_without_a_worker_nothing_moves(house: House) -> None:
    tag = (await house.http.get(CHAMPION)).headers["etag"]
    answer = await house.http.put(CHAMPION, json={"version": "1.0.0"}, headers={"If-Match": tag})
    assert (answer.status_code, answer.json()["code"]) == (503, "model-not-ready")


async def test_a_worker_that_never_answers_holds_nobody_up(settings: Settings) -> None:
    async with running(settings.model_copy(update={"load_timeout": 0.1})) as house:
        house.worker.beat("tiny@1.0.0")  # alive, and deaf to what is asked of it
        answer = await house.http.post("/v1/models/tiny/versions/1.0.0/load")
        assert (answer.status_code, answer.json()["code"]) == (503, "model-not-ready")
        assert "1 of 1 workers" in answer.json()["detail"]


async def test_a_shadow_is_reported_in_its_own_place(house: House) -> None:
    sent = (await house.submit()).json()["id"]
    house.worker.succeed(sent)
    before = (await house.http.get(f"/v1/predictions/{sent}")).text
    with house.services.database.session() as session:
        assert shadow_scores.store(
            session, shadow_scores.ShadowScore(sent, "tiny", "1.1.0", "1.0.0", -0.25, agrees=True)
        )
    assert (await house.http.get(f"/v1/predictions/{sent}")).text == before
    (report,) = (await house.http.get("/v1/models/tiny/shadow")).json()
    assert report | {"scored": 1, "agreed": 1, "mean_difference": -0.25, "largest_difference": 0.25} == report
    await house.http.delete(f"/v1/predictions/{sent}")
    assert (await house.http.get("/v1/models/tiny/shadow")).json() == []
    assert (await house.http.get("/v1/models/none/shadow")).status_code == 404
