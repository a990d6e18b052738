"""A service repeats the erasures of its ledger at its start, and erases on a full disk."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path

import anyio
import httpx
import pytest

from app.api.readiness import NO_ANSWER
from app.core.config import Settings
from app.core.disk_reserve import FILE
from app.storage.erasure_ledger import EntryKind, FolderLedger, LedgerEntry, entries
from tests.api.conftest import RunningService, running
from tests.conftest import CREDENTIALS
from tests.disks import fill

pytestmark = pytest.mark.anyio


async def test_start_after_a_restore_erases_again(settings: Settings) -> None:
    file = settings.data_dir / "rlvo.sqlite"
    async with running(settings) as service:
        erased, kept = [(await service.submit()).json()["id"] for _ in range(2)]
        service.services.database.close()
        shutil.copyfile(file, settings.data_dir / "backup")
        assert (await service.http.delete(f"/v1/predictions/{erased}")).status_code == 204
        assert entries(service.services.eraser.ledger)[EntryKind.PREDICTION] == {erased}
    shutil.copyfile(settings.data_dir / "backup", file)
    async with running(settings) as service:
        answers = [(await service.http.get(f"/v1/predictions/{each}")).status_code for each in (erased, kept)]
        assert answers == [410, 200]
        certificate = (await service.http.get(f"/v1/predictions/{erased}/erasure")).json()
        assert certificate["entry"]["actor"] == "service"
        assert certificate["entry"]["detail"]["why"] == "replay"
        assert (await service.http.get("/readyz")).json()["checks"]["erasures"] == "ok"


async def test_service_is_not_ready_before_the_ledger_is_read(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.api.lifespan.REPLAY_PATIENCE", 0.2)
    monkeypatch.setattr("app.api.dependencies.REPLAY_PAUSE", 0.05)
    (settings.data_dir / "erasures").write_text("a file in place of the ledger")
    async with running(settings) as service:
        answer = await service.http.get("/readyz")
        assert answer.status_code == 503
        assert answer.json()["checks"]["erasures"] == "the ledger of erasures cannot be read"
        prediction_id = (await service.submit()).json()["id"]
        refused = await service.http.delete(f"/v1/predictions/{prediction_id}")
        assert (refused.status_code, refused.json()["code"]) == (503, "unavailable")
        assert int(refused.headers["Retry-After"]) > 0
        (settings.data_dir / "erasures").unlink()
        with anyio.fail_after(10):
            await service.services.erasures_replayed.wait()
        assert (await service.http.get("/readyz")).json()["checks"]["erasures"] == "ok"
        assert (await service.http.delete(f"/v1/predictions/{prediction_id}")).status_code == 204


async def test_ledger_that_is_slow_to_read_is_read_once(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.api.lifespan.REPLAY_PATIENCE", 0.2)
    names, end, readings = FolderLedger.names, threading.Event(), []

    def slow(ledger: FolderLedger) -> set[str]:  # as in a network folder whose server does not answer
        readings.append(ledger)
        end.wait(30)
        return names(ledger)

    monkeypatch.setattr(FolderLedger, "names", slow)
    async with running(settings) as service:
        await anyio.sleep(0.3)
        assert (await service.http.get("/readyz")).json()["checks"]["erasures"] != "ok"
        end.set()
        while (await service.http.get("/readyz")).json()["checks"]["erasures"] != "ok":
            await anyio.sleep(0.05)
        await anyio.sleep(0.3)
        assert len(readings) == 1


async def test_erasure_of_another_tenant_is_not_in_the_ledger(settings: Settings) -> None:
    async with running(settings) as service:
        unknown = "0192f3a4-7c1e-7b7e-9d0a-3f5a1c2b4d6e"
        assert (await service.http.delete(f"/v1/predictions/{unknown}")).status_code == 404
        assert entries(service.services.eraser.ledger)[EntryKind.PREDICTION] == set()


# The disk -------------------------------------------------------------------------------------------------------------


async def test_full_disk_refuses_studies_and_no_erasure(small_disk: Path, model_store: Path) -> None:
    settings = Settings(
        data_dir=small_disk, model_store=model_store, default_model="tiny", reserve_bytes=2 * 1024 * 1024
    )
    async with running(settings) as service:
        ids = [(await service.submit()).json()["id"] for _ in range(3)]
        service.worker.succeed(ids[0])
        assert (small_disk / FILE).stat().st_size == 2 * 1024 * 1024
        for prediction_id in ids:
            fill(small_disk)
            assert (await service.submit()).status_code == 507
            erased = await service.http.delete(f"/v1/predictions/{prediction_id}")
            assert erased.status_code == 204, erased.text
            assert (await service.http.get(f"/v1/predictions/{prediction_id}")).status_code == 410
        (small_disk / "filler").unlink()
        assert (await service.submit()).status_code == 202
        assert entries(service.services.eraser.ledger)[EntryKind.PREDICTION] == set(ids)


async def test_full_disk_without_a_reserve_is_507(small_disk: Path, model_store: Path) -> None:
    settings = Settings(data_dir=small_disk, model_store=model_store, default_model="tiny", reserve_bytes=0)
    async with running(settings) as service:
        prediction_id = (await service.submit()).json()["id"]
        fill(small_disk)
        refused = await service.http.delete(f"/v1/predictions/{prediction_id}")
        assert (refused.status_code, refused.json()["code"]) == (507, "storage-full")


# The bucket -----------------------------------------------------------------------------------------------------------


async def test_missing_bucket_is_named_and_gives_503(
    settings: Settings, bucket: str, s3: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.api.lifespan.REPLAY_PATIENCE", 0.5)
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    changes = {"storage_url": "s3://rlvo-bucket-made-later/blobs", "s3_endpoint": s3}
    async with running(settings.model_copy(update=changes)) as service:
        ready = await readiness(service)
        assert (ready.status_code, ready.json()["checks"]["storage"]) == (503, "bucket-missing")
        refused = await service.submit()
        assert (refused.status_code, refused.json()["code"]) == (503, "bucket-missing")
        assert "RLVO_STORAGE_URL" in refused.json()["detail"]
        assert service.leftovers() == []
        assert httpx.put(f"{s3}/rlvo-bucket-made-later", timeout=30).status_code == 200
        assert (await service.submit()).status_code == 202
        assert (await readiness(service)).json()["checks"]["storage"] == "ok"


async def readiness(service: RunningService) -> httpx.Response:
    """The readiness when the bucket has answered; on a busy machine that can take longer than a probe waits."""
    with anyio.fail_after(60):
        while (ready := await service.http.get("/readyz")).json()["checks"]["storage"] == NO_ANSWER:
            await anyio.sleep(0.05)
    return ready


async def test_restored_erasure_of_a_folder_of_blobs_is_in_its_ledger(settings: Settings, tmp_path: Path) -> None:
    shared = settings.model_copy(update={"storage_url": str(tmp_path / "blobs")})
    async with running(shared) as service:
        prediction_id = (await service.submit()).json()["id"]
        await service.http.delete(f"/v1/predictions/{prediction_id}")
        assert (tmp_path / "blobs" / ".erasures" / f"prediction-{prediction_id}.json").is_file()
        ledger = FolderLedger(tmp_path / "blobs" / ".erasures")
        assert LedgerEntry(EntryKind.PREDICTION, prediction_id).name in ledger.names()
        assert prediction_id not in service.blobs()
