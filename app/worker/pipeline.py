"""The steps of one prediction: prepare, predict, explain, record.

Notable choices:
- A step hands its result to the next as bytes on the prediction's workbench and returns only their digest. So what the
  job engine keeps holds nothing of the patient, and a worker that takes over goes on after the last completed step.
- A step is a pure function of the stored study and the model version: where its bytes are gone it is simply run again.
- A step does not raise. A refusal (an RlvoError below 500) is its result, final at once; anything else is tried three
  times. Logs name the kind of an unexpected error and its place, never its message, which may hold a patient's value.
- What `prepare` read of a study is held until its reasons are told, so that no volume is read twice; a worker that
  takes over reads it again.
- Only `record` writes: maps, figures and the report become blobs, then one transaction holds the numbers, the names of
  the blobs, the audit.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, TypedDict

from app.core.concurrency import submit
from app.core.logging import error_location
from app.database import audit, job_state, predictions, shadow_scores
from app.database.job_state import JobStudy, PredictionResult
from app.database.predictions import Artifact
from app.database.session import Database, retry_until_available
from app.database.shadow_scores import ShadowScore
from app.imaging.io import nifti
from app.imaging.io.limits import Limits
from app.imaging.io.nifti import Volume
from app.inference.ensemble_predictor import EXACT_METHOD
from app.inference.model_cache import ModelCache, out_of_memory
from app.inference.model_input import ModelInput
from app.registry.model_store import StoredVersion
from app.sdk.clinical import ClinicalRecord
from app.sdk.errors import InternalError, ModelNotReady, RlvoError
from app.sdk.types import (
    Attribution,
    Decision,
    Failure,
    Flag,
    Input,
    Interval,
    PerfusionSummary,
    Prediction,
    Stage,
    Status,
)
from app.storage.local import Storage
from app.worker import artifacts as publish
from app.worker.queue import Queue

if TYPE_CHECKING:
    from app.inference.model_version import ModelAnswer, ModelVersion

log = logging.getLogger("rlvo.job")

TRIES = 3
"""How often a step that breaks unexpectedly is tried, and how often a job may kill its worker."""
PAUSE = 0.5
"""Seconds before the second try; twice that before the third."""

FailureRecord = dict[str, str]
"""Code, title and detail, as plain JSON: what `Failure` is in the record."""


class StepResult(TypedDict, total=False):
    """What a step leaves in the job engine's log: where its result lies, or why there is none."""

    digest: str
    seconds: float
    failure: FailureRecord


StepResults = dict[str, StepResult]


