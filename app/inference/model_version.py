"""A model version as three verbs: prepare, predict, explain. Training and serving both come through here.

Notable choices:
- A fold file's sha-256 is checked against the manifest on the very bytes that are then parsed; safetensors and JSON
  only, nothing is ever unpickled.
- The answer is the folds' mean logit, calibrated; the interval is Student's, of that mean, from the folds' spread.
- A logistic regression is a version too (manifest kind ``logistic``) and answers the same verbs.
- ``save`` writes a version whole or not at all, and ``load`` of what it wrote gives the same numbers.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from scipy.special import expit, stdtrit

from app.core.concurrency import Executor, no_pause, run_inline
from app.core.filesystem import atomic_directory
from app.inference import clinical_encoder, occlusion_side
from app.inference import explain as explanation
from app.inference.attribution import atlas
from app.inference.ensemble_predictor import EnsemblePredictor, ExplanationMethod, LogisticFolds, NetworkFolds
from app.inference.model_input import ModelInput
from app.network.backends import Backend, Precision
from app.network.daft import Network, build
from app.network.ensemble import Ensemble
from app.network.unet import VesselNet
from app.registry.manifest import Fold, GoldenCase, Manifest
from app.registry.model_store import read_segmenter
from app.sdk.clinical import ClinicalRecord
from app.sdk.errors import MissingInput, ModelNotReady
from app.sdk.types import Attribution, Channel, Decision, Flag, Input, Interval

if TYPE_CHECKING:
    from app.imaging.io.nifti import Volume

TOLERANCE = {Precision.FLOAT32: 1e-4, Precision.BFLOAT16: 1e-2}
REFRACTORY, NOT_REFRACTORY = "refractory", "not-refractory"


class MapVolume(NamedTuple):
    """A map on a grid: float32 (x, y, z) and its voxel-to-RAS+ affine in millimetres."""

    array: NDArray[np.float32]
    affine: NDArray[np.float64]


@dataclass(frozen=True)
class LogisticFold:
    """One fold of a logistic version: coefficients (v,) on the clinical vector, and the intercept."""

    coefficients: tuple[float, ...]
    intercept: float


@dataclass(frozen=True)
class ModelAnswer:
    """What a version says of one case. ``folds``: each fold's calibrated probability; ``interval`` needs two folds."""

    probability: float
    log_odds: float
    interval: Interval | None
    folds: tuple[float, ...]
    decision: Decision
    flags: tuple[Flag, ...]


