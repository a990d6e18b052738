"""The steps of one prediction: prepare, predict, explain, record.

Design notes:
- Each step is a function of the `PredictionContext` of its prediction. No step calls another step.
- The job engine logs each completed step, so a worker that takes over continues after the last one.
- `prepare`, `predict` and `explain` are pure functions of the stored study and the model version. If an output is gone,
  for example because another machine takes over, the pipeline computes it again before the step that needs it.
- A step never raises. An RlvoError below 500 is final at once, because the input is at fault.
- A fault of the environment (storage, disk, database, threads) ends the step as waiting: the job goes back into the
  queue and is tried again until the fault is over. A waiting job whose disk is full gives up its scratch folder.
- Any other error leads to a new try, `TRIES` in all, because the program is at fault.
- The log shows the type and the place of an unexpected error. Its message may hold a value of the patient.
- Only `record` writes to the database, in one transaction.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter

from app.core.concurrency import submit
from app.core.environment import disk_is_full, is_environment_fault
from app.core.logging import error_location
from app.database import audit, job_state, predictions, shadow_scores
from app.database.job_state import JobStudy, PredictionResult
from app.database.predictions import REPORT, Artifact
from app.database.session import Database, retry_until_available
from app.database.shadow_scores import ShadowScore
from app.imaging.io.limits import Limits
from app.inference.device_errors import device_lost, out_of_memory
from app.inference.ensemble_predictor import EXACT_METHOD
from app.inference.model_cache import ModelCache
from app.inference.replay import ComputedOn, tolerance
from app.network.backends import Precision
from app.registry.model_store import StoredVersion
from app.sdk.errors import DatabaseUnavailable, InternalError, RlvoError, StorageFull, StorageUnavailable
from app.sdk.summary import SYNTHETIC_NOTICE, SYNTHETIC_TRAINING, warning_codes
from app.sdk.types import (
    Attribution,
    Decision,
    Failure,
    FiguresState,
    Flag,
    Interval,
    PerfusionSummary,
    Prediction,
    Stage,
    Status,
    read_interval,
)
from app.storage.local import Storage
from app.worker import artifacts, sealed_answer
from app.worker.drawing_data import DATA
from app.worker.lost_device import end_process
from app.worker.prediction_context import FailureRecord, PredictionContext, StepResult
from app.worker.queue import Queue

if TYPE_CHECKING:
    from app.inference.model_version import ModelAnswer

log = logging.getLogger("rlvo.job")

TRIES = 3  # largest number of tries of a step that fails unexpectedly, and of starts of a job that stops its worker
_INTERVAL: TypeAdapter[Interval | None] = TypeAdapter(Interval | None)
_MACHINE = "The machine, its disk or the model store cannot be used; the operator can find the cause in the log"
PAUSE = 0.5  # seconds before the second try; the pause before the third try is twice as long


def prepare(context: PredictionContext) -> bytes:
    """Reads the volumes and makes the model input, as one safetensors file."""
    model_input = context.version().prepare(context.volumes(), context.clinical_record())
    if not context.study.explain:
        context.release_volumes()
    return model_input.to_bytes()


def predict(context: PredictionContext) -> bytes:
    """Computes the calibrated probability and everything that belongs to the answer, as JSON."""
    model_input = context.model_input()
    answer = context.version().predict(model_input)
    of_inputs = [*context.study.intake_flags, *model_input.flags]
    flags = [*of_inputs, *answer.flags, *_origin(context)]
    withheld = [] if context.study.accept_warnings else warning_codes(flags)
    document = {
        "probability": answer.probability,
        "interval": answer.interval and answer.interval.model_dump(mode="json"),
        "folds": list(answer.folds),
        "decision": None if withheld else answer.decision.model_dump(mode="json"),
        "withheld": withheld,
        "flags": [flag.model_dump(mode="json") for flag in flags],
        "perfusion": model_input.perfusion and model_input.perfusion.model_dump(mode="json"),
        "computed_on": context.computed_on(),
    }
    if (trial := context.study.trial) is not None:
        # The decision of the version is kept too if warnings withhold it: the trial analyses every patient.
        document["decision"] = answer.decision.model_dump(mode="json")
        document = sealed_answer.seal(trial, context.study.id, document, [flag.code for flag in of_inputs])
    return _json_bytes(document)


def explain(context: PredictionContext) -> bytes:
    """Computes the attribution, as JSON, and puts the maps and the data of the figures in the scratch folder.

    The output has the answer that it explains: if another worker predicted on a device that rounds differently, it is
    computed again here, because the contributions must add up to it.
    """
    version, model_input, answer = context.version(), context.model_input(), context.answer()
    if answer.get("computed_on") not in (None, list(context.computed_on())):  # an earlier release stored none
        answer = json.loads(predict(context))
    attribution, maps = version.explain(model_input, method=EXACT_METHOD if context.study.exact else None)
    prediction = _prediction(context.study, answer, attribution)
    files: list[tuple[str, str, str]] = []
    map_names: list[str] = []
    made = artifacts.files(
        prediction,
        model_input,
        version.manifest,
        maps,
        context.volume,
        card=context.model_card(),
        record=context.clinical_record(),
    )
    for file in made:
        files.append((file.name, context.scratch.put(file.content), file.media_type))
        if file.map_name is not None:
            map_names.append(file.map_name)
    context.release_volumes()
    attribution = attribution.model_copy(update={"maps": map_names})
    return _json_bytes({"attribution": attribution.model_dump(mode="json"), "files": files, "answer": answer})


def record(context: PredictionContext, store: Callable[[PredictionResult], None]) -> None:
    """Makes blobs of the files in the scratch folder; ``store`` writes the result in one transaction."""
    answer = context.answer()
    stored: list[Artifact] = []
    attribution = None
    if context.study.explain:
        explanation = context.explanation()
        size = context.scratch.size(digest for _, digest, _ in explanation["files"])
        if size is None:
            raise _FileGone
        context.storage.require(size)  # a full disk is noticed before half of the files are written
        # In parallel: the disk syncs many files in the time of one.
        writes = [submit(partial(_publish, context, *file)) for file in explanation["files"]]
        stored = [write.result() for write in writes]
        attribution = Attribution.model_validate(explanation["attribution"])
        answer = explanation.get("answer", answer)  # a step of an earlier release has none
    computed_on = answer.get("computed_on", (None, None))  # a step of an earlier release has none
    store(
        PredictionResult(
            probability=answer["probability"],
            interval=_INTERVAL.validate_python(read_interval(answer["interval"], answer["folds"])),
            folds=answer["folds"],
            decision=answer["decision"] and Decision.model_validate(answer["decision"]),
            withheld=answer.get("withheld", []),  # a step of an earlier release has none
            flags=[Flag.model_validate(flag) for flag in answer["flags"]],
            perfusion=answer["perfusion"] and PerfusionSummary.model_validate(answer["perfusion"]),
            attribution=attribution,
            timings={stage: result["seconds"] for stage, result in context.results.items()},
            artifacts=stored,
            figures=_figures_state({artifact.name for artifact in stored}),
            device=computed_on[0],
            precision=computed_on[1],
            sealed=sealed_answer.read(answer),
        )
    )


COMPUTED_STEPS: Mapping[Stage, Callable[[PredictionContext], bytes]] = {
    Stage.PREPARE: prepare,
    Stage.PREDICT: predict,
    Stage.EXPLAIN: explain,
}
"""The steps whose output can be computed again, in their order."""


@dataclass(frozen=True)
class PredictionPipeline:
    """Runs the steps of predictions. A worker has one pipeline; each prediction has its context."""

    database: Database
    storage: Storage
    queue: Queue
    model_cache: ModelCache
    limits: Limits

    def begin(self, study: JobStudy) -> PredictionContext:
        """Makes the context of a prediction. The caller closes it."""
        return PredictionContext(study, self.model_cache, self.storage, self.limits)

    def step(self, stage: Stage, context: PredictionContext) -> StepResult:
        """Runs one step until it succeeds, waits, is refused or has failed `TRIES` times. Never raises an Exception."""
        started = time.monotonic()
        failure: FailureRecord = {}
        for number in range(1, TRIES + 1):
            full = False
            try:
                digest = self._run(stage, context)
                return {"digest": digest, "seconds": round(time.monotonic() - started, 4)}
            except (StorageFull, StorageUnavailable, DatabaseUnavailable) as error:
                return self.waiting(stage, context, error)
            except RlvoError as error:
                if is_environment_fault(error):
                    return self.waiting(stage, context, error)
                failure = failure_record(error)
                if error.status < 500:
                    break
            except Exception as error:  # noqa: BLE001 - every error of a step must end in the record, not in a crash
                if is_environment_fault(error):
                    return self.waiting(stage, context, error)
                full = out_of_memory(error)
                failure = self._unexpected(stage, context, error)
            if full:  # not in the handler: the error keeps the memory of the step until the handler ends
                self._evict(stage, context)
            if number < TRIES:
                time.sleep(PAUSE * number)
        return {"failure": failure}

    def _evict(self, stage: Stage, context: PredictionContext) -> None:
        """Release device memory, so that the next try of the step has more of it."""
        try:
            self.model_cache.evict(context.study.model.name, context.study.model.version)
        except Exception as error:  # noqa: BLE001 - an eviction that fails must not end the job; the next try, if any, decides
            self._unexpected(stage, context, error)

    def _unexpected(self, stage: Stage, context: PredictionContext, error: Exception) -> FailureRecord:
        """Log an error that no step should have; ends this process if it cannot use its device any more."""
        log.error("%s of %s: %s", stage, context.study.id, error_location(error))
        if device_lost(error):
            end_process(error)
        return failure_record(
            InternalError("The prediction failed unexpectedly. The operator can find the cause in the log")
        )

    def waiting(self, stage: Stage, context: PredictionContext, error: Exception) -> StepResult:
        """The result of a step that met a fault of the environment."""
        log.warning("%s of %s waits: %s", stage, context.study.id, error_location(error))
        if isinstance(error, StorageFull) or disk_is_full(error):
            context.scratch.clear()  # makes place for others; the outputs are computed again
            return {"waiting": "The storage is full; the operator can free disk space"}
        if isinstance(error, DatabaseUnavailable):
            return {"waiting": "The database cannot be reached"}
        return {"waiting": error.detail if isinstance(error, StorageUnavailable) else _MACHINE}

    def fail(self, study: JobStudy, failure: FailureRecord) -> None:
        """Records the failure of a prediction, unless this run has lost the prediction."""
        with self.database.session() as session:
            if job_state.fail(session, study, Failure.model_validate(failure)):
                self.queue.queue_webhooks(session, study.id)
                audit.append(session, "worker", "prediction.failed", study.id, {"code": failure["code"]})

    def wait(self, study: JobStudy, detail: str, step: int) -> None:
        """Returns a prediction to the queue until the environment works again, unless this run has lost it."""
        with self.database.session() as session:
            job_state.wait(session, study, detail, step=step)

    def clear_scratch(self, prediction_id: str) -> None:
        """Clears the scratch folder of a finished prediction; another run may need that of an unfinished one."""
        with self.database.reading() as session:
            finished = not job_state.unfinished(session, [prediction_id])
        if finished:
            self.storage.scratch(prediction_id).clear()

    def replay(self, study: JobStudy) -> tuple[ModelAnswer, float]:
        """Computes the answer again from the stored study and the same model version, and stores nothing.

        Returns:
            The answer, and the largest difference of its probability from the stored one on this device.

        Raises the errors of `PredictionContext.version` and `PredictionContext.volumes`.
        """
        context = self.begin(study)
        version = context.version()
        answer = version.predict(version.prepare(context.volumes(), context.clinical_record()))
        stored = ComputedOn(study.device, Precision(study.precision)) if study.device and study.precision else None
        return answer, tolerance(stored, context.computed_on())

    def shadow(self, study: JobStudy, entry: StoredVersion) -> None:
        """Scores a study that has its answer with another version of the model. Never raises an Exception."""
        score = partial(ShadowScore, study.id, entry.name, entry.version, study.model.version)
        try:
            context = self.begin(study)
            version = self.model_cache.version(entry.name, entry.version)
            outcome = version.predict(version.prepare(context.volumes(), context.clinical_record()))
            with self.database.reading() as session:
                answered = predictions.find(session, study.id, None)
        except RlvoError as error:
            result = score(error=error.code)
        except Exception as error:  # noqa: BLE001 - a failed shadow must not stop the worker
            log.error("shadow of %s: %s", study.id, error_location(error))
            result = score(error=InternalError.code)
        else:
            if answered.probability is None:
                return
            decision = answered.decision
            result = score(
                difference=outcome.probability - answered.probability,
                agrees=None if decision is None else outcome.decision.refractory == decision.refractory,
            )
        with self.database.session() as session:
            shadow_scores.store(session, result)

    def _run(self, stage: Stage, context: PredictionContext) -> str:
        """Runs one step, after each completed step whose output is gone, and returns the digest of the output."""
        for each, compute in COMPUTED_STEPS.items():
            if each is stage:
                return context.put_output(stage, compute(context))
            if each in context.results and not context.load_output(each):
                context.results[each]["digest"] = context.put_output(each, compute(context))
        store = partial(self._succeed, context.study)
        try:
            record(context, store)
        except _FileGone:
            context.put_output(Stage.EXPLAIN, explain(context))
            record(context, store)
        return ""

    def _succeed(self, study: JobStudy, result: PredictionResult) -> None:
        def store() -> None:
            with self.database.session() as session:
                if job_state.succeed(session, study, result):
                    detail = {} if study.trial is None else {"trial": study.trial.name}
                    self.queue.queue_webhooks(session, study.id)
                    if self.queue.queue_deliveries(session, study.id):
                        self.queue.draw_on_demand(session, study.id)  # the objects hold the figures
                    audit.append(session, "worker", "prediction.succeeded", study.id, detail)

        retry_until_available(store, also_full=False)


class _FileGone(Exception):
    """A file of the explanation is missing or damaged in the scratch folder."""


def failure_record(error: RlvoError) -> FailureRecord:
    """Record of an error that ends a prediction."""
    return {"code": error.code, "title": error.title, "detail": error.detail}


def _origin(context: PredictionContext) -> list[Flag]:
    """Flag of a version that was trained on synthetic patients only; every answer of the version carries it."""
    synthetic = context.version().manifest.training.synthetic
    return [Flag(code=SYNTHETIC_TRAINING, detail=SYNTHETIC_NOTICE.rstrip("."))] if synthetic else []


def _prediction(study: JobStudy, answer: dict[str, Any], attribution: Attribution) -> Prediction:
    """The prediction as the database will have it, for the report."""
    return Prediction.model_validate(
        answer
        | {
            "id": study.id,
            "status": Status.SUCCEEDED,
            "model": study.model,
            "subject": study.subject,
            "study_instance_uid": study.study_instance_uid,
            "accession_number": study.accession_number,
            "inputs": study.inputs,
            "created": study.created,
            "accept_warnings": study.accept_warnings,
            "ctp_interval_s": study.ctp_interval_s,
            "series": study.series or None,
            "attribution": attribution,
        }
    )


def _figures_state(names: set[str]) -> FiguresState | None:
    """State of the figures of an answer with these files; an earlier release drew them before the answer."""
    if REPORT in names:
        return FiguresState.READY
    return FiguresState.PENDING if DATA in names else None


def _publish(context: PredictionContext, name: str, digest: str, media_type: str) -> Artifact:
    """Makes a blob of a file in the scratch folder."""
    data = context.scratch.get(digest)
    if data is None:
        raise _FileGone
    return Artifact(name, context.storage.put(data), len(data), media_type)


def _json_bytes(document: dict[str, Any]) -> bytes:
    return json.dumps(document, allow_nan=False).encode()
