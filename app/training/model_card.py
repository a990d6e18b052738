"""Model card after TRIPOD+AI (BMJ 2024;385:e078378), CLAIM 2024 and the Model Facts label.

Every number comes from the run.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from app.evaluation.baseline_table import SMALL
from app.evaluation.metrics import Array, auc
from app.inference import own_variables
from app.registry.manifest import Manifest
from app.training.options import Target
from app.training.results_table import ResultRow, markdown
from app.training.splits import Split

_SYNTHETIC = (
    "**SYNTHETIC. This version was trained on phantoms only, and its metrics do not apply to patients. It serves to "
    "test the service, the explanations and the protocol.**"
)


def write(
    manifest: Manifest,
    rows: Sequence[ResultRow],
    notes: Sequence[str],
    oracle: Array | None,
    labels: NDArray[np.int64],
    split: Split,
    parts: Sequence[str] = (),
    outcome: Sequence[str] = (),
    cohort: Sequence[str] = (),
    groups: NDArray[np.int64] | None = None,
) -> str:
    """The card as Markdown.

    Args:
        manifest: Manifest of the version.
        rows: Rows of the results table.
        notes: Origin of a pretrained trunk, and the command of the run.
        oracle: True probabilities (n,) of phantoms.
        labels: Outcomes (n,).
        split: Development and test part.
        parts: Tables of the test part.
        outcome: Counts of the outcome by component and site, and how the table was read.
        cohort: Flow of the studies, table 1 and missing values, without small counts.
        groups: Patients (n,); None if each study is of another patient.
    """
    sections = {
        f"# {manifest.name} {manifest.version}": [
            _SYNTHETIC if manifest.training.synthetic else "",
            f"{manifest.intended_use} Licence of the weights: {manifest.licence}.",
        ],
        "## What it does": [_purpose(manifest), _inputs(manifest), own_table(manifest)],
        "## Data and protocol": [_data(manifest, split, groups), _rules(manifest)],
        "## Outcome": ["\n".join(outcome), *cohort],
        "## Measured on the test part": [_numbers(manifest), SINGLE_RUN, *parts],
        "## The table": [markdown(list(rows), "DAFT", least=SMALL), _oracle(oracle, labels, split)],
        "## Notes": list(notes),
        "## Limits": [_LIMITS],
    }
    parts = [part for title, texts in sections.items() if any(texts) for part in (title, *texts) if part]
    return "\n\n".join(parts) + "\n"


SINGLE_RUN = (
    "A single run can be badly calibrated by chance. In 100 simulated runs with 481 development patients, the "
    "calibration slope had the median 0.99; 5 to 95 % of the runs: 0.71 to 1.67 (`python -m bench.statistics`)."
)
"""What the calibration slope of one run can be; docs/benchmarks.md has the same numbers."""

_LIMITS = (
    "Not a medical device. Not for clinical decisions. A prediction gives the spread of the networks: the lowest and "
    "the highest probability of the networks. It is not a confidence interval and has no level. It does not cover "
    "other scanners, other patients or other definitions. A study unlike the training patients is flagged, but not "
    "every difference is detected. Contributions explain this model, not the disease."
)


def _purpose(manifest: Manifest) -> str:
    kind = (
        "A logistic regression on the clinical record and the perfusion numbers; it uses no images."
        if manifest.kind == "logistic"
        else f"An ensemble of {len(manifest.folds)} 3-D ResNets; the clinical record modulates their last block "
        f"({manifest.architecture.fusion}). Images have {' x '.join(map(str, manifest.grid.shape))} voxels of "
        f"{manifest.grid.spacing_mm[0]:g} mm in MNI space."
    )
    target = manifest.training.target
    outcome = (
        f"a large-vessel occlusion of the anterior circulation is refractory ({target}: final stenosis over 50 %, "
        "eTICI 0-2a, or rescue angioplasty or stenting)"
        if target == Target.RLVO.outcome
        else f"thrombectomy ends with a grade of reperfusion of 0-2a ({target}). This is not rLVO"
    )
    return f"Before thrombectomy, it predicts the probability that {outcome}. {kind}"


def _inputs(manifest: Manifest) -> str:
    channels = ", ".join(channel.name.value for channel in manifest.channels)
    required = ", ".join(channel.name.value for channel in manifest.channels if channel.required) or "none"
    variables = ", ".join(variable.name for variable in manifest.clinical.variables)
    return (
        f"Channels: {channels}; required: {required}. Clinical variables: {variables}. Any may be missing; a "
        "missing value is imputed and marked as imputed."
    )


def own_table(manifest: Manifest) -> str:
    """Table of the own variables; "" without any."""
    variables = manifest.clinical.own
    if not variables:
        return ""
    rows = [f"| `{v.name}` | {_cell(v.label)} | {_cell(own_variables.rule(v))} |" for v in variables]
    head = "Own variables of the site, in `own` of the clinical document; they are no fields of the record:"
    return "\n".join([head, "", "| name | variable | valid values |", "|---|---|---|", *rows])


def _cell(text: str) -> str:
    return text.replace("|", "/")


def _data(manifest: Manifest, split: Split, groups: NDArray[np.int64] | None) -> str:
    training = manifest.training
    develop, test = (
        len(rows) if groups is None else len(np.unique(groups[rows])) for rows in (split.develop, split.test)
    )
    studies = len(split.develop) + len(split.test)
    of = f" with {studies} studies" if studies > develop + test else ""
    share = 100 * training.positives / max(training.patients, 1)
    per_variable = training.positives / max(len(manifest.clinical.variables), 1)
    size = (
        "No sample size was calculated: the cohort has the patients that were available, with "
        f"{per_variable:.1f} outcomes per clinical variable."
    )
    return (
        f"{training.data}. {training.patients} patients{of}, {training.positives} with the outcome ({share:.1f} %). "
        f"{size} "
        f"{develop} for development, {test} for the test. {training.protocol}. Seed "
        f"{training.seed}; data sha-256 `{training.data_sha256[:16]}...`."
    )


def _rules(manifest: Manifest) -> str:
    line, threshold = manifest.calibration, manifest.threshold
    return (
        f"Calibration (Platt: slope {line.slope:.3f}, intercept {line.intercept:.3f}), threshold "
        f"({threshold.value:.3f}, {threshold.rule}) and conformal quantiles were learnt from out-of-fold logits "
        "and then frozen."
    )


def _numbers(manifest: Manifest) -> str:
    lines = ["| metric | value | 95 % interval |", "|---|---|---|"]
    for name, metric in manifest.metrics.items():
        interval = "" if metric.low is None or metric.high is None else f"{metric.low:.3f} to {metric.high:.3f}"
        lines.append(f"| {name.replace('_', ' ')} | {metric.value:.3f} | {interval} |")
    return "\n".join(lines)


def _oracle(oracle: Array | None, labels: NDArray[np.int64], split: Split) -> str:
    if oracle is None:
        return ""
    best = auc(labels[split.test], oracle[split.test])
    return f"The oracle predicts the true probability of each phantom. Its AUC on the same test part is {best:.3f}."