class ModelVersion:
    """One loaded version on one device. Get one by ``load``.

    :param turn: who lets the device work; versions that share a device share it
    :param marker: the trained network that finds vessels where no mask is sent; None: the classical way
    """

    def __init__(
        self,
        manifest: Manifest,
        digest: str,
        committee: EnsemblePredictor,
        turn: Executor = run_inline,
        marker: VesselNet | None = None,
    ) -> None:
        self.manifest = manifest
        self._marker = marker
        self.digest = digest
        self.committee = committee
        self.turn = turn

    @classmethod
    def load(
        cls,
        folder: Path,
        manifest: Manifest,
        device: str = "auto",
        threads: int = 0,
        turn: Executor = run_inline,
        backend: Backend = Backend.TORCH,
        precision: Precision = Precision.FLOAT32,
        pause: Callable[[], None] = no_pause,
    ) -> ModelVersion:
        """The version in ``folder``, ready to answer.

        :param threads: CPU threads of the whole process; 0 leaves them as they are
        :param backend: what computes the trunks, with ``precision`` on a CPU
        :param pause: called between the pieces of the work, for the sake of who is served beside it
        :raises ModelNotReady: where a file is missing, is not the one that the manifest names, or does not fit it
        """
        if threads:
            torch.set_num_threads(threads)
        if manifest.regions != atlas.ATLAS:
            raise ModelNotReady("the manifest names another atlas of regions than this release has")
        files = [_checked(folder, fold.file, fold.sha256) for fold in manifest.folds]
        committee: EnsemblePredictor
        if manifest.kind == "logistic":
            committee = _logistics(files, manifest)
        else:
            committee = _networks(files, manifest, device, pause)
            pause()
            committee.run_on(backend, precision)
        stored = folder / "manifest.json"
        content = stored.read_bytes() if stored.exists() else manifest.model_dump_json().encode()
        return cls(
            manifest, f"sha256:{hashlib.sha256(content).hexdigest()}", committee, turn, _marker(folder, manifest)
        )

    def warm_up(self) -> None:
        """Have paid now what the first patient would pay: the network's kernels, the atlas, the imageless case.

        Imaging's own kernels are not: two CPU seconds more at every start of a worker would be added to each recovery
        from a dead one, to spare one patient three.
        """
        atlas.labels(self.manifest.grid.shape, self.manifest.grid.affine)
        self.turn(self.committee.warm_up)

    def prepare(self, volumes: Mapping[Input, Volume], record: ClinicalRecord) -> ModelInput:
        """One patient's volumes and record as this version sees them.

        :raises MissingInput: where a volume or a clinical field that this version requires is missing
        :raises InvalidStudy: as the imaging room's ``prepare``
        """
        from app.imaging import preprocess, vessels

        missing = [needed for needed in self.manifest.required_inputs if needed not in volumes]
        if missing:
            raise MissingInput(f"this model requires the volumes: {', '.join(missing)}")
        marker = self._marker
        segmenter = vessels.learned(lambda hu: self.turn(partial(marker, hu))) if marker else vessels.segment
        prepared = preprocess.prepare(volumes, self.manifest.grid, self.manifest.channels, segmenter=segmenter)
        encoded = clinical_encoder.encode(record, self.manifest.clinical, prepared.perfusion)
        presence = np.asarray(prepared.presence, dtype=bool)
        side, seen = record.occlusion_side, []
        if side is None and (
            read := occlusion_side.affected_side(prepared.image, presence, self.manifest.channels, self.manifest.grid)
        ):
            side, by = read
            seen = [Flag(code="side-from-images", detail=f"occlusion_side not given; {by} shows it on the {side}")]
        return ModelInput(
            image=prepared.image,
            presence=presence,
            clinical=np.concatenate([encoded.values, encoded.missing, presence.astype(np.float32)]),
            shown=encoded.shown,
            imputed=encoded.imputed,
            flags=(*prepared.flags, *encoded.flags, *_imputed(encoded.imputed), *seen),
            perfusion=prepared.perfusion,
            grids=prepared.grids,
            sources=prepared.sources,
            affected=side,
        )

    def predict(self, case: ModelInput) -> ModelAnswer:
        """The calibrated probability, its uncertainty, and the decision at the version's threshold."""
        logits, penultimate = self.turn(lambda: self.committee.answer(case.image, case.clinical, watch=self._watches))
        calibration = self.manifest.calibration
        log_odds = float(explanation.log_odds(logits.mean(), calibration))
        probability = float(expit(log_odds))
        return ModelAnswer(
            probability=probability,
            log_odds=log_odds,
            interval=self._interval(logits),
            folds=tuple(float(p) for p in expit(explanation.log_odds(logits, calibration))),
            decision=self._decision(probability),
            flags=self._outside(penultimate),
        )

    def explain(
        self, case: ModelInput, *, maps: bool = True, method: ExplanationMethod | None = None
    ) -> tuple[Attribution, dict[str, MapVolume]]:
        """Contributions that sum to the log-odds, and two maps per present channel.

        ``aligned-attribution-<channel>`` is on the model's grid, where a map sums to its modality's contribution;
        ``attribution-<channel>`` on the patient's own: resampling keeps a map's values, not its sum.

        :param method: how they are computed; by default the quick way
        """
        why = self.turn(lambda: explanation.explain(self.committee, self.manifest, case, maps=maps, method=method))
        grid = np.asarray(self.manifest.grid.affine, dtype=np.float64)
        own = {f"attribution-{channel}": self._on_patient(case, channel, map_) for channel, map_ in why.maps.items()}
        aligned = {f"aligned-attribution-{channel}": MapVolume(map_, grid) for channel, map_ in why.maps.items()}
        return why.attribution, own | aligned

    def verify_golden_cases(self, folder: Path) -> None:
        """Raises ModelNotReady unless every golden case in ``folder`` gets the answer that the manifest has for it.

        Folds' logits are compared as probabilities (a sigmoid's slope is a quarter at most): to 1e-4 in float32, to
        1e-2 where the trunks run in bfloat16.
        """
        if (off := self.check(folder) / 4) > TOLERANCE[self.precision]:
            raise ModelNotReady(
                f"This version's golden cases come out {off:.1e} (probability) off what its manifest says; "
                f"{TOLERANCE[self.precision]:g} is allowed on this device"
            )

    @property
    def precision(self) -> Precision:
        """Of the trunks, on this device."""
        return self.committee.precision

    @property
    def bytes(self) -> int:
        """What the folds' weights take on the device."""
        return self.committee.bytes

    def check(self, folder: Path) -> float:
        """The largest difference between the golden cases' logits and what this device computes."""
        worst = 0.0
        for case, expected in golden_cases(self.manifest, folder):
            logits = self.turn(partial(self.committee.logits, case.image, case.clinical))
            worst = max(worst, float(np.abs(logits - np.asarray(expected)).max()))
        return worst

    def _interval(self, logits: NDArray[np.float64]) -> Interval | None:
        count, level = len(logits), self.manifest.interval_level
        if count < 2:
            return None
        half = stdtrit(count - 1, (1 + level) / 2) * logits.std(ddof=1) / np.sqrt(count)
        ends = explanation.log_odds(np.asarray([logits.mean() - half, logits.mean() + half]), self.manifest.calibration)
        low, high = (float(p) for p in expit(ends))
        return Interval(level=level, low=low, high=high)

    def _decision(self, probability: float) -> Decision:
        threshold, conformal = self.manifest.threshold, self.manifest.conformal
        classes = None
        if conformal is not None:
            likely = {
                REFRACTORY: probability >= conformal.quantile_positive,
                NOT_REFRACTORY: 1 - probability >= conformal.quantile_negative,
            }
            classes = [name for name, stays in likely.items() if stays]
        return Decision(
            refractory=probability >= threshold.value, threshold=threshold.value, rule=threshold.rule, conformal=classes
        )

    @property
    def _watches(self) -> bool:
        return self.manifest.out_of_distribution is not None

    def _outside(self, penultimate: NDArray[np.float64] | None) -> tuple[Flag, ...]:
        """A flag where the squared Mahalanobis distance to the training patients is beyond the manifest's limit."""
        reference = self.manifest.out_of_distribution
        if reference is None or penultimate is None:
            return ()
        apart = penultimate - np.asarray(reference.mean)
        if apart @ np.asarray(reference.precision) @ apart <= reference.limit:
            return ()
        return (Flag(code="out-of-distribution", detail="This patient is unlike those that the model was trained on"),)

    def _on_patient(self, case: ModelInput, channel: Channel, values: NDArray[np.float32]) -> MapVolume:
        grid = case.grids.get(channel)
        if grid is None:
            return MapVolume(values, np.asarray(self.manifest.grid.affine, dtype=np.float64))
        from app.imaging.resample import to_patient

        array = to_patient(values, self.manifest.grid, grid.affine, grid.shape, grid.mni_from_world)
        return MapVolume(array, np.asarray(grid.affine, dtype=np.float64))