class PredictionPipeline:
    """The four steps, with all that they need. One worker has one, for every prediction that it takes."""

    def __init__(
        self, database: Database, storage: Storage, queue: Queue, predictor: ModelCache, limits: Limits
    ) -> None:
        self._database = database
        self._queue = queue
        self._storage = storage
        self._predictor = predictor
        self._limits = limits
        self._held: tuple[str, dict[Input, Volume]] = ("", {})

    def step(self, stage: Stage, study: JobStudy, done: StepResults) -> StepResult:
        """One step, tried until it is done or refused. Never raises an Exception."""
        began = time.monotonic()
        failure: FailureRecord = {}
        for tries in range(TRIES):
            full = False
            try:
                digest = self._run(stage, study, done)
                return {"digest": digest, "seconds": round(time.monotonic() - began, 4)}
            except RlvoError as error:
                failure = failure_record(error)
                if error.status < 500:
                    break
            except Exception as error:  # noqa: BLE001 - whatever a step meets must end in the record, not in a crash
                full = out_of_memory(error)
                log.error("%s of %s: %s", stage, study.id, error_location(error))
                failure = failure_record(
                    InternalError("The prediction could not be made; the operator finds more in the log")
                )
            if full:  # not in the handler: until it is left, the error holds what the step had allocated
                self._predictor.evict(study.model.name, study.model.version)
            if tries + 1 < TRIES:
                time.sleep(PAUSE * (tries + 1))
        return {"failure": failure}

    def fail(self, study: JobStudy, failure: FailureRecord) -> None:
        """Records why there is no answer, unless this run may not write any more."""
        with self._database.session() as session:
            if job_state.fail(session, study, Failure.model_validate(failure)):
                self._queue.announce(session, study.id)
                audit.append(session, "worker", "prediction.failed", study.id, {"code": failure["code"]})

    def tidy(self, prediction_id: str) -> None:
        """Clears the workbench of a prediction that nobody works on any more; another run's is left alone."""
        self._held = ("", {})
        with self._database.reading() as session:
            finished = not job_state.unfinished(session, [prediction_id])
        if finished:
            self._storage.workbench(prediction_id).clear()

    def replay(self, study: JobStudy) -> ModelAnswer:
        """The answer computed again from the stored study and the same model version. Nothing is written.

        Raises InternalError where a volume is gone, ModelNotFound and ModelNotReady where the version is.
        """
        return self._model(study).predict(self._prepared(study, self._volumes(study)))

    def shadow(self, study: JobStudy, entry: StoredVersion) -> None:
        """Scores an answered study by another version of its model, beside the answer. Never raises an Exception."""
        here = {
            "prediction_id": study.id,
            "name": entry.name,
            "version": entry.version,
            "answered": study.model.version,
        }
        try:
            version = self._predictor.version(entry.name, entry.version)
            outcome = version.predict(self._prepared(study, self._volumes(study), version))
            with self._database.reading() as session:
                answered = predictions.find(session, study.id, None)
        except RlvoError as error:
            score = ShadowScore(**here, difference=None, agrees=None, error=error.code)
        except Exception as error:  # noqa: BLE001 - a shadow harms nobody, whatever it meets
            log.error("shadow of %s: %s", study.id, error_location(error))
            score = ShadowScore(**here, difference=None, agrees=None, error=InternalError.code)
        else:
            if answered.probability is None or answered.decision is None:
                return
            score = ShadowScore(
                **here,
                difference=outcome.probability - answered.probability,
                agrees=outcome.decision.refractory == answered.decision.refractory,
            )
        with self._database.session() as session:
            shadow_scores.store(session, score)

    def _run(self, stage: Stage, study: JobStudy, done: StepResults) -> str:
        steps: dict[Stage, Callable[[JobStudy, StepResults], str]] = {
            Stage.PREPARE: self._prepare,
            Stage.PREDICT: self._predict,
            Stage.EXPLAIN: self._explain,
            Stage.RECORD: self._record,
        }
        return steps[stage](study, done)

    def _prepare(self, study: JobStudy, _done: StepResults) -> str:
        volumes = self._volumes(study)
        if study.explain:
            self._held = (study.id, volumes)
        return self._storage.workbench(study.id).put(self._prepared(study, volumes).to_bytes())

    def _volumes(self, study: JobStudy) -> dict[Input, Volume]:
        begun = {field: submit(partial(self._verified, study, field)) for field in study.inputs}
        return {field: volume.result() for field, volume in begun.items()}

    def _prepared(
        self, study: JobStudy, volumes: dict[Input, Volume], version: ModelVersion | None = None
    ) -> ModelInput:
        record = ClinicalRecord.model_validate_json(json.dumps(study.clinical))
        return (version or self._model(study)).prepare(volumes, record)

    def _predict(self, study: JobStudy, done: StepResults) -> str:
        case = self._case(study, done)
        outcome = self._model(study).predict(case)
        return self._put(
            study,
            {
                "probability": outcome.probability,
                "interval": outcome.interval and outcome.interval.model_dump(mode="json"),
                "folds": list(outcome.folds),
                "decision": outcome.decision.model_dump(mode="json"),
                "flags": [flag.model_dump(mode="json") for flag in (*case.flags, *outcome.flags)],
                "perfusion": case.perfusion and case.perfusion.model_dump(mode="json"),
            },
        )

    def _explain(self, study: JobStudy, done: StepResults) -> str:
        version, case = self._model(study), self._case(study, done)
        attribution, maps = version.explain(case, method=EXACT_METHOD if study.exact else None)
        answer = _answer(study, json.loads(self._bytes(Stage.PREDICT, study, done)), attribution)
        bench, files = self._storage.workbench(study.id), []
        for file in publish.files(answer, case, version.manifest, maps, partial(self._seen, study), self._card(study)):
            files.append([file.name, bench.put(file.content), file.media_type])
        listed = [name[5:-7] for name, _, _ in files if name.startswith("maps/")]  # maps/<name>.nii.gz
        attribution = attribution.model_copy(update={"maps": listed})
        return self._put(study, {"attribution": attribution.model_dump(mode="json"), "files": files})

    def _record(self, study: JobStudy, done: StepResults) -> str:
        outcome = json.loads(self._bytes(Stage.PREDICT, study, done))
        artifacts: list[Artifact] = []
        attribution = None
        if study.explain:
            reasons = json.loads(self._bytes(Stage.EXPLAIN, study, done))
            begun = [submit(partial(self._publish, study, *file)) for file in reasons["files"]]
            artifacts = [artifact.result() for artifact in begun]  # the disk syncs many files as soon as one
            attribution = Attribution.model_validate(reasons["attribution"])
        result = PredictionResult(
            probability=outcome["probability"],
            interval=outcome["interval"] and Interval.model_validate(outcome["interval"]),
            folds=outcome["folds"],
            decision=Decision.model_validate(outcome["decision"]),
            flags=[Flag.model_validate(flag) for flag in outcome["flags"]],
            perfusion=outcome["perfusion"] and PerfusionSummary.model_validate(outcome["perfusion"]),
            attribution=attribution,
            timings={stage: step["seconds"] for stage, step in done.items()},
            artifacts=artifacts,
        )
        retry_until_available(partial(self._succeed, study, result))
        return ""

    def _succeed(self, study: JobStudy, result: PredictionResult) -> None:
        with self._database.session() as session:
            if job_state.succeed(session, study, result):
                self._queue.announce(session, study.id)
                audit.append(session, "worker", "prediction.succeeded", study.id)

    def _publish(self, study: JobStudy, name: str, digest: str, media_type: str) -> Artifact:
        """Makes a file of the workbench a blob, which its row will name."""
        data = self._storage.workbench(study.id).get(digest)
        if data is None:
            raise InternalError("A map or a figure went missing before it was recorded")
        return Artifact(name, self._storage.put(data), len(data), media_type)

    def _seen(self, study: JobStudy, field: Input) -> Volume:
        """An upload as `prepare` saw it."""
        holder, volumes = self._held
        return volumes[field] if holder == study.id else self._volume(study, field)

    def _verified(self, study: JobStudy, field: Input) -> Volume:
        if not self._storage.verify(study.inputs[field].sha256):
            raise InternalError("A stored volume is missing or damaged; the operator can look with `rlvo fsck`")
        return self._volume(study, field)

    def _volume(self, study: JobStudy, field: Input) -> Volume:
        return nifti.read(self._storage.path(study.inputs[field].sha256), field=field, limits=self._limits)

    def _card(self, study: JobStudy) -> str:
        """The version's card; a version may have none."""
        entry = self._predictor.registry.resolve(f"{study.model.name}@{study.model.version}")
        path = entry.folder / "card.md"
        return path.read_text(encoding="utf-8") if path.exists() else ""

    def _model(self, study: JobStudy) -> ModelVersion:
        """The very version that the study was accepted for. Raises ModelNotFound, ModelNotReady."""
        version = self._predictor.version(study.model.name, study.model.version)
        if version.digest != study.model.digest:
            raise ModelNotReady("The model version was replaced by other files since the study was accepted")
        return version

    def _case(self, study: JobStudy, done: StepResults) -> ModelInput:
        return ModelInput.from_bytes(self._bytes(Stage.PREPARE, study, done))

    def _put(self, study: JobStudy, document: dict[str, Any]) -> str:
        return self._storage.workbench(study.id).put(json.dumps(document, allow_nan=False).encode())

    def _bytes(self, stage: Stage, study: JobStudy, done: StepResults) -> bytes:
        """What an earlier step left on the workbench; it is run again where that is gone."""
        bench = self._storage.workbench(study.id)
        data = bench.get(done[stage]["digest"])
        return data if data is not None else bench.get(self._run(stage, study, done)) or b""


def _answer(study: JobStudy, outcome: dict[str, Any], attribution: Attribution) -> Prediction:
    """The prediction as it will be on record."""
    return Prediction.model_validate(
        outcome
        | {
            "id": study.id,
            "status": Status.SUCCEEDED,
            "model": study.model,
            "subject": study.subject,
            "inputs": study.inputs,
            "created": study.created,
            "attribution": attribution,
        }
    )


def failure_record(error: RlvoError) -> FailureRecord:
    """What is recorded of an error that ends a prediction."""
    return {"code": error.code, "title": error.title, "detail": error.detail}
