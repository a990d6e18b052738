"""Pool the test parts of many splits: leave-one-site-out, and repeated nested cross-validation.

Design notes:
- Every patient is scored by an ensemble that was not trained on that patient.
- A block is a site, or a repeat that tests every patient once. The table gives mean and SD of the AUC over blocks, and
  one AUC over all patients with the mean of each patient's probabilities.
- Each ensemble decides at its own threshold, which its development patients chose: no tested label chooses a threshold.
- Each ensemble's probabilities are calibrated by its own rules before they are pooled: raw logits of different
  ensembles are not comparable.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from app.evaluation.clusters import Clusters, chosen
from app.evaluation.metrics import Array, Comparison, Estimate, Labels, auc, auc_estimate, delong, multiplicity_note
from app.training.results_table import ModelScores
from app.training.splits import Split


@dataclass(frozen=True)
class ModelSummary:
    """One model of the table.

    Attributes:
        by_block: AUC in each block.
        pooled: AUC over all tested patients.
        comparison: AUC of the reference model minus that of this one; None for the reference.
    """

    name: str
    by_block: tuple[float, ...]
    pooled: Estimate
    comparison: Comparison | None


@dataclass(frozen=True)
class CrossValidation:
    """Pooled results.

    Attributes:
        tested: Rows (m,) that are in a test part.
        probabilities: Mean calibrated probabilities (m,) by the model's name.
        decided: Share (m,) of the ensembles that decide for the outcome, by the model's name.
        lines: One line of the table for each model.
    """

    blocks: tuple[str, ...]
    tested: Labels
    probabilities: Mapping[str, Array]
    decided: Mapping[str, Array]
    lines: tuple[ModelSummary, ...]


def pool(
    results: Sequence[tuple[str, Split, Mapping[str, ModelScores]]],
    labels: Labels,
    reference: str,
    clusters: Clusters = None,
) -> CrossValidation:
    """Pool the probabilities of all test parts; ``results``: block, split and scores of each split.

    ``clusters`` (n,) number the patients if some have several studies.
    """
    by_block: dict[str, dict[str, Array]] = {}  # model, block: (n,) probabilities, NaN where not tested
    decisions: dict[str, list[Array]] = {}
    for block, split, scores in results:
        for model, scored in scores.items():
            own = by_block.setdefault(model, {}).setdefault(block, np.full(len(labels), np.nan))
            rules, logits = scored.rules(labels, split.develop), scored.mean[split.test]
            own[split.test] = rules.probabilities(logits)
            decision = np.full(len(labels), np.nan)
            decision[split.test] = rules.decide(logits)
            decisions.setdefault(model, []).append(decision)
    tested = np.flatnonzero(np.isfinite(np.array(list(next(iter(by_block.values())).values()))).any(axis=0))
    pooled = {
        model: np.nanmean(np.array(list(blocks.values()))[:, tested], axis=0) for model, blocks in by_block.items()
    }
    decided = {model: np.nanmean(np.array(parts)[:, tested], axis=0) for model, parts in decisions.items()}
    lines, patients = [], chosen(clusters, tested)
    for model, blocks in by_block.items():
        areas = []
        for own in blocks.values():
            rows = np.flatnonzero(np.isfinite(own))
            areas.append(auc(labels[rows], own[rows]))
        comparison = None
        if model != reference and reference in pooled:
            comparison = delong(labels[tested], pooled[reference], pooled[model], clusters=patients)
        over_all = auc_estimate(labels[tested], pooled[model], clusters=patients)
        lines.append(ModelSummary(model, tuple(areas), over_all, comparison))
    return CrossValidation(
        tuple(dict.fromkeys(block for block, _, _ in results)), tested, pooled, decided, tuple(lines)
    )


def markdown(summary: CrossValidation, reference: str, *, most: int = 8) -> str:
    """The table as Markdown; single blocks are shown if there are at most ``most``."""
    shown = summary.blocks if len(summary.blocks) <= most else ()
    head = ["model", *shown, "AUC, mean ± SD", "AUC over all patients (95 % interval)", f"{reference} minus it"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for line in summary.lines:
        cells = [f"{area:.3f}" for area in line.by_block] if shown else []
        deviation = f"{np.std(line.by_block, ddof=1):.3f}" if len(line.by_block) > 1 else "unknown"
        spread = f"{np.mean(line.by_block):.3f} ± {deviation}"
        comparison = str(line.comparison) if line.comparison else "reference" if reference in line.name else ""
        lines.append("| " + " | ".join([line.name, *cells, spread, str(line.pooled), comparison]) + " |")
    note = multiplicity_note(sum(line.comparison is not None for line in summary.lines))
    return "\n".join([*lines, *(["", note] if note else [])])
