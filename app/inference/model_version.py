"""A model version: prepare, predict and explain one patient, in training as in serving.

Design notes:
- The log-odds are the calibrated mean logit of the folds. The spread is the lowest and the highest fold.
- A logistic regression is also a version (manifest kind ``logistic``), with the same methods.
- ``save`` writes a complete version or nothing. ``load`` of the result gives the same numbers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from app.core.concurrency import Executor, no_pause, run_inline
from app.core.filesystem import atomic_directory
from app.inference import clinical_encoder, explain, fold_files, input_distance, occlusion_side, unread_inputs
from app.inference.attribution import atlas
from app.inference.ensemble_predictor import EnsemblePredictor, ExplanationMethod
from app.inference.input_statistics import InputMeter
from app.inference.model_input import ModelInput
from app.inference.reference_head import ReferenceHead
from app.network.backends import Backend, Precision
from app.network.daft import Network
from app.network.ensemble import forbid_tf32
from app.network.unet import VesselNet
from app.registry.manifest import Fold, GoldenCase, Manifest, ReferenceHeadFile
from app.sdk.clinical import ClinicalRecord, Side
from app.sdk.errors import InternalError, MissingInput, ModelNotReady
from app.sdk.types import Attribution, Channel, Decision, Flag, FoldSpread, Input, Interval

if TYPE_CHECKING:
    from app.imaging.io.nifti import Volume

TOLERANCE = {Precision.FLOAT32: 1e-4, Precision.BFLOAT16: 1e-2}
OUT_OF_DISTRIBUTION = "out-of-distribution"
REFRACTORY, NOT_REFRACTORY = "refractory", "not-refractory"


class NotFinite(InternalError):
    """The networks compute no finite number for this input."""


class MapVolume(NamedTuple):
    """A map on a grid: float32 (x, y, z), and its affine, voxel to RAS+ millimetres."""

    array: NDArray[np.float32]
    affine: NDArray[np.float64]


@dataclass(frozen=True)
class ModelAnswer:
    """Prediction of one patient; ``folds`` are each fold's calibrated probability, ``interval`` needs two folds."""

    probability: float
    log_odds: float
    interval: Interval | None
    folds: tuple[float, ...]
    decision: Decision
    flags: tuple[Flag, ...]


