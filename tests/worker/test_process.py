"""The life of a job: done once, whatever dies, is stopped, is cancelled or is refused."""

from __future__ import annotations

import os
import signal
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text

from app.database import predictions, shadow_scores, workers
from app.database.session import Database
from app.inference.model_cache import ModelCache
from app.registry.model_store import ModelStore
from app.sdk.errors import DatabaseUnavailable
from app.sdk.types import Stage, Status
from app.worker.process import sweep
from tests import study
from tests.factory import tiny_case, tiny_version
from tests.fork_server import Nursery
from tests.site import LEASE, Site, recorded, wait


@pytest.fixture(scope="session")
def model_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = tmp_path_factory.mktemp("models")
    tiny_version(store)
    return store


@pytest.fixture
def site(tmp_path: Path, database_url: str, database: Database, model_store: Path, nursery: Nursery) -> Iterator[Site]:
    site = Site(tmp_path, database_url, database, model_store, nursery)
    yield site
    for keeper in site.keepers:
        keeper.kill()


def test_a_prediction_is_made_explained_and_recorded(site: Site) -> None:
    site.worker()
    explained, plain = site.submit(), site.submit(explain=False)
    first, second = site.outcome(explained, plain)
    assert first.status is second.status is Status.SUCCEEDED
    assert first.probability == second.probability
    assert first.attribution
    kinds = ("attribution", "aligned-attribution", "aligned")
    assert set(first.attribution.maps) == {f"{kind}-{channel}" for kind in kinds for channel in ("ncct", "cta")}
    assert second.attribution is None
    assert list(first.timings) == ["prepare", "predict", "explain"]
    assert list(second.timings) == ["prepare", "predict"]
    with site.database.reading() as session:
        digest, media_type = predictions.artifact(session, explained, None, "maps/attribution-cta.nii.gz")
        (worker,) = workers.live(session, LEASE)
    assert site.storage.read(digest)[:2] == b"\x1f\x8b"
    assert media_type == "application/gzip"
    assert worker.models == ("tiny@1.0.0",)
    assert worker.device in ("cpu", "cuda")
    assert worker.usage
    assert worker.usage.resident > 100_000_000
    assert worker.usage.weights > 1000
    wait(lambda: site.storage.workbenches() == [])  # tidied up after the record, which is what callers wait for
    assert site.keepers[0].end() == "exit 0"
    with site.database.reading() as session:
        assert workers.registered(session) == []


def test_nothing_of_the_patient_lies_in_the_job_engine(site: Site) -> None:
    site.worker()
    prediction = site.outcome(site.submit(subject="CANARY"))[0]
    tables = ("workflow_status", "workflow_input", "workflow_output", "operation_outputs")
    with site.database.reading() as session:
        found = [
            str(session.execute(text(f"SELECT * FROM {'' if site.database.sqlite else 'dbos.'}{table}")).all())
            for table in tables
        ]
    assert prediction.id in found[0]
    assert "prepare" in found[3]
    for word in ("CANARY", "nihss", str(prediction.probability)):
        assert word not in str(found)


def test_a_shadow_scores_what_was_answered_and_is_never_in_the_answer(
    site: Site, tmp_path_factory: pytest.TempPathFactory
) -> None:
    site.model_store = tmp_path_factory.mktemp("shadowed")
    for seed, version in enumerate(("1.0.0", "1.1.0")):
        tiny_version(site.model_store, version=version, seed=seed)
    registry = ModelStore(site.model_store)
    registry.set_alias("tiny", "champion", "1.0.0")
    registry.set_alias("tiny", "shadow", "1.1.0")
    site.entry = registry.resolve("tiny")
    site.worker()
    first, second, erased = (site.submit() for _ in range(3))
    answered = site.outcome(first, second, erased)

    def scores() -> list[shadow_scores.ShadowSummary]:
        with site.database.reading() as session:
            return shadow_scores.report(session, "tiny")

    wait(lambda: sum(each.scored for each in scores()) == 3)
    (report,) = scores()
    assert (report.version, report.answered, report.failed) == ("1.1.0", "1.0.0", 0)
    shadowed = ModelCache(site.model_store, "cpu").version("tiny", "1.1.0")
    expected = shadowed.predict(tiny_case(shadowed.manifest)).probability - (answered[0].probability or 0)
    assert report.mean_difference == pytest.approx(expected, abs=1e-6)
    assert report.largest_difference == pytest.approx(abs(expected), abs=1e-6)
    assert abs(expected) > 1e-3
    assert site.find(first) == answered[0]
    with site.database.session() as session:
        predictions.erase(session, erased, None)
    assert scores()[0].scored == 2


