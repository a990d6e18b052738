"""Recalibrates a model version on a cohort of a site and writes the result as a version of its own.

Design notes:
- Only the calibration, the threshold, the conformal quantiles and the texts differ from the parent. The weights are
  copied, so the kind of network does not matter.
- Too few events are refused. An update that the closed test does not support writes no version.
- The threshold keeps its probability, and each patient keeps the conformal set, unless the cohort has
  ``RULE_EVENTS`` patients of each outcome. Then both are learnt again.
- Metrics of the parent that depend on the calibration are left out of the new manifest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import ceil
from pathlib import Path

import numpy as np
from scipy.special import expit

from app.core.filesystem import atomic_directory
from app.evaluation import metrics
from app.evaluation.clusters import Clusters, count, of_patients, rarer_outcome
from app.evaluation.metrics import Array, Labels
from app.evaluation.recalibration import Recalibration, Update, log_loss, recalibrate
from app.inference import fold_files
from app.inference.model_version import ModelVersion
from app.registry import version_files
from app.registry.manifest import Calibration, Conformal, GoldenCase, Manifest, Threshold
from app.registry.model_store import StoredVersion
from app.training import provenance, training_overlap
from app.training.errors import CohortFault
from app.training.progress import ProgressReporter
from app.training.score import EvalConfig, predict_cohort

NEEDED_EVENTS = 10
"""Patients of the rarer outcome without which a version is not recalibrated."""
RULE_EVENTS = 50
"""Patients of each outcome from which the threshold and the conformal quantiles are learnt again."""
KEPT_METRICS = ("auc", "auprc")
EXTRA = "recalibration"


@dataclass(frozen=True)
class RecalibratedVersion:
    """Result of a recalibration: what was chosen, and the manifest of the version; None if none was written.

    ``text`` says both, with the remarks on the cohort.
    """

    recalibration: Recalibration
    manifest: Manifest | None
    text: str


def recalibrate_version(
    config: EvalConfig, parent: StoredVersion, out: Path, progress: ProgressReporter | None = None
) -> RecalibratedVersion:
    """Recalibrate the version ``parent`` on the cohort of ``config`` and write the result to ``out``.

    Args:
        config: Cohort, selection and objections; its one version is ``parent``.
        parent: The version.
        out: New folder ``<model store>/<name>/<version>``.
        progress: Where the progress is shown.

    Raises:
        CohortFault: The cohort cannot be used or has too few patients of one outcome, or ``out`` exists.
    """
    if out.exists():
        raise CohortFault([f"{out.parent.name} {out.name} exists; versions never change: give another --version"])
    scored = predict_cohort(config, progress or ProgressReporter())
    (predicted,) = scored.predictions.values()
    labels = scored.data.labels
    clusters = of_patients(scored.data.groups)
    check_events(labels, clusters)
    found = recalibrate(labels, predicted.probabilities, clusters=clusters)
    remarks = scored.remarks
    if found.update is Update.NONE:
        return RecalibratedVersion(found, None, "\n\n".join([_unchanged(found), *remarks]))
    lineage = {
        "parent": f"{parent.name}@{parent.version}",
        "parent_digest": parent.digest,
        "data_sha256": provenance.data_digest(scored.patients, scored.data),
        "patients": found.patients,
        "events": found.events,
        "method": "closed test of none, intercept, intercept and slope (Vergouwe et al. 2017), shrunk",
        "update": found.update.value,
        "p_any": found.p_any,
        "p_slope": None if np.isnan(found.p_slope) else found.p_slope,
        "intercept_estimate": asdict(found.estimates[0]),
        "slope_estimate": asdict(found.estimates[1]),
        "shrinkage": found.shrinkage,
        "intercept": found.intercept,
        "slope": found.slope,
        "rules": "learnt again" if rarer_outcome(labels, clusters) >= RULE_EVENTS else "kept",
    }
    own = training_overlap.hashes(scored.patients, scored.data)
    manifest = recalibrated(
        parent.manifest, found, labels, predicted.probabilities, out.parent.name, out.name, clusters
    )
    extra = manifest.extra | {EXTRA: lineage}
    extra[training_overlap.EXTRA] = [*manifest.extra.get(training_overlap.EXTRA, []), own]
    manifest = manifest.model_copy(update={"extra": extra})
    text = _changed(found, manifest, parent.manifest, labels, predicted.probabilities, clusters)
    card = _card(parent, manifest, lineage, text, remarks)
    return RecalibratedVersion(found, write_version(parent, manifest, out, card), "\n\n".join([text, *remarks]))


def check_events(labels: Labels, clusters: Clusters = None) -> None:
    """Check that the rarer outcome has enough patients; ``clusters`` (n,) number them if some have several studies.

    Raises:
        CohortFault: It has not; the message says how many more are needed.
    """
    rarer, patients = rarer_outcome(labels, clusters), count(clusters, len(labels))
    if rarer < NEEDED_EVENTS:
        missing = NEEDED_EVENTS - rarer
        more = ceil(missing * patients / max(rarer, 1))
        fault = f"{rarer} of {patients} patients have the rarer outcome; a recalibration needs {NEEDED_EVENTS}"
        raise CohortFault([f"{fault}: {missing} more, which are about {more} more patients"])


def recalibrated(
    parent: Manifest,
    found: Recalibration,
    labels: Labels,
    probabilities: Array,
    name: str,
    version: str,
    clusters: Clusters = None,
) -> Manifest:
    """Manifest of the recalibrated version, without its lineage.

    Args:
        parent: Manifest of the parent.
        found: The update.
        labels: Outcomes (n,) of the cohort.
        probabilities: Probabilities (n,) of the parent.
        name: Name of the new model.
        version: Its version.
        clusters: Patients (n,) if some have several studies.
    """
    old = parent.calibration
    calibration = Calibration(slope=found.slope * old.slope, intercept=found.intercept + found.slope * old.intercept)
    threshold, conformal = parent.threshold, parent.conformal
    if rarer_outcome(labels, clusters) >= RULE_EVENTS:
        new = found.apply(probabilities)
        threshold = Threshold(value=metrics.best_f1_threshold(labels, new), rule="max-f1-recalibration")
        if conformal is not None:
            negative, positive = metrics.conformal_thresholds(labels, new, conformal.level)
            conformal = Conformal(level=conformal.level, quantile_negative=negative, quantile_positive=positive)
    elif conformal is not None:
        conformal = Conformal(
            level=conformal.level,
            quantile_negative=1 - _moved(1 - conformal.quantile_negative, found),
            quantile_positive=_moved(conformal.quantile_positive, found),
        )
    return parent.model_copy(
        update={
            "name": name,
            "version": version,
            "calibration": calibration,
            "threshold": threshold,
            "conformal": conformal,
            "metrics": {key: value for key, value in parent.metrics.items() if key in KEPT_METRICS},
        }
    )


def _moved(quantile: float, found: Recalibration) -> float:
    """Quantile of the new probabilities that keeps the same patients in the set."""
    if not 0 < quantile < 1:
        return quantile
    odds = float(np.log(quantile / (1 - quantile)))
    return float(expit(found.intercept + found.slope * odds))


def write_version(
    parent: StoredVersion, manifest: Manifest, out: Path, card: str, changed: Mapping[str, bytes] | None = None
) -> Manifest:
    """Write a version with the files of its parent, and compute the golden logits again; all or nothing.

    Args:
        parent: The parent.
        manifest: Manifest of the version; digests of changed folds and golden logits are those of the parent.
        out: New folder ``<model store>/<name>/<version>``.
        card: Its card.
        changed: Content of the files of folds that differ from those of the parent.

    Returns:
        The manifest as it was written.
    """
    changed = changed or {}
    with atomic_directory(out) as draft:
        for part in parent.manifest.files:
            if part.file not in changed:
                version_files.copy(parent.folder, draft, part.file)
        digests = dict(fold_files.write(draft, file, content) for file, content in changed.items())
        folds = tuple(one.model_copy(update={"sha256": digests.get(one.file, one.sha256)}) for one in manifest.folds)
        manifest = manifest.model_copy(update={"folds": folds})
        version = ModelVersion.load(draft, manifest, "cpu")
        cases = tuple(
            GoldenCase(
                file=golden.file, sha256=golden.sha256, logits=tuple(float(logit) for logit in version.logits(case))
            )
            for golden, (case, _) in zip(manifest.golden, fold_files.golden_cases(manifest, parent.folder), strict=True)
        )
        manifest = Manifest.model_validate(manifest.model_copy(update={"golden": cases}).model_dump())
        fold_files.write(draft, "manifest.json", manifest.model_dump_json(indent=1).encode())
        fold_files.write(draft, "card.md", card.encode())
    return manifest


def _unchanged(found: Recalibration) -> str:
    return (
        f"No update: {found.patients} patients, {found.events} with the outcome, do not support an "
        f"update (closed test, p = {found.p_any:.2g}). No version was written; the version stays as it is."
    )


def _changed(
    found: Recalibration,
    manifest: Manifest,
    parent: Manifest,
    labels: Labels,
    probabilities: Array,
    clusters: Clusters = None,
) -> str:
    new = found.apply(probabilities)
    intercept, slope = found.estimates
    before, after = log_loss(labels, probabilities), log_loss(labels, new)
    counts = f"{found.patients} patients, {found.events} with the outcome"
    both = f", slope {slope}" if found.update is Update.BOTH else ""
    lines = [
        f"Recalibration: {found.update} (closed test, p = {found.p_any:.2g}), on {counts}.",
        f"Estimated intercept {intercept}{both}; {found.shrinkage:.0%} of the update is applied.",
        f"Log-odds = {found.intercept:+.3f} + {found.slope:.3f} times the log-odds of the parent.",
        f"Log-loss on the same patients: {before:.4f} before, {after:.4f} after; on new patients the gain is smaller.",
    ]
    if rarer_outcome(labels, clusters) >= RULE_EVENTS:
        value = f"{parent.threshold.value:.3f}, now {manifest.threshold.value:.3f}"
        lines.append(f"The threshold ({value}) and the conformal sets were learnt again on these patients.")
    else:
        lines.append(
            f"Fewer than {RULE_EVENTS} patients of one outcome: the threshold keeps its probability, "
            f"{manifest.threshold.value:.3f}, and each patient keeps the conformal set. Its coverage here is not known."
        )
    return "\n".join(lines)


def _card(
    parent: StoredVersion, manifest: Manifest, lineage: dict[str, object], text: str, remarks: Sequence[str]
) -> str:
    rows = [f"| {name} | {lineage[name]} |" for name in ("parent", "parent_digest", "data_sha256", "method")]
    table = "\n".join(["| lineage | |", "|---|---|", *rows])
    odds = f"Calibration: slope {manifest.calibration.slope:.4f}, intercept {manifest.calibration.intercept:.4f}."
    kept = "The weights are those of the parent. Its card follows; its calibration metrics do not hold here."
    title = f"# {manifest.name} {manifest.version}"
    parts = [
        title,
        f"{manifest.intended_use}",
        "## Recalibration",
        text.replace("\n", "\n\n"),
        *remarks,
        odds,
        table,
        kept,
    ]
    return "\n\n".join([*parts, parent.card()])
