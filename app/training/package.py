"""Stage 7 of a training run: write the model version, if one was requested, and the report.

A version holds the folds, the manifest, a golden case and the model card. It appears whole or not at all.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.core import json_text
from app.core.display_names import NOT_RECORDED
from app.evaluation import baseline_table, metrics, subgroups
from app.evaluation.clusters import Clusters, by_outcome, count, of_patients
from app.evaluation.metrics import Array
from app.inference import defaults, fold_files, model_version
from app.network.architecture import Fusion
from app.network.daft import Network
from app.registry.manifest import Fold, Manifest, Measured, Training, schema_of
from app.training import (
    description,
    modalities,
    model_card,
    patient_files,
    provenance,
    publication,
    report,
    report_folder,
    training_overlap,
)
from app.training.calibrate import VersionStatistics
from app.training.calibration import Rules
from app.training.cohort import Cohort
from app.training.dataset import Dataset, to_model_input
from app.training.description import Description
from app.training.evaluate import Evaluation
from app.training.experiment import CHANNEL_NAMES, LOGISTIC, NETWORKS, PUBLISHED
from app.training.fit import FittedModels
from app.training.options import TrainConfig, Validation
from app.training.patient_files import Source
from app.training.split import RunSplits
from app.training.splits import Split

PROTOCOLS = {
    Validation.PAPER: "80/20 frozen, stratified by outcome and site; four folds; ensemble of the folds",
    Validation.DATES: "the latest fifth for the test; four folds of the others; ensemble of the folds",
    Validation.SITES: "each site left out in turn; four folds of the others; ensemble of the folds",
    Validation.NESTED: "repeated nested cross-validation: five test parts, four folds of the others; ensembles",
}

LARGE_SHARE = 0.25
"""Share of the studies above which the latest ones are called no fifth."""
OWN_FOLDS = "the test part and the {folds} folds of the table's column fold; ensemble of the folds"


def protocol(cohort: Cohort, splits: RunSplits, validation: Validation) -> str:
    """How the test patients and the folds of a run were chosen."""
    if validation is Validation.PAPER and cohort.studies[0].fold:
        return OWN_FOLDS.format(folds=len(splits.parts[0].split.folds))
    share = len(splits.parts[0].split.test) / len(cohort.studies)
    if validation is Validation.DATES and share > LARGE_SHARE:
        return PROTOCOLS[validation].replace("fifth", f"{100 * share:.0f} % (of few dates)")
    return PROTOCOLS[validation]


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
    statistics: VersionStatistics | None,
    data: Dataset,
    config: TrainConfig,
    remarks: Sequence[str] = (),
) -> Packaged:
    """Write the report of the test patients, and the version; ``remarks`` on the cohort stand in both.

    Raises:
        PublicationRefused: If the model ranks the development patients worse than chance out of fold.
    """
    described = description.describe(
        data, cohort, split=None if config.validation.has_many_splits else fitted.results[0].split
    )
    path = _write_report(cohort, splits, fitted, evaluation, described, data, config, remarks)
    _write_patients(path.parent, cohort, splits, fitted, data, config)
    manifest = None
    if statistics is not None:
        (result,) = fitted.results
        develop, scores = result.split.develop, result.scores[PUBLISHED[config.model]]
        objections = publication.below_chance(data.labels[develop], scores.out_of_fold[develop])
        publication.check(objections, accepted=config.publish_anyway, report=str(path))
        objections += publication.too_few_events(data.labels[develop], of_patients(data.groups[develop]))
        manifest = _write_version(
            cohort, splits, fitted, evaluation, statistics, described, objections, data, config, remarks
        )
        _write_patients(path.parent, cohort, splits, fitted, data, config, published=manifest)
    place = f"Report, figures and predictions of each patient: {path.parent}"
    return Packaged("\n\n".join([evaluation.table, *splits.notes, *remarks, place]), manifest)


def _write_report(
    cohort: Cohort,
    splits: RunSplits,
    fitted: FittedModels,
    evaluation: Evaluation,
    described: Description,
    data: Dataset,
    config: TrainConfig,
    remarks: Sequence[str],
) -> Path:
    """Write the report of the test part; returns the path of ``report.md``."""
    many, model = config.validation.has_many_splits, config.model.value
    default = report_folder.default(cohort.folder, config.cohort, [model], splits.folder.name)
    by_modality = modalities.section(evaluation.modalities)
    return report.write(
        config.report or default,
        f"{config.cohort.name}: {PROTOCOLS[config.validation] if many else 'the test part'}",
        [evaluation.table, *splits.notes, *remarks, *by_modality],
        data,
        evaluation.tested,
        evaluation.probabilities,
        PUBLISHED[config.model],
        evaluation.decided,
        description=described,
        document={
            "run": splits.folder.name,
            "data_sha256": splits.digest,
            "target": cohort.target,
            "protocol": protocol(cohort, splits, config.validation),
            "variables": [variable.name for variable in fitted.results[0].spec.variables],
            "results_table": [asdict(row) for row in evaluation.rows],
            "blocks": evaluation.pooled.blocks if evaluation.pooled else (),
            "cross_validation": [asdict(line) for line in evaluation.pooled.lines] if evaluation.pooled else (),
            "by_modality": [asdict(row) for row in evaluation.modalities],
        },
    )


def _write_patients(
    folder: Path,
    cohort: Cohort,
    splits: RunSplits,
    fitted: FittedModels,
    data: Dataset,
    config: TrainConfig,
    published: Manifest | None = None,
) -> None:
    """Write the predictions of each patient, and name the version in ``report.json`` once it is ``published``."""
    run = Source(f"run {splits.folder.name}")
    parts = [(part, result.scores) for part, result in zip(splits.parts, fitted.results, strict=True)]
    sources = {name: run for _, scores in parts for name in scores}
    if published is not None and config.out is not None:
        digest = hashlib.sha256((config.out / "manifest.json").read_bytes()).hexdigest()
        version = Source(f"{published.name}@{published.version}", digest)
        sources[PUBLISHED[config.model]] = version
        json_text.add(folder / "report.json", {"version": version.version, "manifest_sha256": digest})
    tested = patient_files.tested(parts, data.labels)
    patient_files.write(folder / "test.csv", patient_files.TEST, tested, cohort.studies, data, sources)
    if len(parts) == 1:
        part, scores = parts[0]
        names = _fold_names(cohort, part.split, own_split=config.validation is Validation.PAPER)
        own = patient_files.out_of_fold(scores, data.labels, part.split, names)
        path = folder / "out-of-fold.csv"
        patient_files.write(path, patient_files.DEVELOPMENT, own, cohort.studies, data, sources)


def _fold_names(cohort: Cohort, split: Split, *, own_split: bool) -> list[str]:
    """Name of the fold (n,) of each study: that of the table's column ``fold`` if it is the split, or its number."""
    names = [study.fold if own_split else "" for study in cohort.studies]
    for number, (_, rows) in enumerate(split.folds, 1):
        for row in rows.tolist():
            names[row] = names[row] or str(number)
    return names