class ModelVersion:
    """One loaded version on one device; created by ``load``.

    ``executor`` runs the work of the device; versions on one device share it. ``vessel_net`` segments vessels if no
    mask is sent; without it, the segmentation is the classical one. It computes on the CPU, in ``vessel_executor``.
    """

    def __init__(
        self,
        manifest: Manifest,
        digest: str,
        predictor: EnsemblePredictor,
        executor: Executor = run_inline,
        vessel_net: VesselNet | None = None,
        reference: ReferenceHead | None = None,
    ) -> None:
        self.manifest = manifest
        self._vessel_net = vessel_net
        self.reference = reference
        self.digest = digest
        self.predictor = predictor
        self.executor = executor
        self.vessel_executor: Executor | None = None  # None: that of the device

    @classmethod
    def load(
        cls,
        folder: Path,
        manifest: Manifest,
        device: str = "auto",
        executor: Executor = run_inline,
        backend: Backend = Backend.TORCH,
        precision: Precision | None = None,
        pause: Callable[[], None] = no_pause,
    ) -> ModelVersion:
        """Load the version in ``folder``.

        ``backend`` computes the trunks, with the number of threads that torch has in the calling thread, in
        ``precision``; None is bfloat16 on a GPU and float32 on a CPU. ``pause`` is called between the parts of the
        load, so that predictions can run in between. A load forbids TF32 in the process (`forbid_tf32`).

        Raises:
            ModelNotReady: A file is missing, differs from the manifest's digest, or does not fit the manifest.
        """
        if manifest.regions not in atlas.KNOWN:
            raise ModelNotReady(f"The manifest names the atlas {manifest.regions}, this release has {atlas.ATLAS}.")
        clinical_encoder.check_variables(manifest.clinical)
        if manifest.out_of_distribution is not None:
            input_distance.check(manifest.out_of_distribution.inputs)
        files = [fold_files.read_verified(folder, fold.file, fold.sha256) for fold in manifest.folds]
        predictor: EnsemblePredictor
        if manifest.kind == "logistic":
            predictor = fold_files.load_logistic(files, manifest)
        else:
            forbid_tf32()
            predictor = fold_files.load_networks(files, manifest, device, pause)
            pause()
            predictor.run_on(backend, precision)
        stored = folder / "manifest.json"
        content = stored.read_bytes() if stored.exists() else manifest.model_dump_json().encode()
        digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
        vessel_net, reference = (
            fold_files.load_vessel_net(folder, manifest),
            fold_files.load_reference(folder, manifest),
        )
        return cls(manifest, digest, predictor, executor, vessel_net, reference)

    def warm_up(self) -> None:
        """Do the one-time work of the network and the atlas now, so that the first prediction is not slower.

        The kernels of app/imaging are left out: a worker loads them once, at its start, for all versions.
        """
        atlas.labels(self.manifest.grid.shape, self.manifest.grid.affine)
        self.executor(self.predictor.warm_up)

    def warm_up_explanation(self) -> None:
        """Do the one-time work of an explanation."""
        self.executor(self.predictor.warm_up_explanation)

    def prepare(self, volumes: Mapping[Input, Volume], record: ClinicalRecord) -> ModelInput:
        """Prepare one patient's volumes and record as the model's input.

        Raises:
            MissingInput: A volume or a clinical field that this version requires is missing.
            InvalidStudy: See ``preprocess.prepare``.
        """
        from app.imaging import preprocess, vessels

        missing = [needed for needed in self.manifest.required_inputs if needed not in volumes]
        if missing:
            raise MissingInput(f"This model requires the volumes: {', '.join(missing)}.")
        net, segmenter = self._vessel_net, vessels.segment
        if net is not None:
            segmenter = vessels.learned_segmenter(lambda hu: (self.vessel_executor or self.executor)(partial(net, hu)))
        prepared = preprocess.prepare(volumes, self.manifest.grid, self.manifest.channels, segmenter=segmenter)
        encoded = clinical_encoder.encode(record, self.manifest.clinical, prepared.perfusion)
        presence = np.asarray(prepared.presence, dtype=bool)
        shown = occlusion_side.shown_sides(prepared.image, presence, self.manifest.channels, self.manifest.grid)
        side, side_flags = occlusion_side.compare(record.occlusion_side, shown)
        if side is None and not side_flags and presence.any() and self._needs_a_side:
            detail = "occlusion_side is not given and the images do not show it; they are read as for a right-sided one"
            side_flags = [Flag(code="side-unknown", detail=detail)]
        not_given = [name for name in encoded.imputed if record.value(name) is None]
        not_used = unread_inputs.flags(self.manifest, volumes, record)
        return ModelInput(
            image=prepared.image,
            presence=presence,
            clinical=np.concatenate([encoded.values, encoded.missing, presence.astype(np.float32)]),
            shown=encoded.shown,
            imputed=encoded.imputed,
            flags=(
                *prepared.flags,
                *unread_inputs.mask_flags(self.manifest, volumes),
                *encoded.flags,
                *_imputed(not_given),
                *side_flags,
                *not_used,
            ),
            perfusion=prepared.perfusion,
            grids=prepared.grids,
            sources=prepared.sources,
            lesions=prepared.lesions,
            affected=side,
        )

    def predict(self, model_input: ModelInput) -> ModelAnswer:
        """Compute the calibrated probability, its uncertainty, and the decision at the version's threshold."""
        with_features, calibration = self.manifest.out_of_distribution is not None, self.manifest.calibration
        logits, penultimate = self.executor(
            lambda: self.predictor.predict(
                explain.network_image(model_input, self.reference), model_input.clinical, with_features=with_features
            )
        )
        if not np.isfinite(logits).all():
            raise NotFinite("The model version computes no finite number for this study. Tell its operator.")
        log_odds = float(explain.log_odds(logits.mean(), calibration))
        probability = float(expit(log_odds))
        folds = tuple(float(p) for p in expit(explain.log_odds(logits, calibration)))
        return ModelAnswer(
            probability=probability,
            log_odds=log_odds,
            interval=FoldSpread(low=min(folds), high=max(folds)) if len(folds) > 1 else None,
            folds=folds,
            decision=self._decision(probability),
            flags=(*self._features_out_of_distribution(penultimate), *self._inputs_out_of_distribution(model_input)),
        )

    def explain(
        self, model_input: ModelInput, *, maps: bool = True, method: ExplanationMethod | None = None
    ) -> tuple[Attribution, dict[str, MapVolume]]:
        """Compute contributions that sum to the log-odds, and two maps per present channel.

        ``aligned-attribution-<channel>`` is on the model's grid and sums to the modality's contribution.
        ``attribution-<channel>`` is on the patient's grid; resampling keeps the values, not the sum. A version with a
        reference head also gives ``aligned-intracranial``, the part of the grid that its network sees: 0 or 1.
        """
        result = self.executor(
            lambda: explain.explain(
                self.predictor, self.manifest, model_input, maps=maps, method=method, reference=self.reference
            )
        )
        affine = np.asarray(self.manifest.grid.affine, dtype=np.float64)
        volumes = {
            f"attribution-{name}": self._on_patient_grid(model_input, name, map_) for name, map_ in result.maps.items()
        }
        aligned = {f"aligned-attribution-{name}": MapVolume(map_, affine) for name, map_ in result.maps.items()}
        if aligned and self.reference is not None:
            aligned["aligned-intracranial"] = MapVolume(self.reference.mask.astype(np.float32), affine)
        return result.attribution, volumes | aligned

    def verify_golden_cases(self, folder: Path) -> None:
        """Compare this device's results for the golden cases in ``folder`` with the manifest's.

        Logits are compared as probabilities, with the largest slope of the sigmoid, 1/4. A version without golden cases
        must compute finite logits without images.

        Raises:
            ModelNotReady: A logit is not finite, or a difference exceeds 1e-4 in float32, or 1e-2 in bfloat16.
        """
        if not self.manifest.golden and not np.isfinite(self._logits_without_images()).all():
            raise ModelNotReady("This version computes no finite numbers, and it has no golden case.")
        if (difference := self.check(folder) / 4) > TOLERANCE[self.precision]:
            advice = " RLVO_PRECISION=float32 avoids bfloat16." if self.precision is Precision.BFLOAT16 else ""
            raise ModelNotReady(
                f"The probabilities of this version's golden cases differ by {difference:.1e} from its manifest; "
                f"{TOLERANCE[self.precision]:g} is allowed on this device.{advice}"
            )

    @property
    def precision(self) -> Precision:
        """Number format of the trunks on this device."""
        return self.predictor.precision

    @property
    def bytes(self) -> int:
        """Size of the folds' weights on the device."""
        return self.predictor.bytes

    def check(self, folder: Path) -> float:
        """Return the largest difference of golden logits between manifest and device; infinite if one is no number."""
        worst = 0.0
        for model_input, expected in fold_files.golden_cases(self.manifest, folder):
            logits = self.executor(partial(self.logits, model_input))
            difference = float(np.abs(logits - np.asarray(expected)).max())
            worst = max(worst, difference if np.isfinite(difference) else np.inf)  # max() ignores NaN
        return worst

    @property
    def _needs_a_side(self) -> bool:
        """Whether the side of the occlusion changes what the network sees."""
        return self.reference is not None and self.reference.side_aligned

    def shown_side(self, image: NDArray[np.float32], presence: NDArray[np.bool_]) -> Side | None:
        """Side of the occlusion that a prepared image (c, x, y, z) shows; None if this version needs no side."""
        if not self._needs_a_side:
            return None
        shown = occlusion_side.shown_sides(image, presence, self.manifest.channels, self.manifest.grid)
        return occlusion_side.compare(None, shown)[0]

    def logits(self, model_input: ModelInput) -> NDArray[np.float64]:
        """Compute each fold's logit, (folds,), of one model input, in the calling thread."""
        return self.predictor.logits(explain.network_image(model_input, self.reference), model_input.clinical)

    def _logits_without_images(self) -> NDArray[np.float64]:
        manifest = self.manifest
        image = np.zeros((len(manifest.channels), *manifest.grid.shape), np.float32)
        clinical = np.asarray(manifest.background.vectors[0], np.float32)
        return self.executor(partial(self.predictor.logits, image, clinical))

    def _decision(self, probability: float) -> Decision:
        threshold, conformal = self.manifest.threshold, self.manifest.conformal
        classes = None
        if conformal is not None:
            included = {
                REFRACTORY: probability >= conformal.quantile_positive,
                NOT_REFRACTORY: 1 - probability >= conformal.quantile_negative,
            }
            classes = [name for name, is_included in included.items() if is_included]
        return Decision(
            refractory=probability >= threshold.value, threshold=threshold.value, rule=threshold.rule, conformal=classes
        )

    def _features_out_of_distribution(self, penultimate: NDArray[np.float64] | None) -> tuple[Flag, ...]:
        """Return a flag if the squared Mahalanobis distance to the training patients exceeds the manifest's limit."""
        reference = self.manifest.out_of_distribution
        if reference is None or penultimate is None:
            return ()
        offset = penultimate - np.asarray(reference.mean)
        if offset @ np.asarray(reference.precision) @ offset <= reference.limit:
            return ()
        detail = "What the network sees as a whole differs from the training patients"
        return (Flag(code=OUT_OF_DISTRIBUTION, detail=detail),)

    def _inputs_out_of_distribution(self, model_input: ModelInput) -> tuple[Flag, ...]:
        """Return a flag for each input, or pair of inputs, whose statistics differ from the training patients'."""
        if self._meter is None or self.manifest.out_of_distribution is None:
            return ()
        measured = self._meter.measure(model_input.image, model_input.presence)
        found = input_distance.unusual(self.manifest.out_of_distribution.inputs, measured)
        return tuple(Flag(code=OUT_OF_DISTRIBUTION, detail=one.describe()) for one in found)

    @cached_property
    def _meter(self) -> InputMeter | None:
        """Measures the statistics of inputs; None for a version that knows none."""
        limits = self.manifest.out_of_distribution
        if self.reference is None or limits is None or not limits.inputs:
            return None
        return InputMeter(self.manifest.channels, self.manifest.grid, self.reference)

    def _on_patient_grid(self, model_input: ModelInput, channel: Channel, values: NDArray[np.float32]) -> MapVolume:
        grid = model_input.grids.get(channel)
        if grid is None:
            return MapVolume(values, np.asarray(self.manifest.grid.affine, dtype=np.float64))
        from app.imaging.resample import to_patient

        array = to_patient(values, self.manifest.grid, grid.affine, grid.shape, grid.mni_from_world)
        return MapVolume(array, np.asarray(grid.affine, dtype=np.float64))


