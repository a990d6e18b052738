"""Stage 5 of a training run: score every model of the results table on the patients that it was not trained on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from app.evaluation import score_comparison
from app.evaluation.clusters import of_patients
from app.evaluation.metrics import Array, Labels
from app.training import cross_validation, modalities, results_table
from app.training.cross_validation import CrossValidation
from app.training.dataset import Dataset
from app.training.experiment import DAFT, LOGISTIC, PUBLISHED
from app.training.fit import FittedModels
from app.training.modalities import ModalityRow
from app.training.options import TrainConfig
from app.training.results_table import ORACLE, ResultRow
from app.training.split import RunSplits


@dataclass(frozen=True)
class Evaluation:
    """Scores of all models of a run.

    Attributes:
        table: The results table and that of the published scores, as Markdown.
        rows: Rows of the table of a single split; empty for many splits.
        tested: Rows (m,) of the cohort that are in a test part.
        probabilities: Calibrated probabilities (m,) by the model's name, for the models that the report shows.
        decided: Decisions (m,) of the published model at thresholds learnt from development patients; with many
            ensembles, the share of them that decides for the outcome.
        modalities: Scores of the published model by modality; empty for many splits.
        pooled: The table of many splits; None for a single split.
    """

    table: str
    rows: Sequence[ResultRow]
    tested: Labels
    probabilities: Mapping[str, Array]
    decided: Array
    modalities: Sequence[ModalityRow] = ()
    pooled: CrossValidation | None = None


def evaluate(fitted: FittedModels, splits: RunSplits, data: Dataset, config: TrainConfig) -> Evaluation:
    """Make the results table, and the probabilities of the published model and its references."""
    shown = tuple(dict.fromkeys((PUBLISHED[config.model], DAFT, LOGISTIC, ORACLE)))
    if config.validation.has_many_splits:
        parts = [
            (part.block, part.split, result.scores) for part, result in zip(splits.parts, fitted.results, strict=True)
        ]
        pooled = cross_validation.pool(parts, data.labels, DAFT, of_patients(data.groups))
        probabilities = {name: pooled.probabilities[name] for name in shown if name in pooled.probabilities}
        decided = pooled.decided[PUBLISHED[config.model]]
        table = cross_validation.markdown(pooled, "DAFT")
        table += _published_scores(data, pooled.tested, probabilities[PUBLISHED[config.model]])
        return Evaluation(table, (), pooled.tested, probabilities, decided, pooled=pooled)
    (result,) = fitted.results
    split = result.split
    probabilities = {}
    for name in shown:
        if name in result.scores:
            scores = result.scores[name]
            probabilities[name] = scores.rules(data.labels, split.develop).probabilities(scores.mean[split.test])
    if data.oracle is not None:
        probabilities[ORACLE] = data.oracle[split.test]
    rows = results_table.table(result.scores, data.labels, split, DAFT, of_patients(data.groups))
    published = result.scores[PUBLISHED[config.model]]
    decided = published.rules(data.labels, split.develop).decide(published.mean[split.test]).astype(np.float64)
    by_modality = modalities.measure(result, PUBLISHED[config.model], data, torch.device("cpu"))
    table = results_table.markdown(rows, "DAFT")
    table += _published_scores(data, split.test, probabilities[PUBLISHED[config.model]])
    return Evaluation(table, rows, split.test, probabilities, decided, tuple(by_modality))


def _published_scores(data: Dataset, tested: Labels, probabilities: Array) -> str:
    """Published scores against the published model on the tested rows, as Markdown; empty if no item is known."""
    records = [data.records[row] for row in tested]
    clusters = of_patients(data.groups[tested])
    return score_comparison.markdown(score_comparison.compare(records, data.labels[tested], probabilities, clusters))