def test_a_kill_at_any_step_boundary_loses_and_repeats_nothing(site: Site) -> None:
    keeper = site.worker()
    faults = {site.submit(f"{stage} {when} once"): (stage, when) for stage in Stage for when in ("before", "after")}
    outcomes = site.outcome(*faults)
    assert {prediction.status for prediction in outcomes} == {Status.SUCCEEDED}
    assert len({prediction.probability for prediction in outcomes}) == 1
    wait(lambda: keeper.lives == 1 + len(faults))
    assert recorded(site) == dict.fromkeys(faults, 1)
    for prediction_id, (stage, when) in faults.items():
        again = stage is not Stage.RECORD and when == "after"  # a step whose end the engine did not see is repeated
        expected = [step for step in Stage for _ in range(2 if again and step is stage else 1)]
        assert site.steps(prediction_id) == expected, (stage, when)


def test_a_job_that_keeps_killing_its_worker_is_put_aside(site: Site) -> None:
    keeper = site.worker()
    poison, healthy = site.submit("predict before always"), site.submit()
    poisoned, done = site.outcome(poison, healthy)
    assert done.status is Status.SUCCEEDED
    assert poisoned.status is Status.FAILED
    assert poisoned.error
    assert poisoned.error.code == "quarantined"
    assert keeper.lives == 4
    assert site.steps(poison) == ["prepare"]
    wait(lambda: site.storage.workbenches() == [])


def test_a_job_that_never_ends_is_put_aside_by_its_cpu_time(site: Site) -> None:
    keeper = site.worker(RLVO_CPU_LIMIT="1.5")
    endless, healthy = site.submit("predict before spin"), site.submit()
    ended, done = site.outcome(endless, healthy)
    assert done.status is Status.SUCCEEDED
    assert ended.error
    assert ended.error.code == "quarantined"
    assert keeper.lives == 4


def test_of_two_workers_one_takes_over_from_the_other(site: Site) -> None:
    first, second = site.worker(), site.worker()
    wait(lambda: len(roll(site)) == 2)
    ids = [site.submit() for _ in range(20)]
    wait(lambda: sum(site.find(one).status is Status.SUCCEEDED for one in ids) >= 4)
    first.kill()
    outcomes = site.outcome(*ids)
    assert {prediction.status for prediction in outcomes} == {Status.SUCCEEDED}
    assert recorded(site) == dict.fromkeys(ids, 1)
    assert [worker.pid for worker in roll(site)] == [second.worker]


def roll(site: Site) -> list[workers.WorkerRecord]:
    with site.database.reading() as session:
        return workers.registered(session)


def test_a_worker_that_was_only_stopped_writes_nothing_stale(site: Site) -> None:
    stopped = site.worker()
    prediction_id = site.submit("predict before pause")
    wait((site.faults / f"{prediction_id}.paused").exists)
    stop(site, stopped.worker)
    (site.faults / prediction_id).unlink()
    began = time.monotonic()
    site.worker()
    assert site.outcome(prediction_id)[0].status is Status.SUCCEEDED
    assert time.monotonic() - began < LEASE + 5
    before = site.rows(prediction_id)
    os.kill(stopped.worker, signal.SIGCONT)
    wait(lambda: site.steps(prediction_id).count("predict") == 2)
    wait(lambda: len(roll(site)) == 2)  # it beats again, and goes on with the job it thinks it has
    site.outcome(site.submit())
    assert site.rows(prediction_id) == before
    assert stopped.end() == "exit 0"


def stands(worker: int) -> bool:
    """Whether every thread of the process has stopped: the signal is sent at once, and obeyed a little later."""
    states = [path.read_text().rpartition(")")[2].split()[0] for path in Path(f"/proc/{worker}/task").glob("*/stat")]
    return set(states) == {"T"}


def stop(site: Site, worker: int) -> None:
    """SIGSTOP, at a moment when the worker holds no lock of SQLite's file: it would keep it, and all would wait."""
    while True:
        os.kill(worker, signal.SIGSTOP)
        wait(lambda: stands(worker))
        if not site.database.sqlite:
            return
        with closing(sqlite3.connect(site.url.removeprefix("sqlite:///"), timeout=0.5)) as connection:
            try:
                connection.execute("BEGIN EXCLUSIVE")
            except sqlite3.OperationalError:
                os.kill(worker, signal.SIGCONT)
            else:
                return