def golden_cases(manifest: Manifest, folder: Path) -> Iterator[tuple[ModelInput, tuple[float, ...]]]:
    """The golden cases in ``folder``, each with the folds' logits that the manifest has for it.

    :raises ModelNotReady: where a file is missing or is not the one that the manifest names
    """
    for golden in manifest.golden:
        yield ModelInput.from_bytes(_checked(folder, golden.file, golden.sha256)), golden.logits


def save(
    folder: Path,
    manifest: Manifest,
    folds: Sequence[Network | LogisticFold],
    *,
    golden: Sequence[ModelInput] = (),
    card: str = "",
) -> Manifest:
    """Write a version into ``folder`` (``model_store/<name>/<version>``), whole or not at all.

    :param manifest: what the version is; its folds and golden cases are replaced by what is written here, a fold's
        validation AUC kept
    :param folds: networks as trained, or logistic folds, in the manifest's order
    :param golden: cases that are stored with the logits that this machine's CPU gives them
    :raises FileExistsError: where the version exists: versions never change
    """
    if folder.exists():
        raise FileExistsError(f"version {folder.name} of {folder.parent.name} exists; versions never change")
    with atomic_directory(folder) as draft:
        written = [_write(draft, f"fold-{index}.{_suffix(fold)}", _bytes(fold)) for index, fold in enumerate(folds)]
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
        committee = ModelVersion.load(draft, manifest, "cpu").committee
        cases = []
        for index, case in enumerate(golden):
            file, digest = _write(draft, f"golden-{index}.safetensors", case.to_bytes())
            logits = tuple(float(logit) for logit in committee.logits(case.image, case.clinical))
            cases.append(GoldenCase(file=file, sha256=digest, logits=logits))
        manifest = Manifest.model_validate(manifest.model_copy(update={"golden": tuple(cases)}).model_dump())
        _write(draft, "manifest.json", manifest.model_dump_json(indent=1).encode())
        _write(draft, "card.md", card.encode())
    return manifest


