"""Stage 7 of a training run: write the model version, if one was requested, and the report.

A version holds the folds, the manifest, a golden case and the model card. It appears whole or not at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed_version
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.evaluation import metrics, subgroups
from app.evaluation.metrics import Array
from app.inference import defaults, model_version
from app.network.architecture import Fusion
from app.network.daft import Network
from app.registry.manifest import Fold, Manifest, Measured, Training
from app.training import model_card, provenance, report, training_overlap
from app.training.calibrate import Calibrated, VersionStatistics
from app.training.calibration import Rules
from app.training.cohort import Cohort
from app.training.dataset import Dataset, to_model_input
from app.training.evaluate import Evaluation
from app.training.experiment import CHANNEL_NAMES, LOGISTIC, NETWORKS, PUBLISHED
from app.training.fit import FittedModels
from app.training.options import TrainConfig, Validation
from app.training.split import RunSplits

PROTOCOLS = {
    Validation.PAPER: "80/20 frozen, stratified by outcome and site; four folds; ensemble of the folds",
    Validation.DATES: "the latest fifth for the test; four folds of the others; ensemble of the folds",
    Validation.SITES: "each site left out in turn; four folds of the others; ensemble of the folds",
    Validation.NESTED: "repeated nested cross-validation: five test parts, four folds of the others; ensembles",
}


@dataclass(frozen=True)
class Packaged:
    """Output of a run: Markdown with the results table and the report's path, and the manifest of a written version."""

    summary: str
    manifest: Manifest | None


def package(
    cohort: Cohort,
    splits: RunSplits,
    fitted: FittedModels,
    evaluation: Evaluation,
    calibrated: Calibrated,
    data: Dataset,
    config: TrainConfig,
    remarks: Sequence[str] = (),
) -> Packaged:
    """Write the version and the report of the test patients; ``remarks`` on the cohort stand in the card and report."""
    manifest = None
    if calibrated.version is not None:
        manifest = _write_version(cohort, splits, fitted, evaluation, calibrated.version, data, config, remarks)
    many = config.validation.has_many_splits
    path = report.write(
        config.report or splits.folder / "report",
        f"{config.cohort.name}: {PROTOCOLS[config.validation] if many else 'the test part'}",
        [evaluation.table, *remarks],
        data,
        evaluation.tested,
        evaluation.probabilities,
        PUBLISHED[config.model],
        calibrated.threshold,
    )
    summary = [evaluation.table, *remarks, f"Figures, decision curve and subgroups: {path}"]
    return Packaged("\n\n".join(summary), manifest)


def _write_version(
    cohort: Cohort,
    splits: RunSplits,
    fitted: FittedModels,
    evaluation: Evaluation,
    statistics: VersionStatistics,
    data: Dataset,
    config: TrainConfig,
    remarks: Sequence[str] = (),
) -> Manifest:
    assert config.out is not None
    out, name, (result,) = config.out, PUBLISHED[config.model], fitted.results
    scores, test = result.scores[name], result.split.test
    logistic = name == LOGISTIC
    fusion, visible = (Fusion.NONE, ()) if logistic else NETWORKS[name]
    parts: Sequence[Network | model_version.LogisticFold] = result.logistic if logistic else result.networks[name]
    manifest = Manifest(
        name=out.parent.name,
        version=out.name,
        kind="logistic" if logistic else "network",
        architecture=defaults.architecture(fusion, result.spec, filters=fitted.config.filters),
        grid=defaults.GRID,
        channels=defaults.CHANNELS,
        clinical=result.spec,
        folds=tuple(
            Fold(file=f"fold-{n}.safetensors", sha256="0" * 64, validation_auc=round(value, 4))
            for n, value in enumerate(scores.aucs)
        ),
        calibration=statistics.rules.calibration,
        threshold=statistics.rules.threshold,
        conformal=statistics.rules.conformal,
        background=statistics.background,
        out_of_distribution=statistics.out_of_distribution,
        training=_training(cohort, splits, data, config),
        extra=_provenance(cohort, data, config),
        metrics=_measured(data.labels[test], scores.mean[test], statistics.rules),
    )
    seen = data.only([CHANNEL_NAMES.index(channel) for channel in visible])
    golden = [to_model_input(seen, result.vectors, result.spec, int(test[0]))]
    notes = [*(() if logistic else fitted.notes), _command(config), *remarks]
    tables = _test_tables(data, test, statistics.rules.probabilities(scores.mean[test]), statistics.rules)
    card = model_card.write(manifest, evaluation.rows, notes, data.oracle, data.labels, result.split, tables)
    return model_version.save(out, manifest, list(parts), golden=golden, card=card)


