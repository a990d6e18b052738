"""Promotion: every worker loads and verifies the version before the alias moves; otherwise nothing changes."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from app.database import audit, model_requests, predictions, workers
from app.database.session import Database, now
from app.database.workers import WorkerRecord
from app.inference.model_cache import ModelCache
from app.operations.promotion import Promotion
from app.registry.model_store import ModelStore
from app.sdk.errors import AliasConflict, Conflict, ModelNotFound, ModelNotReady
from app.sdk.types import ModelRef
from app.worker.model_loading import ModelLoader
from app.worker.queue import Queue
from tests.factory import tiny_version
from tests.study import add_and_queue, new_prediction

LEASE = 20.0

on_sqlite = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    for seed, version in enumerate(("1.0.0", "1.1.0", "2.0.0")):
        tiny_version(tmp_path / "store", version=version, seed=seed)
    ModelStore(tmp_path / "store").set_alias("tiny", "champion", "1.0.0")
    return tmp_path / "store"


class SimulatedWorker:
    """Model loader and heartbeat of a worker, without its process."""

    def __init__(self, database: Database, store: Path, name: str) -> None:
        self.model_cache = ModelCache(store, "cpu")
        self._loader = ModelLoader(database, self.model_cache)
        self._database, self._name = database, name

    def beat(self) -> None:
        self._loader.reconcile()
        models = tuple(f"{ref.name}@{ref.version}" for ref in self.model_cache.loaded())
        with self._database.session() as session:
            workers.heartbeat(
                session, WorkerRecord(self._name, "here", 1, "cpu", models, now(), now(), 1, self._loader.results)
            )

    @property
    def loaded(self) -> set[str]:
        return {ref.version for ref in self.model_cache.loaded()}


@contextmanager
def running(*simulated: SimulatedWorker) -> Iterator[None]:
    """Let the workers beat repeatedly, each in a thread."""
    stop = threading.Event()

    def beat_repeatedly(worker: SimulatedWorker) -> None:
        while not stop.wait(0.05):
            worker.beat()

    for worker in simulated:
        worker.beat()
    threads = [threading.Thread(target=beat_repeatedly, args=(worker,)) for worker in simulated]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def promotion(database: Database, store: Path, **options: object) -> Promotion:
    return Promotion(database, ModelStore(store), LEASE, **options)  # type: ignore[arg-type]


def test_every_worker_loads_the_version_before_the_alias_moves(database: Database, store: Path) -> None:
    simulated = [SimulatedWorker(database, store, name) for name in ("a", "b")]
    with running(*simulated):
        for worker in simulated:
            worker.model_cache.version("tiny", "1.0.0")
        change = promotion(database, store).promote("tiny", "champion", "1.1.0", expected="1.0.0", by="ann")
        assert all("1.1.0" in worker.loaded for worker in simulated)
    for worker in simulated:
        worker.beat()
        assert worker.loaded == {"1.1.0"}  # the old version is unloaded
    assert (change.previous, change.version) == ("1.0.0", "1.1.0")
    assert ModelStore(store).resolve("tiny").version == "1.1.0"
    with database.reading() as session:
        assert audit.verify(session).entries == 2


@on_sqlite
def test_rollback_restores_the_previous_version(database: Database, store: Path) -> None:
    worker = SimulatedWorker(database, store, "a")
    with running(worker):
        promote = promotion(database, store)
        promote.promote("tiny", "champion", "2.0.0", by="ann")
        promote.rollback("tiny", "champion", by="bob")
        assert "1.0.0" in worker.loaded
    assert ModelStore(store).resolve("tiny").version == "1.0.0"
    assert ModelStore(store).history("tiny", "champion")[-1].by == "bob"


@on_sqlite
@pytest.mark.parametrize("damage", ["weights", "golden", "answers"])
def test_version_that_does_not_load_is_not_promoted(database: Database, store: Path, damage: str) -> None:
    folder = store / "tiny" / "2.0.0"
    if damage == "answers":  # intact files that give other logits than the manifest
        manifest = folder / "manifest.json"
        entry = ModelStore(store).resolve("tiny@2.0.0").manifest
        wrong = entry.golden[0].model_copy(update={"logits": (9.0, 9.0)})
        manifest.write_text(entry.model_copy(update={"golden": (wrong,)}).model_dump_json())
    else:
        (folder / {"weights": "fold-0.safetensors", "golden": "golden-0.safetensors"}[damage]).write_bytes(b"x")
    worker = SimulatedWorker(database, store, "a")
    with running(worker):
        worker.model_cache.version("tiny", "1.0.0")
        with pytest.raises(ModelNotReady, match="golden cases" if damage == "answers" else "file"):
            promotion(database, store).promote("tiny", "champion", "2.0.0", by="ann")
        assert worker.loaded == {"1.0.0"}
    assert ModelStore(store).resolve("tiny").version == "1.0.0"
    with database.reading() as session:
        assert not any(demand.wanted for demand in model_requests.current(session))


@on_sqlite
def test_repaired_version_can_be_promoted(database: Database, store: Path) -> None:
    fold = store / "tiny" / "2.0.0" / "fold-0.safetensors"
    good = fold.read_bytes()
    with running(SimulatedWorker(database, store, "a")):
        fold.write_bytes(b"x")
        with pytest.raises(ModelNotReady):
            promotion(database, store).promote("tiny", "champion", "2.0.0", by="ann")
        fold.write_bytes(good)
        promotion(database, store).promote("tiny", "champion", "2.0.0", by="ann")
    assert ModelStore(store).resolve("tiny").version == "2.0.0"


@on_sqlite
def test_old_version_stays_loaded_until_its_predictions_are_finished(database: Database, store: Path) -> None:
    worker, entry = SimulatedWorker(database, store, "a"), ModelStore(store).resolve("tiny@1.0.0")
    new = new_prediction(model=ModelRef(name="tiny", version="1.0.0", digest=entry.digest))
    with database.session() as session:
        add_and_queue(session, Queue(database), new)
    worker.model_cache.version("tiny", "1.0.0")
    with running(worker):
        promotion(database, store).promote("tiny", "champion", "1.1.0", by="ann")
    worker.beat()
    assert worker.loaded == {"1.0.0", "1.1.0"}
    with database.session() as session:
        predictions.cancel(session, new.id, None)
    worker.beat()
    assert worker.loaded == {"1.1.0"}


@on_sqlite
def test_without_a_worker_the_version_must_be_verified_here(database: Database, store: Path) -> None:
    with pytest.raises(ModelNotReady, match="No worker"):
        promotion(database, store).promote("tiny", "champion", "1.1.0", by="ann")
    checked: list[str] = []
    local = promotion(database, store, check_here=lambda name, version: checked.append(f"{name}@{version}"))
    local.promote("tiny", "champion", "1.1.0", by="ann")
    assert checked == ["tiny@1.1.0"]


@on_sqlite
def test_missing_answer_of_a_worker_ends_in_a_timeout(database: Database, store: Path) -> None:
    SimulatedWorker(database, store, "a").beat()
    with pytest.raises(ModelNotReady, match="1 of 1 workers"):
        promotion(database, store, load_timeout=0.2).promote("tiny", "champion", "1.1.0", by="ann")
    assert ModelStore(store).resolve("tiny").version == "1.0.0"


@on_sqlite
def test_second_of_two_equal_expectations_is_refused(database: Database, store: Path) -> None:
    with running(SimulatedWorker(database, store, "a")):
        promotion(database, store).promote("tiny", "champion", "1.1.0", expected="1.0.0", by="ann")
        with pytest.raises(AliasConflict):
            promotion(database, store).promote("tiny", "champion", "2.0.0", expected="1.0.0", by="bob")
    assert ModelStore(store).resolve("tiny").version == "1.1.0"


@on_sqlite
def test_version_of_an_alias_is_not_unloaded(database: Database, store: Path) -> None:
    promote = promotion(database, store)
    with pytest.raises(Conflict, match="champion"):
        promote.unload("tiny", "1.0.0", by="ann")
    with pytest.raises(ModelNotFound):
        promote.unload("tiny", "9.0.0", by="ann")
    worker = SimulatedWorker(database, store, "a")
    with running(worker):
        promote.load("tiny", "2.0.0", by="ann")
        assert "2.0.0" in worker.loaded
        promote.unload("tiny", "2.0.0", by="ann")
    worker.beat()
    assert worker.loaded == set()
