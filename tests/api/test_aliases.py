"""Aliases over HTTP: a move needs the present entity tag and a version that loads."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from app.core.config import Settings
from app.database import api_keys, shadow_scores, workers
from app.database.session import now
from app.database.workers import WorkerRecord
from app.inference.model_cache import ModelCache
from app.registry.aliases import ALIAS, alias_of_tenant
from app.registry.model_store import ModelStore
from app.worker.model_loading import ModelLoader
from tests.api.conftest import RunningService, running, settings_in, volume
from tests.factory import tiny_version

pytestmark = pytest.mark.anyio
CHAMPION = "/v1/models/tiny/aliases/champion"


@pytest.fixture
async def with_worker(tmp_path: Path) -> AsyncIterator[RunningService]:
    """A service with three versions, the last one damaged, and the model loader of a worker."""
    store = tmp_path / "store"
    for seed, version in enumerate(("1.0.0", "1.1.0", "2.0.0")):
        tiny_version(store, version=version, seed=seed)
    ModelStore(store).set_alias("tiny", "champion", "1.0.0")
    (store / "tiny" / "2.0.0" / "fold-1.safetensors").write_bytes(b"x")
    stop = threading.Event()
    async with running(settings_in(tmp_path / "data", store)) as service:
        database = service.services.database
        loader = ModelLoader(database, ModelCache(store, "cpu"))

        def run_worker() -> None:
            while not stop.wait(0.05):
                loader.reconcile()
                with database.session() as session:
                    workers.heartbeat(session, WorkerRecord("w", "here", 1, "cpu", (), now(), now(), 1, loader.results))

        thread = threading.Thread(target=run_worker)
        thread.start()
        try:
            while not (await service.services.read(workers.live, 60.0)):
                pass
            yield service
        finally:
            stop.set()
            thread.join()


async def test_moving_an_alias_needs_its_present_etag(with_worker: RunningService) -> None:
    present = await with_worker.http.get(CHAMPION)
    assert present.json()["version"] == "1.0.0"
    without_tag = await with_worker.http.put(CHAMPION, json={"version": "1.1.0"})
    assert (without_tag.status_code, without_tag.json()["code"]) == (428, "precondition-required")
    moved = await with_worker.http.put(
        CHAMPION, json={"version": "1.1.0"}, headers={"If-Match": present.headers["etag"]}
    )
    assert moved.status_code == 200, moved.text
    assert moved.json()["history"][-1] | {"at": ""} == {
        "version": "1.1.0",
        "previous": "1.0.0",
        "by": "local",
        "at": "",
    }
    stale = await with_worker.http.put(
        CHAMPION, json={"version": "1.0.0"}, headers={"If-Match": present.headers["etag"]}
    )
    assert (stale.status_code, stale.json()["code"]) == (412, "etag-mismatch")
    untagged = await with_worker.http.post(f"{CHAMPION}/rollback")
    assert (untagged.status_code, untagged.json()["code"]) == (428, "precondition-required")
    late = await with_worker.http.post(f"{CHAMPION}/rollback", headers={"If-Match": present.headers["etag"]})
    assert (late.status_code, late.json()["code"]) == (412, "etag-mismatch")
    back = await with_worker.http.post(f"{CHAMPION}/rollback", headers={"If-Match": moved.headers["etag"]})
    assert back.json()["version"] == "1.0.0"
    assert back.headers["etag"] != present.headers["etag"]  # the tag covers the history, not only the version
    assert (await with_worker.http.get("/v1/models/tiny")).json()["aliases"] == {"champion": "1.0.0"}


async def test_a_new_alias_needs_no_tag(with_worker: RunningService) -> None:
    shadow = "/v1/models/tiny/aliases/shadow"
    assert (await with_worker.http.get(shadow)).status_code == 404
    assert (
        await with_worker.http.put(shadow, json={"version": "1.1.0"}, headers={"If-Match": '"x"'})
    ).status_code == 412
    assert (await with_worker.http.put(shadow, json={"version": "1.1.0"})).json()["version"] == "1.1.0"


async def test_version_that_does_not_load_is_not_served(with_worker: RunningService) -> None:
    tag = (await with_worker.http.get(CHAMPION)).headers["etag"]
    refused = await with_worker.http.put(CHAMPION, json={"version": "2.0.0"}, headers={"If-Match": tag})
    assert (refused.status_code, refused.json()["code"]) == (503, "model-not-ready")
    assert "missing or differs" in refused.json()["detail"]
    assert (await with_worker.http.get(CHAMPION)).headers["etag"] == tag
    assert (await with_worker.http.post("/v1/models/tiny/versions/2.0.0/load")).status_code == 503
    assert (await with_worker.http.post("/v1/models/tiny/versions/1.1.0/load")).status_code == 200
    assert (await with_worker.http.post("/v1/models/tiny/versions/1.1.0/unload")).status_code == 202
    assert (await with_worker.http.post("/v1/models/tiny/versions/1.0.0/unload")).status_code == 409


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
async def test_invalid_alias_document_is_refused(with_worker: RunningService, body: bytes, status: int) -> None:
    tag = (await with_worker.http.get(CHAMPION)).headers["etag"]
    answer = await with_worker.http.put(CHAMPION, content=body, headers={"If-Match": tag})
    assert answer.status_code == status, answer.text


async def test_alias_is_not_moved_without_a_worker(service: RunningService) -> None:
    tag = (await service.http.get(CHAMPION)).headers["etag"]
    answer = await service.http.put(CHAMPION, json={"version": "1.0.0"}, headers={"If-Match": tag})
    assert (answer.status_code, answer.json()["code"]) == (503, "model-not-ready")


async def test_unresponsive_worker_gives_503_after_the_load_timeout(settings: Settings) -> None:
    async with running(settings.model_copy(update={"load_timeout": 0.1})) as service:
        service.worker.heartbeat("tiny@1.0.0")  # alive, but it ignores load requests
        answer = await service.http.post("/v1/models/tiny/versions/1.0.0/load")
        assert (answer.status_code, answer.json()["code"]) == (503, "model-not-ready")
        assert "1 of 1 workers" in answer.json()["detail"]


async def test_shadow_scores_appear_only_in_the_shadow_report(service: RunningService) -> None:
    sent = (await service.submit()).json()["id"]
    service.worker.succeed(sent)
    before = (await service.http.get(f"/v1/predictions/{sent}")).text
    with service.services.database.session() as session:
        assert shadow_scores.store(
            session, shadow_scores.ShadowScore(sent, "tiny", "1.1.0", "1.0.0", -0.25, agrees=True)
        )
    assert (await service.http.get(f"/v1/predictions/{sent}")).text == before
    (report,) = (await service.http.get("/v1/models/tiny/shadow")).json()
    assert report | {"scored": 1, "agreed": 1, "mean_difference": -0.25, "largest_difference": 0.25} == report
    await service.http.delete(f"/v1/predictions/{sent}")
    assert (await service.http.get("/v1/models/tiny/shadow")).json() == []
    assert (await service.http.get("/v1/models/none/shadow")).status_code == 404


async def test_alias_of_a_tenant_chooses_its_version(tmp_path: Path) -> None:
    """A site with its own calibration; another tenant, and a request that names a model, are not changed."""
    store = tmp_path / "store"
    for seed, version in enumerate(("1.0.0", "1.0.1")):
        tiny_version(store, version=version, seed=seed)
    registry = ModelStore(store)
    registry.set_alias("tiny", "champion", "1.0.0")
    registry.set_alias("tiny", "site-north", "1.0.1")
    settings = settings_in(tmp_path / "data", store).model_copy(update={"auth": "keys"})
    async with running(settings) as service:
        keys = {
            tenant: await service.services.write(api_keys.create, tenant)
            for tenant in ("north", "North", "south", "a-b/c")
        }

        async def version_of(tenant: str, model: str | None = None) -> str:
            headers = {"Authorization": f"Bearer {keys[tenant]}", "Prefer": "respond-async"}
            parts = {"cta": ("x.nii.gz", volume(), "application/octet-stream")} | (
                {"model": (None, model)} if model else {}
            )
            answer = await service.http.post("/v1/predictions", files=parts, headers=headers)
            assert answer.status_code == 202, answer.text
            return str(answer.json()["model"]["version"])

        assert await version_of("north") == "1.0.1"
        assert await version_of("north", "tiny@champion") == "1.0.0"
        assert [await version_of(tenant) for tenant in ("North", "south", "a-b/c")] == ["1.0.0"] * 3
        registry.set_alias("tiny", "site-north", "1.0.0")
        registry.set_alias("tiny", alias_of_tenant("North"), "1.0.1")
        assert [await version_of(tenant) for tenant in ("North", "north")] == ["1.0.1", "1.0.0"]


def test_no_two_tenants_have_one_alias() -> None:
    assert alias_of_tenant("north") == "site-north"
    tenants = [
        "north",
        "North",
        "NORTH",
        "north clinic",
        "north-clinic",
        "north/clinic",
        "oidc:1",
        "n" * 64,
        "n" * 63,
        "!",
    ]
    aliases = [alias_of_tenant(each) for each in tenants]
    assert len(set(aliases)) == len(tenants)
    assert all(ALIAS.fullmatch(each) for each in aliases)