def _write_version(
    cohort: Cohort,
    splits: RunSplits,
    fitted: FittedModels,
    evaluation: Evaluation,
    statistics: VersionStatistics,
    described: Description,
    objections: Sequence[str],
    data: Dataset,
    config: TrainConfig,
    remarks: Sequence[str] = (),
) -> Manifest:
    assert config.out is not None
    out, name, (result,) = config.out, PUBLISHED[config.model], fitted.results
    scores, test = result.scores[name], result.split.test
    logistic = name == LOGISTIC
    visible = () if logistic else NETWORKS[name][1]
    parts: Sequence[Network | fold_files.LogisticFold] = result.logistic if logistic else result.networks[name]
    manifest = Manifest(
        schema_version=schema_of(result.spec, defaults.CHANNELS),
        name=out.parent.name,
        version=out.name,
        kind="logistic" if logistic else "network",
        architecture=(
            defaults.architecture(Fusion.NONE, result.spec) if logistic else result.networks[name][0].architecture
        ),
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
        extra=_provenance(cohort, data, result.split, config),
        metrics=_measured(data.labels[test], scores.mean[test], statistics.rules, of_patients(data.groups[test])),
    )
    seen = data.only([CHANNEL_NAMES.index(channel) for channel in visible])
    golden = [to_model_input(seen, result.vectors, result.spec, int(test[0]))]
    accepted = [f"Published with `--publish-anyway`: {objection}." for objection in objections]
    chosen = (
        [f"Clinical variables chosen with `--variables`: {', '.join(config.variables)}."] if config.variables else []
    )
    notes = [*accepted, *(() if logistic else fitted.notes), *chosen, _command(config), *remarks]
    tables = _test_tables(data, test, statistics.rules.probabilities(scores.mean[test]), statistics.rules)
    tables += modalities.section(evaluation.modalities)
    small = baseline_table.SMALL
    outcome = [*(cohort.counts.lines(least=small) if cohort.counts else ()), *_reading(cohort)]
    about = described.sections(least=small)
    card = model_card.write(
        manifest, evaluation.rows, notes, data.oracle, data.labels, result.split, tables, outcome, about, data.groups
    )
    head = None if logistic else result.reference
    return model_version.save(out, manifest, list(parts), golden=golden, card=card, reference=head)


