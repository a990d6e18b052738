"""The other validations: leave one site out, and repeated nested cross-validation.

Notable choices:
- Each split is the paper's protocol in small (folds, ensemble, calibration from out-of-fold logits); what its ensemble
  says of its own test part is what counts, so every patient is scored by a model that never saw them.
- Splits come in blocks: a block is a site, or a repeat that tests everybody once. The table gives the mean and SD over
  blocks, and one AUC over all patients, each with the mean of the probabilities that they were given.
- Probabilities of different ensembles are pooled after calibration, each by its own; raw logits are not comparable.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from app.evaluation.metrics import Array, Comparison, Estimate, Labels, auc, bootstrap, delong, probabilities_of
from app.training.results_table import ModelScores
from app.training.splits import Split

Blocks = Mapping[str, Sequence[Split]]


@dataclass(frozen=True)
class ModelSummary:
    """One model: AUC by block, mean and SD over blocks; pooled over patients; the reference's AUC minus it."""

    name: str
    by_block: tuple[float, ...]
    pooled: Estimate
    rival: Comparison | None


@dataclass(frozen=True)
class CrossValidation:
    """``tested`` rows, their mean calibrated probabilities by model (len(tested),), and the table's lines."""

    blocks: tuple[str, ...]
    tested: Labels
    chances: Mapping[str, Array]
    lines: tuple[ModelSummary, ...]


def run(
    blocks: Blocks, labels: Labels, compare: Callable[[str, Split], Mapping[str, ModelScores]], reference: str
) -> CrossValidation:
    """Train on every split and pool what its test patients were told.

    :param compare: trains the models of the table on one split, named for its checkpoints
    """
    said: dict[str, dict[str, Array]] = {}  # model, block: (n,) probabilities, NaN where not tested
    for block, splits in blocks.items():
        for number, split in enumerate(splits):
            for model, scored in compare(f"{block}-{number}".replace(" ", "-"), split).items():
                learnt = scored.rules(labels, split.develop).calibration
                own = said.setdefault(model, {}).setdefault(block, np.full(len(labels), np.nan))
                own[split.test] = probabilities_of(scored.mean[split.test], learnt.slope, learnt.intercept)
    tested = np.flatnonzero(np.isfinite(np.array(list(next(iter(said.values())).values()))).any(axis=0))
    chances = {model: np.nanmean(list(own.values()), axis=0)[tested] for model, own in said.items()}
    lines = []
    for model, blocks_said in said.items():
        areas = []
        for values in blocks_said.values():
            rows = np.flatnonzero(np.isfinite(values))
            areas.append(auc(labels[rows], values[rows]))
        rival = None
        if model != reference and reference in chances:
            rival = delong(labels[tested], chances[reference], chances[model])
        lines.append(ModelSummary(model, tuple(areas), bootstrap(auc, labels[tested], chances[model]), rival))
    return CrossValidation(tuple(blocks), tested, chances, tuple(lines))


def markdown(found: CrossValidation, reference: str, *, most: int = 8) -> str:
    """The table as Markdown; single blocks are shown where there are at most ``most``."""
    shown = found.blocks if len(found.blocks) <= most else ()
    head = [
        "model",
        *shown,
        "AUC, mean ± SD",
        "AUC over all patients (95 % interval)",
        f"{reference} minus it",
    ]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for line in found.lines:
        cells = [f"{area:.3f}" for area in line.by_block] if shown else []
        spread = f"{np.mean(line.by_block):.3f} ± {np.std(line.by_block):.3f}"
        rival = str(line.rival) if line.rival else "reference" if reference in line.name else ""
        lines.append("| " + " | ".join([line.name, *cells, spread, str(line.pooled), rival]) + " |")
    return "\n".join(lines)
