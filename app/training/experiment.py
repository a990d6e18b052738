"""A training run from patients to a version: split, folds, table, rules, card, and an atomic write.

Notable choices:
- The run is a straight line; each step is one call into another file of this room.
- Statistics of the clinical variables (imputation, scale) are those of the development patients, shared by the folds,
  because a version has one clinical vector. They use no outcome.
- A version appears at its place whole, or not at all (``model.save``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from app.evaluation import metrics, subgroups
from app.evaluation.metrics import Array
from app.inference import clinical_encoder, defaults, model_version
from app.network.architecture import Fusion
from app.network.daft import Network
from app.registry.manifest import Clinical, Fold, Manifest, Measured, Training
from app.training import baselines, calibration, folds, model_card, pretrained, report, tasks
from app.training.baselines import Baseline
from app.training.dataset import Dataset, Vectors
from app.training.progress import ProgressReporter
from app.training.results_table import ORACLE, ModelScores, ResultRow, of_oracle, table
from app.training.splits import Split
from app.training.tasks import TrainingContext
from app.training.trainer import Recipe

CHANNEL_NAMES = tuple(channel.name for channel in defaults.CHANNELS)

# The rows of the table that are networks: fusion, and the channels that they may see.
NETWORKS: dict[str, tuple[Fusion, tuple[str, ...]]] = {
    "NCCT": (Fusion.NONE, ("ncct",)),
    "CTA + vessels": (Fusion.NONE, ("cta", "vessels")),
    "all imaging": (Fusion.NONE, CHANNEL_NAMES),
    "imaging + clinical, concatenation": (Fusion.CONCAT, CHANNEL_NAMES),
    "imaging + clinical, FiLM": (Fusion.FILM, CHANNEL_NAMES),
    "imaging + clinical, DAFT": (Fusion.DAFT, CHANNEL_NAMES),
}
DAFT = "imaging + clinical, DAFT"
LOGISTIC = "clinical + CTP, logistic regression"


@dataclass(frozen=True)
class ExperimentPlan:
    """What a run is asked to do. ``networks``: which rows of ``NETWORKS``; ``views``: of a taught
    trunk's features.
    """

    name: str
    version: str
    data: str
    synthetic: bool
    seed: int = 0
    code_version: str = ""
    recipe: Recipe = field(default_factory=Recipe)
    networks: tuple[str, ...] = tuple(NETWORKS)
    views: int = 2
    filters: int = 8
    target: str = "rLVO"
    protocol: str = "80/20 frozen, stratified by outcome and site; four folds; ensemble of the folds"


@dataclass(frozen=True)
class ExperimentResult:
    """What came of it, on the outcomes ``labels`` (n,) and this split."""

    spec: Clinical
    vectors: Vectors
    scored: dict[str, ModelScores]
    networks: dict[str, folds.Trained]
    logistic: baselines.FittedBaseline
    labels: NDArray[np.int64]
    split: Split

    @cached_property
    def rows(self) -> list[ResultRow]:
        """The table; its intervals take a second a model, so it is made when it is asked for."""
        return table(self.scored, self.labels, self.split, DAFT)


def compare(
    plan: ExperimentPlan,
    data: Dataset,
    split: Split,
    device: torch.device,
    board: ProgressReporter,
    *,
    taught: Network | None = None,
    folder: Path | None = None,
    shared: Path | None = None,
    jobs: int = 1,
    advance: Callable[[int], None] = lambda _: None,
) -> ExperimentResult:
    """Train every model of the table on the same folds and score all of them on the same rows.

    :param taught: see ``folds.train``
    :param folder: of this split's checkpoints; ``shared``: of what all splits of a run share
    :param jobs: folds at once (see ``folds.train``)
    :param advance: told the epochs done, of ``len(plan.networks) * len(split.folds) * plan.recipe.epochs``
    """
    spec = clinical_encoder.fit([data.records[row] for row in split.develop], [*defaults.VARIABLES])
    vectors = Vectors.of(data, spec)
    scored: dict[str, ModelScores] = {}
    joined = vectors.joined(np.arange(len(data)), data.presence)
    with_numbers = np.arange(joined.shape[1]) < vectors.size  # no presence bits: nothing is known of images here
    record_only = with_numbers & ~_scalar_columns(vectors, joined.shape[1])
    for name, kind, columns in (
        ("clinical, logistic regression", Baseline.LOGISTIC, record_only),
        ("clinical, gradient boosting", Baseline.BOOSTING, record_only),
        (LOGISTIC, Baseline.LOGISTIC, with_numbers),
    ):
        fitted = baselines.fit(kind, joined, data.labels, split, columns, plan.seed)
        scored[name] = ModelScores(fitted.out_of_fold, fitted.each, fitted.aucs)
        board(f"{name}: folds {np.mean(fitted.aucs):.3f}")

    trained: dict[str, folds.Trained] = {}
    views: dict[tuple[str, ...], tasks.Views] = {}
    for name in plan.networks:
        fusion, channels = NETWORKS[name]
        visible = tuple(CHANNEL_NAMES.index(channel) for channel in channels)
        # A taught trunk has all channels; else a network that may see few of them has few.
        given = visible if taught is None and len(visible) < len(CHANNEL_NAMES) else None
        context = TrainingContext(data.only(visible), vectors, defaults.GRID, CHANNEL_NAMES, device, given)
        architecture = defaults.architecture(fusion, spec, filters=plan.filters, channels=len(given or CHANNEL_NAMES))
        if taught is not None and channels not in views:
            path = shared / f"views-{'-'.join(channels)}.safetensors" if shared else None
            views[channels] = pretrained.views(taught, context, plan.views, plan.seed, path, board)
        epochs = [0] * len(split.folds)

        def on_progress(fold: int, epoch: int, score: float, name: str = name, epochs: list[int] = epochs) -> None:
            board(f"{name}, fold {fold + 1}, epoch {epoch}: {score:.3f}")
            advance(epoch - epochs[fold])
            epochs[fold] = epoch

        trained[name] = folds.train(
            architecture,
            context,
            split,
            plan.recipe,
            plan.seed,
            taught=taught,
            views=views.get(channels),
            folder=folder,
            name="-".join((fusion.value, *channels)),
            jobs=jobs,
            advance=on_progress,
        )
        advance(plan.recipe.epochs * len(epochs) - sum(epochs))  # folds that stopped early
        scored[name] = ModelScores(trained[name].out_of_fold, trained[name].each, trained[name].aucs)
    if data.oracle is not None:
        scored[ORACLE] = of_oracle(data.oracle, data.labels, split)
    return ExperimentResult(spec, vectors, scored, trained, fitted, data.labels, split)


def _scalar_columns(vectors: Vectors, size: int) -> NDArray[np.bool_]:
    """Which columns of the clinical vector hold perfusion numbers or their missing bits."""
    found = np.zeros(size, bool)
    columns = len(vectors.owner)
    found[:columns] = vectors.scalars[vectors.owner]
    found[columns : columns + len(vectors.scalars)] = vectors.scalars
    return found


def publish(
    plan: ExperimentPlan,
    run: ExperimentResult,
    data: Dataset,
    split: Split,
    digest: str,
    out: Path,
    *,
    chosen: str = DAFT,
    notes: Sequence[str] = (),
    extra: dict[str, object] | None = None,
) -> Manifest:
    """Write the chosen model as a version: ``LOGISTIC``, or a network of the table."""
    scored, labels = run.scored[chosen], data.labels
    learnt = scored.rules(labels, split.develop)
    logistic = chosen == LOGISTIC
    fusion, names = (Fusion.NONE, ()) if logistic else NETWORKS[chosen]
    parts: Sequence[Network | model_version.LogisticFold]
    parts = run.logistic.logistic if logistic else run.networks[chosen].networks
    seen = data.only([CHANNEL_NAMES.index(name) for name in names])
    context = TrainingContext(seen, run.vectors, defaults.GRID, CHANNEL_NAMES, torch.device("cpu"))
    manifest = Manifest(
        name=plan.name,
        version=plan.version,
        kind="logistic" if logistic else "network",
        architecture=defaults.architecture(fusion, run.spec, filters=plan.filters),
        grid=defaults.GRID,
        channels=defaults.CHANNELS,
        clinical=run.spec,
        folds=tuple(
            Fold(file=f"fold-{n}.safetensors", sha256="0" * 64, validation_auc=round(value, 4))
            for n, value in enumerate(scored.aucs)
        ),
        calibration=learnt.calibration,
        threshold=learnt.threshold,
        conformal=learnt.conformal,
        background=calibration.background(run.vectors, data.presence, split.develop, plan.seed),
        out_of_distribution=None
        if logistic
        else calibration.out_of_distribution(run.networks[chosen].networks, context, split.develop, plan.seed),
        training=Training(
            data=plan.data,
            data_sha256=digest,
            synthetic=plan.synthetic,
            patients=len(data),
            positives=int(labels.sum()),
            seed=plan.seed,
            code_version=plan.code_version,
            target=plan.target,
            protocol=plan.protocol,
        ),
        metrics=measured(labels[split.test], scored.mean[split.test], learnt),
        extra=dict(extra or {}),
    )
    golden = [calibration.case(seen, run.vectors, run.spec, int(split.test[0]))]
    text = model_card.write(manifest, run.rows, notes, data.oracle, labels, split, _parts(data, split, scored, learnt))
    return model_version.save(out, manifest, list(parts), golden=golden, card=text)


def _parts(data: Dataset, split: Split, scored: ModelScores, learnt: calibration.Rules) -> list[str]:
    """The decision curve and the subgroups of the test part, as Markdown tables."""
    line = learnt.calibration
    chances = metrics.probabilities_of(scored.mean[split.test], line.slope, line.intercept)
    rows = subgroups.lines(data, split.test, chances, learnt.threshold.value)
    return ["\n".join(report.decisions(data.labels[split.test], chances)), "\n".join(rows)]


def measured(labels: NDArray[np.int64], logits: Array, learnt: calibration.Rules) -> dict[str, Measured]:
    """The test part's numbers, with stratified bootstrap intervals where they are worth their time."""
    slope, intercept = learnt.calibration.slope, learnt.calibration.intercept
    chances = metrics.probabilities_of(logits, slope, intercept)
    decided = chances >= learnt.threshold.value
    found = {
        "auc": metrics.bootstrap(metrics.auc, labels, chances),
        "auprc": metrics.bootstrap(metrics.average_precision, labels, chances),
        "brier": metrics.bootstrap(metrics.brier, labels, chances),
    }
    line = metrics.calibration_line(labels, chances)
    plain = {
        "calibration_slope": line[0],
        "calibration_intercept": line[1],
        "ece": metrics.calibration_error(labels, chances),
        "f1": metrics.f1(labels, decided),
        "sensitivity": _share(decided[labels == 1]),
        "specificity": _share(~decided[labels == 0]),
        "ppv": _share(labels[decided] == 1),
        "npv": _share(labels[~decided] == 0),
        "conformal_coverage_positive": _share(chances[labels == 1] >= learnt.conformal.quantile_positive),
        "conformal_coverage_negative": _share(1 - chances[labels == 0] >= learnt.conformal.quantile_negative),
    }
    estimates = {
        n: Measured(value=round(e.value, 4), low=round(e.low, 4), high=round(e.high, 4)) for n, e in found.items()
    }
    return estimates | {name: Measured(value=round(float(value), 4)) for name, value in plain.items()}


def _share(flags: NDArray[np.bool_]) -> float:
    return float(flags.mean()) if len(flags) else 0.0