@pytest.mark.parametrize("ending", [predictions.cancel, predictions.erase])
def test_a_job_ends_where_its_prediction_was_ended(site: Site, ending: Callable[..., object]) -> None:
    site.worker()
    prediction_id, queued = site.submit("predict before pause"), site.submit()
    wait((site.faults / f"{prediction_id}.paused").exists)
    for one in (prediction_id, queued):
        with site.database.session() as session:
            ending(session, one, None)
    before = [site.rows(one) for one in (prediction_id, queued)]
    (site.faults / prediction_id).unlink()
    wait(lambda: site.queue.alive([prediction_id, queued]) == set())
    assert [site.rows(one) for one in (prediction_id, queued)] == before
    assert site.steps(prediction_id) == ["prepare", "predict"]
    assert site.steps(queued) == []
    assert site.storage.workbenches() == []


def test_a_worker_that_is_told_to_end_finishes_what_it_has_in_hand(site: Site) -> None:
    keeper = site.worker()
    in_hand, waiting = site.submit("predict before pause"), site.submit()
    wait((site.faults / f"{in_hand}.paused").exists)
    os.kill(keeper.pid, signal.SIGTERM)
    time.sleep(0.5)
    assert site.find(waiting).status is Status.QUEUED
    other = site.worker()
    assert site.outcome(waiting)[0].status is Status.SUCCEEDED
    time.sleep(LEASE + 0.5)  # longer than a dead worker is waited for: it lives while it drains
    (site.faults / in_hand).unlink()
    assert keeper.end() == "exit 0"
    assert site.find(in_hand).status is Status.SUCCEEDED
    assert site.steps(in_hand) == list(Stage)
    assert [worker.pid for worker in roll(site)] == [other.worker]


def test_a_refusal_is_final_and_has_its_code(site: Site) -> None:
    site.worker()
    unknown = study.MODEL.model_copy(update={"version": "9.0.0"})
    replaced = study.MODEL
    codes = []
    for model in (unknown, replaced):
        new = study.new_prediction(model=model)
        with site.database.session() as session:
            study.add_and_queue(session, site.queue, new)
        prediction = site.outcome(new.id)[0]
        assert prediction.error
        codes.append(prediction.error.code)
    assert codes == ["model-not-found", "model-not-ready"]


def test_damaged_bytes_are_never_predicted_on(site: Site) -> None:
    site.storage.path(site.volume.sha256).write_bytes(b"other bytes")
    site.worker()
    prediction = site.outcome(site.submit())[0]
    assert prediction.error
    assert prediction.error.code == "internal-error"
    assert prediction.probability is None


def test_work_goes_on_when_the_database_comes_back(site: Site) -> None:
    if site.database.sqlite:
        pytest.skip("a file does not go away")
    site.worker()
    prediction_id = site.submit("record before pause")
    wait((site.faults / f"{prediction_id}.paused").exists)
    name = site.database.url.database
    server = create_engine(site.database.url.set(database="postgres"), isolation_level="AUTOCOMMIT")
    with server.connect() as connection:
        connection.execute(text(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false"))
        connection.execute(text(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'"))
        (site.faults / prediction_id).unlink()
        with pytest.raises(DatabaseUnavailable):
            site.find(prediction_id)
        time.sleep(3)
        connection.execute(text(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true"))
    server.dispose()
    assert site.outcome(prediction_id)[0].status is Status.SUCCEEDED
    assert site.outcome(site.submit())[0].status is Status.SUCCEEDED
    assert recorded(site)[prediction_id] == 1


def test_sweeping_takes_only_what_nothing_refers_to(site: Site) -> None:
    waiting = site.submit()
    orphan = site.storage.put(b"nobody's")
    site.storage.workbench(waiting).put(b"needed")
    site.storage.workbench(predictions.new_id()).put(b"left behind")
    assert sweep(site.database, site.storage) == 0
    for digest in (orphan, site.volume.sha256):
        os.utime(site.storage.path(digest), (0, 0))
    assert sweep(site.database, site.storage) == 1
    assert list(site.storage.digests()) == [site.volume.sha256]
    assert site.storage.workbenches() == [waiting]
