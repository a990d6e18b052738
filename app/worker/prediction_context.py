"""Context of one prediction: the study, its model version, its volumes and the results of its steps.

Design notes:
- A worker makes one context when it takes a prediction, passes it to every step, and closes it at the end.
- The output of a step is a file in the scratch folder, named by its sha-256. The log of the job engine keeps that
  digest, the duration and a failure code, and nothing of the patient.
- Each volume is read once in a run: `explain` uses the volumes that `prepare` read.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, TypedDict

from app.core.concurrency import submit
from app.database.job_state import JobStudy
from app.imaging.io import nifti
from app.imaging.io.limits import Limits
from app.imaging.io.nifti import Volume
from app.imaging.perfusion import bolus_check
from app.inference.model_cache import ModelCache
from app.inference.model_input import ModelInput
from app.sdk.clinical import ClinicalRecord
from app.sdk.errors import InternalError, ModelNotFound, ModelNotReady, StorageUnavailable
from app.sdk.types import Input, Stage
from app.storage.errors import storage_errors
from app.storage.local import ScratchFolder, Storage

if TYPE_CHECKING:
    from app.inference.model_version import ModelVersion
from app.inference.replay import ComputedOn

FailureRecord = dict[str, str]  # code, title and detail of a `Failure`, as plain JSON


class StepResult(TypedDict, total=False):
    """Result of a step in the log of the job engine: digest of the output and seconds, or the failure.

    ``waiting`` says which fault of the environment stopped the step; the step runs again later.
    """

    digest: str
    seconds: float
    failure: FailureRecord
    waiting: str


StepResults = dict[Stage, StepResult]


@dataclass
class PredictionContext:
    """Everything that the steps of one prediction share; ``results`` has those of the completed steps, in order."""

    study: JobStudy
    model_cache: ModelCache
    storage: Storage
    limits: Limits
    results: StepResults = field(default_factory=dict)
    _outputs: dict[Stage, bytes] = field(default_factory=dict)
    _volumes: dict[Input, Volume] = field(default_factory=dict)

    def close(self) -> None:
        """Releases the memory of volumes and outputs."""
        self._outputs.clear()
        self.release_volumes()

    @property
    def scratch(self) -> ScratchFolder:
        """Folder for the outputs of the steps."""
        return self.storage.scratch(self.study.id)

    def version(self) -> ModelVersion:
        """The model version that the study was accepted for.

        Raises:
            ModelNotFound: The model store has no such version.
            ModelNotReady: The files of the version have changed since then, or they fail their checks.
            StorageUnavailable: The model store has no version at all, because its folder is not there.
        """
        try:
            version = self.model_cache.version(self.study.model.name, self.study.model.version)
        except ModelNotFound as error:
            if self.model_cache.registry.names():
                raise
            raise StorageUnavailable("The model store has no version; the operator can check its folder") from error
        if version.digest != self.study.model.digest:
            raise ModelNotReady("The model version has changed since the study was accepted. Send the study again")
        return version

    def computed_on(self) -> ComputedOn:
        """Device and precision that compute the answer."""
        return ComputedOn(self.model_cache.device, self.version().precision)

    def model_card(self) -> str:
        """Model card of the version, Markdown; empty if the version has none."""
        entry = self.model_cache.registry.resolve(f"{self.study.model.name}@{self.study.model.version}")
        return entry.card()

    def clinical_record(self) -> ClinicalRecord:
        """Clinical record of the study."""
        return ClinicalRecord.model_validate_json(json.dumps(self.study.clinical))

    def volumes(self) -> dict[Input, Volume]:
        """All volumes of the study, read in parallel.

        Raises:
            InternalError: A volume is damaged.
            StorageUnavailable: A volume is missing, or the storage cannot be read.
        """
        reads = {
            name: submit(partial(self._read_verified, name)) for name in self.study.inputs if name not in self._volumes
        }
        self._volumes |= {name: read.result() for name, read in reads.items()}
        return dict(self._volumes)

    def volume(self, name: Input) -> Volume:
        """One volume of the study; a worker that has taken over reads it here for the first time."""
        if name not in self._volumes:
            self._volumes[name] = self._read(name)
        return self._volumes[name]

    def release_volumes(self) -> None:
        """Releases the memory of the volumes; `volume` reads them again if necessary."""
        self._volumes.clear()

    def load_output(self, stage: Stage) -> bool:
        """Loads the output of a completed step from the scratch folder; False if it is gone."""
        data = self.scratch.get(self.results[stage]["digest"])
        if data is not None:
            self._outputs[stage] = data
        return data is not None

    def put_output(self, stage: Stage, data: bytes) -> str:
        """Puts the output of a step in the scratch folder and returns its sha-256."""
        self._outputs[stage] = data
        return self.scratch.put(data)

    def model_input(self) -> ModelInput:
        """Output of `prepare`."""
        return ModelInput.from_bytes(self._outputs[Stage.PREPARE])

    def answer(self) -> dict[str, Any]:
        """Output of `predict`: probability, interval, folds, decision, withheld, flags and perfusion, as JSON."""
        return dict(json.loads(self._outputs[Stage.PREDICT]))

    def explanation(self) -> dict[str, Any]:
        """Output of `explain`: attribution, list of files in the scratch folder and explained answer, as JSON."""
        return dict(json.loads(self._outputs[Stage.EXPLAIN]))

    def _read_verified(self, name: Input) -> Volume:
        digest = self.study.inputs[name].sha256
        if not self.storage.verify(digest):
            # A folder that is not mounted, or a bucket after a failover, lacks blobs for some time. Wrong bytes stay.
            if not self.storage.exists(digest):
                raise StorageUnavailable("A stored volume is missing; the operator can find it with `rlvo fsck`")
            if not self.storage.verify(digest):
                raise InternalError("A stored volume is damaged. The operator can find it with `rlvo fsck --deep`")
        return self._read(name)

    def _read(self, name: Input) -> Volume:
        with storage_errors():
            volume = nifti.read(self.storage.path(self.study.inputs[name].sha256), field=name, limits=self.limits)
        interval_s = self.study.ctp_interval_s if name is Input.CTP else None
        return volume if interval_s is None else bolus_check.with_interval(volume, interval_s)