def _checked(folder: Path, file: str, digest: str) -> bytes:
    """A file's bytes, once their sha-256 is the one that the manifest names."""
    try:
        content = (folder / file).read_bytes()
    except OSError as error:
        raise ModelNotReady(f"{file} of the model version cannot be read") from error
    if hashlib.sha256(content).hexdigest() != digest:
        raise ModelNotReady(f"{file} of the model version is not the file that its manifest names (sha-256 differs)")
    return content


def _marker(folder: Path, manifest: Manifest) -> VesselNet | None:
    """The segmenter that the manifest names, from ``segmenters`` in the same model store."""
    named = manifest.segmenter
    if named is None:
        return None
    described, weights = read_segmenter(folder.parent.parent, named)
    try:
        return VesselNet.from_bytes(weights, described.filters)
    except ValueError as error:
        raise ModelNotReady("the vessel segmenter that the manifest names is damaged") from error


def _networks(files: Sequence[bytes], manifest: Manifest, device: str, pause: Callable[[], None]) -> NetworkFolds:
    expected = explanation.presence_bits(manifest).stop
    if manifest.architecture.clinical_size != expected:
        raise ModelNotReady(f"the manifest's clinical vector has {expected} entries, its network takes another number")
    folds = []
    for file, fold in zip(files, manifest.folds, strict=True):
        pause()
        network = build(manifest.architecture)
        try:
            network.load_state_dict(load_tensors(file))
        except (SafetensorError, RuntimeError) as error:
            raise ModelNotReady(f"{fold.file} does not hold the weights of the manifest's network") from error
        folds.append(network)
    return NetworkFolds(Ensemble(folds, device, ours=True), (len(manifest.channels), *manifest.grid.shape))


def _logistics(files: Sequence[bytes], manifest: Manifest) -> LogisticFolds:
    expected = explanation.presence_bits(manifest).stop
    try:
        folds = [json.loads(file) for file in files]
        coefficients = np.asarray([fold["coefficients"] for fold in folds], dtype=np.float64)
        intercepts = np.asarray([fold["intercept"] for fold in folds], dtype=np.float64)
    except (ValueError, KeyError, TypeError) as error:
        raise ModelNotReady("a fold file does not hold coefficients and an intercept") from error
    if coefficients.shape != (len(files), expected) or not np.isfinite(coefficients).all():
        raise ModelNotReady(f"a fold file does not hold {expected} finite coefficients, one per clinical vector entry")
    return LogisticFolds(coefficients, intercepts)


def _imputed(names: Sequence[str]) -> list[Flag]:
    return [Flag(code="imputed", detail=f"{', '.join(names)}: not given, imputed")] if names else []


def _suffix(fold: Network | LogisticFold) -> str:
    return "safetensors" if isinstance(fold, Network) else "json"


def _bytes(fold: Network | LogisticFold) -> bytes:
    if isinstance(fold, LogisticFold):
        return json.dumps({"coefficients": fold.coefficients, "intercept": fold.intercept}).encode()
    return bytes(save_tensors({name: value.cpu().contiguous() for name, value in fold.state_dict().items()}))


def _write(folder: Path, file: str, content: bytes) -> tuple[str, str]:
    """Write and fsync; the file's name and sha-256."""
    with (folder / file).open("wb") as out:
        out.write(content)
        out.flush()
        os.fsync(out.fileno())
    return file, hashlib.sha256(content).hexdigest()