def save(
    folder: Path,
    manifest: Manifest,
    folds: Sequence[Network | fold_files.LogisticFold],
    *,
    golden: Sequence[ModelInput] = (),
    card: str = "",
    reference: ReferenceHead | None = None,
) -> Manifest:
    """Write a complete version into ``folder`` (``model_store/<name>/<version>``), or nothing.

    ``folds`` are networks as trained, or logistic folds. ``golden`` cases are stored with their logits on this CPU.
    The returned manifest names the written folds, golden cases and ``reference`` head; each fold's validation AUC is
    kept.

    Raises:
        FileExistsError: The version exists; versions never change.
    """
    if folder.exists():
        raise FileExistsError(f"Version {folder.name} of {folder.parent.name} exists and cannot change: use a new one.")
    with atomic_directory(folder) as draft:
        written = [fold_files.write_fold(draft, index, fold) for index, fold in enumerate(folds)]
        known = [fold.validation_auc for fold in manifest.folds] + [None] * len(folds)
        manifest = manifest.model_copy(
            update={
                "folds": tuple(
                    Fold(file=file, sha256=digest, validation_auc=auc)
                    for (file, digest), auc in zip(written, known, strict=False)
                ),
                "golden": (),
            }
        )
        if reference is not None:
            file, digest = fold_files.write(draft, "reference-head.safetensors", reference.to_bytes())
            head = ReferenceHeadFile(file=file, sha256=digest, side_aligned=reference.side_aligned)
            manifest = manifest.model_copy(update={"reference_head": head})
        version = ModelVersion.load(draft, manifest, "cpu")
        cases = []
        for index, model_input in enumerate(golden):
            file, digest = fold_files.write(draft, f"golden-{index}.safetensors", model_input.to_bytes())
            logits = tuple(float(logit) for logit in version.logits(model_input))
            cases.append(GoldenCase(file=file, sha256=digest, logits=logits))
        manifest = Manifest.model_validate(manifest.model_copy(update={"golden": tuple(cases)}).model_dump())
        fold_files.write(draft, "manifest.json", manifest.model_dump_json(indent=1).encode())
        fold_files.write(draft, "card.md", card.encode())
    return manifest


def _imputed(names: Sequence[str]) -> list[Flag]:
    return [Flag(code="imputed", detail=f"{', '.join(names)}: not given, imputed")] if names else []
