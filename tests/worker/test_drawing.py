"""Figures and report are drawn after the answer: once, from stored data, and without any effect on the answer."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import text

from app.database import job_state, predictions
from app.database.job_state import PredictionResult
from app.database.predictions import Artifact
from app.database.session import Database
from app.imaging.io import nifti
from app.reporting.grid_volume import GridVolume
from app.sdk.errors import FiguresNotReady, NotFound
from app.sdk.types import (
    Attribution,
    Channel,
    ClinicalContribution,
    Decision,
    FiguresState,
    ModalityContribution,
    Prediction,
    Status,
)
from app.storage.local import Storage
from app.worker import drawing
from app.worker.drawing import DrawingFailed, DrawingProcess, FigureJobs
from app.worker.drawing_data import DATA, DrawingData, OverlayData, PositionData
from app.worker.drawing_process import drawn_files
from app.worker.idle_drawing import IdleDrawing
from app.worker.liveness import LivenessMonitor
from app.worker.queue import Queue
from app.worker.retention import sweep
from tests import study

FILES = {f"figures/{name}.{kind}" for name in ("waterfall", "overlay-cta", "position") for kind in ("svg", "png")} | {
    "report.html"
}
AFFINE = np.diag([8.0, 8.0, 8.0, 1.0])
ATTRIBUTION = Attribution(
    base=-1.0,
    total=0.2,
    clinical=[ClinicalContribution(variable="age", value=71.0, contribution=0.5)],
    imaging=[ModalityContribution(modality=Channel.CTA, contribution=0.7)],
)


def stored_data(prediction: Prediction) -> dict[str, bytes]:
    """The files that the figures of a small answer are drawn from."""
    image = GridVolume(np.full((12, 12, 12), 40.0, np.float32), AFFINE)
    data = DrawingData(
        prediction=prediction.model_copy(update={"attribution": ATTRIBUTION}),
        overlays=[OverlayData(channel=Channel.CTA, window=(0.0, 80.0), title="CTA adds +0.70 log-odds")],
        positions=[PositionData(name="age", value_text="71 years", patient=0.4, others=[-1.0, 0.0, 1.0])],
        card="# Card",
    )
    packed = nifti.pack(image.values, image.affine)
    return {
        DATA: data.model_dump_json().encode(),
        "maps/aligned-cta.nii.gz": packed,
        "maps/aligned-attribution-cta.nii.gz": packed,
    }


@dataclass
class InlineProcess(DrawingProcess):
    """Draws in this process, after ``before`` was called."""

    before: Callable[[], None] = field(default=lambda: None)

    def draw(self, stored: Mapping[str, bytes]) -> dict[str, bytes]:
        self.before()
        return {name: stored[DATA] + name.encode() for name in sorted(FILES)}


@dataclass
class Answered:
    """A prediction with its answer, and the jobs that draw its figures."""

    database: Database
    storage: Storage
    queue: Queue
    id: str
    process: InlineProcess = field(default_factory=InlineProcess)

    def draw(self, number: int = 1, failures: int = 0) -> None:
        FigureJobs(self.database, self.storage, self.queue, self.process).draw(self.id, number, failures)

    def find(self) -> Prediction:
        with self.database.reading() as session:
            return predictions.find(session, self.id, None)

    def names(self) -> set[str]:
        with self.database.reading() as session:
            return set(predictions.artifacts(session, self.id, None))

    def erase(self) -> None:
        with self.database.session() as session:
            orphans = predictions.erase(session, self.id, None)
        for digest in orphans:
            self.storage.delete(digest, grace=0)

    def want(self) -> bool:
        with self.database.session() as session:
            return self.queue.draw_on_demand(session, self.id)

    def jobs(self) -> list[tuple[str, str]]:
        """Id and state of each queued job to draw, in order."""
        table = "workflow_status" if self.database.sqlite else "dbos.workflow_status"
        query = f"SELECT workflow_uuid, status FROM {table} WHERE queue_name = 'figures' ORDER BY 1"
        with self.database.reading() as session:
            return [(job.removeprefix(f"draw-{self.id}-"), status) for job, status in session.execute(text(query))]


@pytest.fixture
def answered(database: Database, tmp_path: Path) -> Answered:
    """An answer on record, as the last step of a prediction leaves it."""
    storage, queue = Storage(tmp_path / "blobs"), Queue(database)
    new = study.new_prediction()
    with database.session() as session:
        study.add_and_queue(session, queue, new)
        started = job_state.start(session, new.id)
        assert started
        files = stored_data(predictions.find(session, new.id, None))
        artifacts = [Artifact(name, storage.put(data), len(data), "x/y") for name, data in files.items()]
        result = PredictionResult(
            probability=0.55,
            interval=None,
            folds=[0.55],
            decision=Decision(refractory=True, threshold=0.4, rule="chosen for tests"),
            flags=[],
            perfusion=None,
            attribution=ATTRIBUTION,
            timings={},
            artifacts=artifacts,
            figures=FiguresState.PENDING,
        )
        assert job_state.succeed(session, started, result)
    return Answered(database, storage, queue, new.id)


@pytest.fixture
def process() -> Iterator[DrawingProcess]:
    process = DrawingProcess()
    yield process
    process.close()


@pytest.fixture
def liveness(tmp_path: Path) -> Iterator[LivenessMonitor]:
    liveness = LivenessMonitor("w", tmp_path / "workers", 15.0)
    yield liveness
    liveness.close()


def test_figures_follow_the_answer_and_are_stored_once(answered: Answered) -> None:
    before = answered.find()
    assert (before.status, before.figures) == (Status.SUCCEEDED, FiguresState.PENDING)
    answered.draw()
    after = answered.find()
    assert after == before.model_copy(update={"figures": FiguresState.READY})
    assert answered.names() >= FILES
    answered.process.before = lambda: pytest.fail("a second run of the job drew again")
    answered.draw()
    assert answered.find() == after
    assert answered.jobs() == []


def test_figures_are_queued_once_however_many_want_them(answered: Answered) -> None:
    queued = [answered.want() for _ in range(3)]
    assert (queued, answered.jobs()) == ([True, False, False], [("1", "ENQUEUED")])
    answered.draw()
    assert not answered.want()  # they are ready
    assert answered.find().figures is FiguresState.READY


def test_erased_prediction_takes_no_drawing(answered: Answered) -> None:
    answered.erase()
    assert not answered.want()
    assert answered.jobs() == []


def test_idle_worker_draws_what_nobody_has_asked_for(answered: Answered, liveness: LivenessMonitor) -> None:
    drawing = IdleDrawing(answered.database, answered.queue, liveness)
    with liveness.active_job("a prediction"):
        drawing.look()
        drawing.look()
    drawing.look()
    assert answered.jobs() == []  # the worker has just become idle
    with liveness.active_job(f"draw-{answered.id}-0"):
        drawing.look()
    assert answered.jobs() == []  # it draws
    drawing.look()
    drawing.look()
    assert answered.jobs() == [("1", "ENQUEUED")]


def test_waiting_prediction_keeps_a_worker_from_drawing_ahead(answered: Answered, liveness: LivenessMonitor) -> None:
    drawing = IdleDrawing(answered.database, answered.queue, liveness)
    new = study.new_prediction()
    with answered.database.session() as session:
        study.add_and_queue(session, answered.queue, new)
    for _ in range(3):
        drawing.look()
    assert answered.jobs() == []
    with answered.database.session() as session:
        predictions.cancel(session, new.id, None)
    drawing.look()
    drawing.look()
    assert answered.jobs() == [("1", "ENQUEUED")]


def test_two_runs_at_the_same_time_store_the_figures_once(answered: Answered) -> None:
    """A worker that was taken over draws to the end while the next one has stored its figures."""
    second = Answered(answered.database, answered.storage, answered.queue, answered.id)
    answered.process.before = second.draw
    answered.draw()
    assert answered.find().figures is FiguresState.READY
    assert answered.names() >= FILES


@pytest.mark.parametrize("moment", ["before", "while"])
def test_erased_prediction_keeps_no_figure(answered: Answered, moment: str) -> None:
    if moment == "before":
        answered.erase()
    else:
        answered.process.before = answered.erase
    answered.draw()
    with answered.database.reading() as session:
        assert session.scalar(text("SELECT count(*) FROM artifacts")) == 0
        assert session.scalar(text("SELECT figures FROM predictions")) is None
    assert list(answered.storage.digests()) == []
    assert answered.jobs() == []


def test_figures_stored_in_the_moment_of_an_erasure_are_swept(
    answered: Answered, monkeypatch: pytest.MonkeyPatch
) -> None:
    put, erased = answered.storage.put, []

    def erase_and_put(data: bytes) -> str:
        if not erased:
            erased.append(answered.erase())
        return put(data)

    monkeypatch.setattr(answered.storage, "put", erase_and_put)
    answered.draw()
    assert erased
    sweep(answered.database, answered.storage, age=0)
    assert list(answered.storage.digests()) == []


def test_failed_figures_leave_the_answer_and_are_tried_again(answered: Answered) -> None:
    before = answered.find()

    def fail() -> None:
        raise DrawingFailed("no figure")

    answered.process.before = fail
    answered.draw()
    assert answered.find() == before.model_copy(update={"figures": FiguresState.FAILED})
    assert answered.jobs() == [("2", "DELAYED")]
    answered.process.before = lambda: None
    answered.draw(2, 1)
    assert answered.find() == before.model_copy(update={"figures": FiguresState.READY})


def test_figures_that_fail_often_are_given_up(answered: Answered) -> None:
    def fail() -> None:
        raise DrawingFailed("no figure")

    answered.process.before = fail
    answered.draw(9, drawing.TRIES - 1)
    assert answered.find().figures is FiguresState.FAILED
    assert answered.jobs() == []


def test_full_disk_lets_the_figures_wait_without_a_failure(answered: Answered) -> None:
    def fill() -> None:
        raise OSError(errno.ENOSPC, "no space")

    answered.process.before = fill
    answered.draw(50, drawing.TRIES - 1)
    assert answered.find().figures is FiguresState.PENDING
    assert answered.jobs() == [("51", "DELAYED")]


def test_missing_data_of_the_figures_is_a_failure(answered: Answered) -> None:
    with answered.database.reading() as session:
        digest, _ = predictions.artifact(session, answered.id, None, DATA)
    answered.storage.delete(digest, grace=0)
    answered.draw()
    assert answered.find().figures is FiguresState.FAILED


def test_unread_figure_says_when_to_ask_again(answered: Answered) -> None:
    def read(name: str) -> None:
        with answered.database.reading() as session:
            predictions.artifact(session, answered.id, None, name)

    for name in ("report.html", "figures/waterfall.png"):
        with pytest.raises(FiguresNotReady) as caught:
            read(name)
        assert caught.value.retry_after == 1
    with pytest.raises(NotFound):
        read("maps/attribution-ncct.nii.gz")
    answered.draw()
    read("report.html")
    with pytest.raises(NotFound):
        read("figures/overlay-tmax.png")


def test_process_draws_the_same_bytes_again_and_is_replaced_after_its_end(
    answered: Answered, process: DrawingProcess
) -> None:
    stored = stored_data(answered.find())
    first = process.draw(stored)
    assert set(first) == FILES
    assert first["figures/waterfall.png"].startswith(b"\x89PNG")
    with pytest.raises(DrawingFailed, match="ValidationError at "):
        process.draw(stored | {DATA: b"{}"})
    assert process.draw(stored) == first
    assert process._process
    os.kill(process._process.pid, 9)
    with pytest.raises(DrawingFailed, match="has ended"):
        process.draw(stored)
    process.patience = 0.0
    with pytest.raises(DrawingFailed, match="no figures within 0 s"):
        process.draw(stored)
    assert drawn_files(stored) == first
