"""A version comes to serve: loaded and checked where the work is done, then moved in one step, or not at all."""

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


class Hand:
    """A worker's residency with its heartbeat, as the worker itself drives them."""

    def __init__(self, database: Database, store: Path, name: str) -> None:
        self.predictor = ModelCache(store, "cpu")
        self._residency = ModelLoader(database, self.predictor)
        self._database, self._name = database, name

    def turn(self) -> None:
        self._residency.tend()
        models = tuple(f"{ref.name}@{ref.version}" for ref in self.predictor.loaded())
        with self._database.session() as session:
            workers.heartbeat(
                session, WorkerRecord(self._name, "here", 1, "cpu", models, now(), now(), 1, self._residency.results)
            )

    @property
    def warm(self) -> set[str]:
        return {ref.version for ref in self.predictor.loaded()}


@contextmanager
def working(*hands: Hand) -> Iterator[None]:
    """The hands' turns, again and again, in a thread each."""
    over = threading.Event()

    def go_on(hand: Hand) -> None:
        while not over.wait(0.05):
            hand.turn()

    for hand in hands:
        hand.turn()
    threads = [threading.Thread(target=go_on, args=(hand,)) for hand in hands]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join()


def promotion(database: Database, store: Path, **options: object) -> Promotion:
    return Promotion(database, ModelStore(store), LEASE, **options)  # type: ignore[arg-type]


def test_every_worker_has_it_loaded_before_anybody_is_served_by_it(database: Database, store: Path) -> None:
    hands = [Hand(database, store, name) for name in ("a", "b")]
    with working(*hands):
        for hand in hands:
            hand.predictor.version("tiny", "1.0.0")
        made = promotion(database, store).promote("tiny", "champion", "1.1.0", expected="1.0.0", by="ann")
        assert all("1.1.0" in hand.warm for hand in hands)
    for hand in hands:
        hand.turn()
        assert hand.warm == {"1.1.0"}  # the old one is let go
    assert (made.previous, made.version) == ("1.0.0", "1.1.0")
    assert ModelStore(store).resolve("tiny").version == "1.1.0"
    with database.reading() as session:
        assert audit.verify(session).entries == 2


@on_sqlite
def test_one_call_leads_back(database: Database, store: Path) -> None:
    hand = Hand(database, store, "a")
    with working(hand):
        promote = promotion(database, store)
        promote.promote("tiny", "champion", "2.0.0", by="ann")
        promote.rollback("tiny", "champion", by="bob")
        assert "1.0.0" in hand.warm
    assert ModelStore(store).resolve("tiny").version == "1.0.0"
    assert ModelStore(store).history("tiny", "champion")[-1].by == "bob"


@on_sqlite
@pytest.mark.parametrize("damage", ["weights", "golden", "answers"])
def test_a_version_that_does_not_load_leaves_the_old_one_serving_and_says_why(
    database: Database, store: Path, damage: str
) -> None:
    folder = store / "tiny" / "2.0.0"
    if damage == "answers":  # files as listed, but they compute something else than the manifest says
        manifest = folder / "manifest.json"
        entry = ModelStore(store).resolve("tiny@2.0.0").manifest
        wrong = entry.golden[0].model_copy(update={"logits": (9.0, 9.0)})
        manifest.write_text(entry.model_copy(update={"golden": (wrong,)}).model_dump_json())
    else:
        (folder / {"weights": "fold-0.safetensors", "golden": "golden-0.safetensors"}[damage]).write_bytes(b"x")
    hand = Hand(database, store, "a")
    with working(hand):
        hand.predictor.version("tiny", "1.0.0")
        with pytest.raises(ModelNotReady, match="golden cases come out" if damage == "answers" else "file"):
            promotion(database, store).promote("tiny", "champion", "2.0.0", by="ann")
        assert hand.warm == {"1.0.0"}
    assert ModelStore(store).resolve("tiny").version == "1.0.0"
    with database.reading() as session:
        assert not any(demand.wanted for demand in model_requests.current(session))


@on_sqlite
def test_what_was_refused_is_tried_again_once_it_is_mended(database: Database, store: Path) -> None:
    fold = store / "tiny" / "2.0.0" / "fold-0.safetensors"
    good = fold.read_bytes()
    with working(Hand(database, store, "a")):
        fold.write_bytes(b"x")
        with pytest.raises(ModelNotReady):
            promotion(database, store).promote("tiny", "champion", "2.0.0", by="ann")
        fold.write_bytes(good)
        promotion(database, store).promote("tiny", "champion", "2.0.0", by="ann")
    assert ModelStore(store).resolve("tiny").version == "2.0.0"


@on_sqlite
def test_the_old_version_stays_until_nothing_is_left_to_do_for_it(database: Database, store: Path) -> None:
    hand, entry = Hand(database, store, "a"), ModelStore(store).resolve("tiny@1.0.0")
    new = new_prediction(model=ModelRef(name="tiny", version="1.0.0", digest=entry.digest))
    with database.session() as session:
        add_and_queue(session, Queue(database), new)
    hand.predictor.version("tiny", "1.0.0")
    with working(hand):
        promotion(database, store).promote("tiny", "champion", "1.1.0", by="ann")
    hand.turn()
    assert hand.warm == {"1.0.0", "1.1.0"}
    with database.session() as session:
        predictions.cancel(session, new.id, None)
    hand.turn()
    assert hand.warm == {"1.1.0"}


@on_sqlite
def test_without_a_worker_nothing_moves_unless_it_can_be_checked_here(database: Database, store: Path) -> None:
    with pytest.raises(ModelNotReady, match="No worker"):
        promotion(database, store).promote("tiny", "champion", "1.1.0", by="ann")
    checked: list[str] = []
    here = promotion(database, store, alone=lambda name, version: checked.append(f"{name}@{version}"))
    here.promote("tiny", "champion", "1.1.0", by="ann")
    assert checked == ["tiny@1.1.0"]


@on_sqlite
def test_a_worker_that_never_answers_is_not_waited_for_for_ever(database: Database, store: Path) -> None:
    Hand(database, store, "a").turn()
    with pytest.raises(ModelNotReady, match="1 of 1 workers"):
        promotion(database, store, patience=0.2).promote("tiny", "champion", "1.1.0", by="ann")
    assert ModelStore(store).resolve("tiny").version == "1.0.0"


@on_sqlite
def test_of_two_moves_from_one_place_one_is_refused(database: Database, store: Path) -> None:
    with working(Hand(database, store, "a")):
        promotion(database, store).promote("tiny", "champion", "1.1.0", expected="1.0.0", by="ann")
        with pytest.raises(AliasConflict):
            promotion(database, store).promote("tiny", "champion", "2.0.0", expected="1.0.0", by="bob")
    assert ModelStore(store).resolve("tiny").version == "1.1.0"


@on_sqlite
def test_what_an_alias_means_is_not_let_go(database: Database, store: Path) -> None:
    promote = promotion(database, store)
    with pytest.raises(Conflict, match="champion"):
        promote.unload("tiny", "1.0.0", by="ann")
    with pytest.raises(ModelNotFound):
        promote.unload("tiny", "9.0.0", by="ann")
    hand = Hand(database, store, "a")
    with working(hand):
        promote.load("tiny", "2.0.0", by="ann")
        assert "2.0.0" in hand.warm
        promote.unload("tiny", "2.0.0", by="ann")
    hand.turn()
    assert hand.warm == set()