def _training(cohort: Cohort, splits: RunSplits, data: Dataset, config: TrainConfig) -> Training:
    sites = len(set(data.sites.tolist()) - {NOT_RECORDED})
    clusters = of_patients(data.groups)
    kind = "Synthetic patients (phantoms)" if data.oracle is not None else "Patients"
    try:
        code_version = installed_version("rlvo-service")
    except PackageNotFoundError:
        code_version = ""
    return Training(
        data=f"{kind} of the cohort {config.cohort.stem}, {sites} site{'s' if sites > 1 else ''}",
        data_sha256=splits.digest,
        synthetic=data.oracle is not None,
        patients=count(clusters, len(data)),
        positives=by_outcome(data.labels, clusters)[0],
        seed=config.seed,
        code_version=code_version,
        target=cohort.target,
        protocol=protocol(cohort, splits, config.validation),
    )


def _reading(cohort: Cohort) -> list[str]:
    """How the table was read, for the card."""
    return ["", f"The table was read with: {', '.join(cohort.notes)}."] if cohort.notes else []


def _provenance(cohort: Cohort, data: Dataset, split: Split, config: TrainConfig) -> dict[str, Any]:
    """Digest of the code, and hashes of the patients that the version or its reused trunk was trained or tested on."""
    trained_on = [training_overlap.hashes(cohort, data, split.test)]
    if config.trunk is not None:
        trained_on += provenance.read_manifest(config.trunk).extra.get(training_overlap.EXTRA, [])
    return {"code_sha256": provenance.code_digest(), training_overlap.EXTRA: trained_on}


def _command(config: TrainConfig) -> str:
    """The command that makes the version again, for its card."""
    options = {"--phantoms": config.phantoms, "--seed": config.seed, "--model": config.model.value}
    if config.target is not None:
        options["--target"] = config.target.value
    if config.variables:
        options["--variables"] = ",".join(config.variables)
    if config.compare:
        options["--compare"] = " --compare ".join(config.compare)
    if config.date_format:
        options["--date-format"] = config.date_format
    if config.validation is not Validation.PAPER:
        options["--validation"] = config.validation.value
    if config.trunk is not None:
        options["--trunk"] = f"{config.trunk.parent.name}/{config.trunk.name}"
    elif not config.phantoms:
        options |= {"--epochs": config.epochs}
    if config.accept:
        options["--accept"] = config.accept
    files = {"--columns": config.columns, "--own-variables": config.own_variables, "--dicom": config.dicom}
    options |= {name: path.name for name, path in files.items() if path is not None}
    flags = {
        "--quick": config.quick,
        "--drop-unknown": config.drop_unknown,
        "--accept-flags": config.accept_flags,
        "--i-know": config.i_know,
        "--publish-anyway": config.publish_anyway,
    }
    given = " ".join(f"{name} {value}" for name, value in options.items() if value)
    given += "".join(f" {name}" for name, is_set in flags.items() if is_set)
    return f"Made by `rlvo train {config.cohort.name} {given}`."


def _test_tables(data: Dataset, test: NDArray[np.int64], probabilities: Array, rules: Rules) -> list[str]:
    """The decision curve and the subgroups of the test part, as Markdown tables."""
    decided = (probabilities >= rules.threshold.value).astype(np.float64)
    clusters = of_patients(data.groups[test])
    rows = subgroups.lines(data, test, probabilities, decided, least=baseline_table.SMALL, clusters=clusters)
    return ["\n".join(report.decisions(data.labels[test], probabilities, clusters)), "\n".join(rows)]


def _measured(labels: NDArray[np.int64], logits: Array, rules: Rules, clusters: Clusters) -> dict[str, Measured]:
    """Metrics of the test part, some with 95 % intervals; what cannot be estimated is left out."""
    probabilities, decided = rules.probabilities(logits), rules.decide(logits)
    with_interval = report.scores(labels, probabilities, clusters)
    plain = {
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
        if np.isfinite(e.value)
    }
    known = {name: round(float(value), 4) for name, value in plain.items() if np.isfinite(value)}
    return estimates | {name: Measured(value=value) for name, value in known.items()}


def _share(flags: NDArray[np.bool_]) -> float:
    """Share of the flags (n,); NaN without any, as a predictive value is if no patient is on its side."""
    return float(flags.mean()) if len(flags) else float("nan")
