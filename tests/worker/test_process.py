"""Jobs with real workers: each is done once, in spite of kills, suspension, cancellation and refusals."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable

import pytest
from sqlalchemy import create_engine, text

from app.database import predictions, shadow_scores, workers
from app.inference.model_cache import ModelCache
from app.registry.model_store import ModelStore
from app.sdk.errors import DatabaseUnavailable
from app.sdk.types import FiguresState, Stage, Status
from app.worker.pipeline import TRIES
from app.worker.retention import sweep
from tests import study
from tests.deployment import LEASE, Deployment, wait
from tests.factory import tiny_case, tiny_version


def test_prediction_is_explained_and_recorded(deployment: Deployment) -> None:
    deployment.start_worker()
    explained, plain = deployment.submit(), deployment.submit(explain=False)
    first, second = deployment.wait_for(explained, plain)
    assert first.status is second.status is Status.SUCCEEDED
    assert first.probability == second.probability
    assert first.attribution
    kinds = ("attribution", "aligned-attribution", "aligned")
    assert set(first.attribution.maps) == {f"{kind}-{channel}" for kind in kinds for channel in ("ncct", "cta")}
    assert (first.figures, second.figures) == (FiguresState.READY, None)
    assert second.attribution is None
    assert list(first.timings) == ["prepare", "predict", "explain"]
    assert list(second.timings) == ["prepare", "predict"]
    wait(lambda: _live(deployment) != [])  # a busy machine can delay a heartbeat for longer than a lease
    (worker,) = _live(deployment)
    with deployment.database.reading() as session:
        digest, media_type = predictions.artifact(session, explained, None, "maps/attribution-cta.nii.gz")
    assert deployment.storage.read(digest)[:2] == b"\x1f\x8b"
    assert media_type == "application/gzip"
    assert worker.models == ("tiny@1.0.0",)
    assert worker.device in ("cpu", "cuda")
    assert worker.usage
    assert worker.usage.resident > 100_000_000
    assert worker.usage.weights > 1000
    wait(lambda: deployment.storage.scratch_ids() == [])  # cleared a little after the record
    assert deployment.processes[0].end() == "exit 0"
    with deployment.database.reading() as session:
        assert workers.registered(session) == []


def test_job_engine_holds_no_patient_data(deployment: Deployment) -> None:
    deployment.start_worker()
    prediction = deployment.wait_for(deployment.submit(subject="CANARY"))[0]
    tables = ("workflow_status", "workflow_input", "workflow_output", "operation_outputs")
    with deployment.database.reading() as session:
        contents = [
            str(session.execute(text(f"SELECT * FROM {'' if deployment.database.sqlite else 'dbos.'}{table}")).all())
            for table in tables
        ]
    assert prediction.id in contents[0]
    assert "prepare" in contents[3]
    for value in ("CANARY", "nihss", str(prediction.probability)):
        assert value not in str(contents)


def test_shadow_scores_the_answer_and_does_not_change_it(
    deployment: Deployment, tmp_path_factory: pytest.TempPathFactory
) -> None:
    deployment.model_store = tmp_path_factory.mktemp("shadowed")
    for seed, version in enumerate(("1.0.0", "1.1.0")):
        tiny_version(deployment.model_store, version=version, seed=seed)
    registry = ModelStore(deployment.model_store)
    registry.set_alias("tiny", "champion", "1.0.0")
    registry.set_alias("tiny", "shadow", "1.1.0")
    deployment.entry = registry.resolve("tiny")
    deployment.start_worker()
    first, second, erased = (deployment.submit() for _ in range(3))
    answered = deployment.wait_for(first, second, erased)

    def scores() -> list[shadow_scores.ShadowSummary]:
        with deployment.database.reading() as session:
            return shadow_scores.report(session, "tiny")

    wait(lambda: sum(each.scored for each in scores()) == 3)
    (report,) = scores()
    assert (report.version, report.answered, report.failed) == ("1.1.0", "1.0.0", 0)
    shadowed = ModelCache(deployment.model_store, "cpu").version("tiny", "1.1.0")
    expected = shadowed.predict(tiny_case(shadowed.manifest)).probability - (answered[0].probability or 0)
    assert report.mean_difference == pytest.approx(expected, abs=1e-6)
    assert report.largest_difference == pytest.approx(abs(expected), abs=1e-6)
    assert abs(expected) > 1e-3
    assert deployment.find(first) == answered[0]
    with deployment.database.session() as session:
        predictions.erase(session, erased, None)
    assert scores()[0].scored == 2


def test_kill_at_each_step_boundary_loses_and_repeats_nothing(deployment: Deployment) -> None:
    worker = deployment.start_worker()
    points = [(stage, when) for stage in Stage for when in ("before", "after")]
    faults = {deployment.submit(f"{stage} {when} once"): (stage, when) for stage, when in points}
    outcomes = deployment.wait_for(*faults)
    assert {prediction.status for prediction in outcomes} == {Status.SUCCEEDED}
    assert len({prediction.probability for prediction in outcomes}) == 1
    wait(lambda: worker.starts == 1 + len(faults))
    assert deployment.audit_counts() == dict.fromkeys(faults, 1)
    for prediction_id, (stage, when) in faults.items():
        repeated = stage is not Stage.RECORD and when == "after"  # the engine has not logged the end of this step
        expected = [step for step in Stage for _ in range(2 if repeated and step is stage else 1)]
        assert deployment.steps(prediction_id) == expected, (stage, when)


def test_kill_between_answer_and_figures_loses_and_repeats_nothing(deployment: Deployment) -> None:
    worker = deployment.start_worker()
    ids = [deployment.submit(f"draw {when} once") for when in ("before", "drawn", "after")]
    answers = deployment.wait_for(*ids)
    wait(lambda: worker.starts == 1 + len(ids))
    assert {answer.figures for answer in answers} == {FiguresState.READY}
    assert [deployment.drawings(one) for one in ids] == [1, 2, 1]
    assert deployment.audit_counts() == dict.fromkeys(ids, 1)
    with deployment.database.reading() as session:
        names = [predictions.artifacts(session, one, None) for one in ids]
    assert [each.count("report.html") for each in names] == [1, 1, 1]


def test_job_that_always_kills_its_worker_is_quarantined(deployment: Deployment) -> None:
    worker = deployment.start_worker()
    poison, healthy = deployment.submit("predict before always"), deployment.submit()
    poisoned, done = deployment.wait_for(poison, healthy)
    assert done.status is Status.SUCCEEDED
    assert poisoned.status is Status.FAILED
    assert poisoned.error
    assert poisoned.error.code == "quarantined"
    assert worker.starts == 4
    assert deployment.steps(poison) == ["prepare"]
    wait(lambda: deployment.storage.scratch_ids() == [])


def test_kills_while_the_kernels_are_loaded_are_no_tries_of_a_prediction(deployment: Deployment) -> None:
    prediction = deployment.submit()
    fault = deployment.faults / "kernels"
    fault.write_text("kernels before always")
    worker = deployment.start_worker()
    wait(lambda: worker.starts > TRIES + 1)
    found = deployment.find(prediction)
    assert (found.status, found.stage) == (Status.QUEUED, None)
    fault.unlink()
    assert deployment.wait_for(prediction)[0].status is Status.SUCCEEDED
    assert deployment.steps(prediction) == list(Stage)


def test_worker_is_ready_when_its_kernels_are_loaded(deployment: Deployment) -> None:
    fault = deployment.faults / "kernels"
    fault.write_text("kernels before pause")
    deployment.start_worker()
    wait(fault.with_suffix(".paused").exists)
    wait(lambda: deployment.registered_workers() != [])
    time.sleep(1)  # several heartbeats
    wait(lambda: _live(deployment) != [])
    assert [worker.models for worker in _live(deployment)] == [()]
    fault.unlink()
    wait(lambda: [worker.models for worker in _live(deployment)] == [("tiny@1.0.0",)])


def _live(deployment: Deployment) -> list[workers.WorkerRecord]:
    with deployment.database.reading() as session:
        return workers.live(session, LEASE)


def test_job_without_end_is_quarantined_by_its_cpu_time(deployment: Deployment) -> None:
    worker = deployment.start_worker(RLVO_CPU_LIMIT="1.5")
    endless, healthy = deployment.submit("predict before spin"), deployment.submit()
    ended, done = deployment.wait_for(endless, healthy, seconds=240)  # CPU time is scarce on a busy machine
    assert done.status is Status.SUCCEEDED
    assert ended.error
    assert ended.error.code == "quarantined"
    assert worker.starts == 4


def test_worker_whose_device_is_lost_ends_and_the_next_one_answers(deployment: Deployment) -> None:
    """A CUDA context with an error fails every later job of its process."""
    worker = deployment.start_worker()
    prediction_id = deployment.submit("predict inside device")
    assert deployment.wait_for(prediction_id)[0].status is Status.SUCCEEDED
    assert worker.starts == 2
    assert deployment.audit_counts()[prediction_id] == 1


def test_second_worker_takes_over_from_a_killed_one(deployment: Deployment) -> None:
    first, second = deployment.start_worker(), deployment.start_worker()
    wait(lambda: len(deployment.registered_workers()) == 2)
    ids = [deployment.submit() for _ in range(20)]
    wait(lambda: sum(deployment.find(one).status is Status.SUCCEEDED for one in ids) >= 4)
    first.kill()
    outcomes = deployment.wait_for(*ids)
    assert {prediction.status for prediction in outcomes} == {Status.SUCCEEDED}
    assert deployment.audit_counts() == dict.fromkeys(ids, 1)
    assert [worker.pid for worker in deployment.registered_workers()] == [second.child]


def test_suspended_worker_writes_nothing_stale(deployment: Deployment) -> None:
    suspended = deployment.start_worker()
    prediction_id = deployment.submit_paused("predict")
    deployment.suspend(suspended.child)
    deployment.resume(prediction_id)
    started = time.monotonic()
    deployment.start_worker()
    assert deployment.wait_for(prediction_id)[0].status is Status.SUCCEEDED
    assert time.monotonic() - started < LEASE + 5
    before = deployment.rows(prediction_id)
    os.kill(suspended.child, signal.SIGCONT)
    wait(lambda: deployment.steps(prediction_id).count("predict") == 2)
    wait(lambda: len(deployment.registered_workers()) == 2)  # it has a heartbeat again and continues the lost job
    deployment.wait_for(deployment.submit())
    assert deployment.rows(prediction_id) == before
    assert suspended.end() == "exit 0"


@pytest.mark.parametrize("ending", [predictions.cancel, predictions.erase])
def test_job_ends_with_its_prediction(deployment: Deployment, ending: Callable[..., object]) -> None:
    deployment.start_worker()
    prediction_id, queued = deployment.submit_paused("predict"), deployment.submit()
    for one in (prediction_id, queued):
        with deployment.database.session() as session:
            ending(session, one, None)
    before = [deployment.rows(one) for one in (prediction_id, queued)]
    deployment.resume(prediction_id)
    wait(lambda: deployment.queue.alive([prediction_id, queued]) == set())
    assert [deployment.rows(one) for one in (prediction_id, queued)] == before
    assert deployment.steps(prediction_id) == ["prepare", "predict"]
    assert deployment.steps(queued) == []
    assert deployment.storage.scratch_ids() == []


def test_worker_finishes_its_current_job_after_sigterm(deployment: Deployment) -> None:
    worker = deployment.start_worker()
    current, waiting = deployment.submit_paused("predict"), deployment.submit()
    os.kill(worker.pid, signal.SIGTERM)
    time.sleep(0.5)
    assert deployment.find(waiting).status is Status.QUEUED
    other = deployment.start_worker()
    assert deployment.wait_for(waiting)[0].status is Status.SUCCEEDED
    time.sleep(LEASE + 0.5)  # longer than the lease: a draining worker still has a heartbeat
    deployment.resume(current)
    assert worker.end() == "exit 0"
    assert deployment.find(current).status is Status.SUCCEEDED
    assert deployment.steps(current) == list(Stage)
    assert [each.pid for each in deployment.registered_workers()] == [other.child]


def test_worker_that_ends_before_it_has_read_the_ledger_starts_no_job(deployment: Deployment) -> None:
    prediction_id = deployment.submit()
    (deployment.folder / "ledger").write_text("a file in place of the folder")
    worker = deployment.start_worker(RLVO_ERASURE_LEDGER=str(deployment.folder / "ledger"))
    wait(lambda: len(deployment.registered_workers()) == 1)
    assert worker.end() == "exit 0"
    versions = text(f"SELECT count(*) FROM {'' if deployment.database.sqlite else 'dbos.'}application_versions")
    with deployment.database.reading() as session:
        assert session.scalar(versions) == 0  # the engine writes a row at its start
    assert deployment.find(prediction_id).status is Status.QUEUED
    assert deployment.registered_workers() == []


def test_refusal_is_final_and_has_its_code(deployment: Deployment) -> None:
    deployment.start_worker()
    unknown = study.MODEL.model_copy(update={"version": "9.0.0"})
    replaced = study.MODEL
    codes = []
    for model in (unknown, replaced):
        new = study.new_prediction(model=model)
        with deployment.database.session() as session:
            study.add_and_queue(session, deployment.queue, new)
        prediction = deployment.wait_for(new.id)[0]
        assert prediction.error
        codes.append(prediction.error.code)
    assert codes == ["model-not-found", "model-not-ready"]


def test_damaged_volume_gets_no_prediction(deployment: Deployment) -> None:
    deployment.storage.path(deployment.volume.sha256).write_bytes(b"other bytes")
    deployment.start_worker()
    prediction = deployment.wait_for(deployment.submit())[0]
    assert prediction.error
    assert prediction.error.code == "internal-error"
    assert prediction.probability is None


def test_work_continues_after_an_outage_of_the_database(deployment: Deployment) -> None:
    if deployment.database.sqlite:
        pytest.skip("a SQLite file has no outage")
    deployment.start_worker()
    prediction_id = deployment.submit_paused("record")
    name = deployment.database.url.database
    server = create_engine(deployment.database.url.set(database="postgres"), isolation_level="AUTOCOMMIT")
    with server.connect() as connection:
        connection.execute(text(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false"))
        connection.execute(text(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'"))
        deployment.resume(prediction_id)
        with pytest.raises(DatabaseUnavailable):
            deployment.find(prediction_id)
        time.sleep(3)
        connection.execute(text(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true"))
    server.dispose()
    assert deployment.wait_for(prediction_id)[0].status is Status.SUCCEEDED
    assert deployment.wait_for(deployment.submit())[0].status is Status.SUCCEEDED
    assert deployment.audit_counts()[prediction_id] == 1


REFUSING = """
CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
$$ BEGIN RAISE EXCEPTION 'canceling statement due to lock timeout' USING ERRCODE = '55P03'; END $$;
CREATE TRIGGER refuse BEFORE INSERT OR UPDATE ON dbos.operation_outputs EXECUTE FUNCTION refuse()
"""


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_log_of_the_engine_that_is_locked_delays_a_study_and_is_no_failed_start(deployment: Deployment) -> None:
    worker = deployment.start_worker()
    prediction_id = deployment.submit_paused("predict")
    with deployment.database.session() as session:
        session.execute(text(REFUSING))
    deployment.resume(prediction_id)
    wait(lambda: (deployment.find(prediction_id).waiting is not None) or deployment.find(prediction_id).status.finished)
    time.sleep(4)  # several tries
    assert deployment.find(prediction_id).error is None
    with deployment.database.session() as session:
        session.execute(text("DROP FUNCTION refuse CASCADE"))
    assert deployment.wait_for(prediction_id)[0].status is Status.SUCCEEDED
    assert deployment.audit_counts()[prediction_id] == 1
    assert worker.starts == 1


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_worker_ends_while_the_database_is_away(deployment: Deployment) -> None:
    worker = deployment.start_worker()
    wait(lambda: len(deployment.registered_workers()) == 1)
    deployment.wait_for(deployment.submit())
    name = deployment.database.url.database
    server = create_engine(deployment.database.url.set(database="postgres"), isolation_level="AUTOCOMMIT")
    with server.connect() as connection:
        connection.execute(text(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false"))
        connection.execute(text(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'"))
        assert worker.end() == "exit 0"
        connection.execute(text(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true"))
    server.dispose()


def test_sweep_removes_only_unreferenced_files(deployment: Deployment) -> None:
    waiting = deployment.submit()
    orphan = deployment.storage.put(b"unreferenced")
    deployment.storage.scratch(waiting).put(b"needed")
    deployment.storage.scratch(predictions.new_id()).put(b"left behind")
    assert sweep(deployment.database, deployment.storage) == 0
    for digest in (orphan, deployment.volume.sha256):
        os.utime(deployment.storage.path(digest), (0, 0))
    assert sweep(deployment.database, deployment.storage) == 1
    assert list(deployment.storage.digests()) == [deployment.volume.sha256]
    assert deployment.storage.scratch_ids() == [waiting]