def _training(cohort: Cohort, splits: RunSplits, data: Dataset, config: TrainConfig) -> Training:
    sites = len(set(data.sites.tolist()))
    kind = "Synthetic patients (phantoms)" if data.oracle is not None else "Patients"
    try:
        code_version = installed_version("rlvo-service")
    except PackageNotFoundError:
        code_version = ""
    return Training(
        data=f"{kind} of the cohort {config.cohort.stem}, {sites} site{'s' if sites > 1 else ''}",
        data_sha256=splits.digest,
        synthetic=data.oracle is not None,
        patients=len(data),
        positives=int(data.labels.sum()),
        seed=config.seed,
        code_version=code_version,
        target=cohort.target,
        protocol=PROTOCOLS[config.validation],
    )


def _provenance(cohort: Cohort, data: Dataset, config: TrainConfig) -> dict[str, Any]:
    """Digest of the code, and hashes of the patients that the version or its reused trunk was trained on."""
    trained_on = [training_overlap.hashes(cohort, data)]
    if config.trunk is not None:
        trained_on += provenance.read_manifest(config.trunk).extra.get(training_overlap.EXTRA, [])
    return {"code_sha256": provenance.code_digest(), training_overlap.EXTRA: trained_on}


def _command(config: TrainConfig) -> str:
    """The command that makes the version again, for its card."""
    options = {"--phantoms": config.phantoms, "--seed": config.seed, "--model": config.model.value}
    if config.validation is not Validation.PAPER:
        options["--validation"] = config.validation.value
    if config.trunk is not None:
        options["--trunk"] = f"{config.trunk.parent.name}/{config.trunk.name}"
    elif not config.phantoms:
        options |= {"--epochs": config.epochs}
    given = " ".join(f"{name} {value}" for name, value in options.items() if value)
    return f"Made by `rlvo train {config.cohort.name} {given}`."


def _test_tables(data: Dataset, test: NDArray[np.int64], probabilities: Array, rules: Rules) -> list[str]:
    """The decision curve and the subgroups of the test part, as Markdown tables."""
    rows = subgroups.lines(data, test, probabilities, rules.threshold.value)
    return ["\n".join(report.decisions(data.labels[test], probabilities)), "\n".join(rows)]


def _measured(labels: NDArray[np.int64], logits: Array, rules: Rules) -> dict[str, Measured]:
    """Metrics of the test part; the first three with 95 % intervals by stratified bootstrap."""
    probabilities, decided = rules.probabilities(logits), rules.decide(logits)
    slope, intercept = metrics.calibration_line(labels, probabilities)
    with_interval = {
        "auc": metrics.bootstrap(metrics.auc, labels, probabilities),
        "auprc": metrics.bootstrap(metrics.average_precision, labels, probabilities),
        "brier": metrics.bootstrap(metrics.brier, labels, probabilities),
    }
    plain = {
        "calibration_slope": slope,
        "calibration_intercept": intercept,
        "ece": metrics.calibration_error(labels, probabilities),
        "f1": metrics.f1(labels, decided),
        "sensitivity": _share(decided[labels == 1]),
        "specificity": _share(~decided[labels == 0]),
        "ppv": _share(labels[decided] == 1),
        "npv": _share(labels[~decided] == 0),
        "conformal_coverage_positive": _share(probabilities[labels == 1] >= rules.conformal.quantile_positive),
        "conformal_coverage_negative": _share(1 - probabilities[labels == 0] >= rules.conformal.quantile_negative),
    }
    estimates = {
        name: Measured(value=round(e.value, 4), low=round(e.low, 4), high=round(e.high, 4))
        for name, e in with_interval.items()
    }
    return estimates | {name: Measured(value=round(float(value), 4)) for name, value in plain.items()}


def _share(flags: NDArray[np.bool_]) -> float:
    return float(flags.mean()) if len(flags) else 0.0
