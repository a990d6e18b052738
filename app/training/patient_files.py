"""CSV files with one line for each study and model: probability, decision, conformal set and flags.

Design notes:
- ``out-of-fold.csv``, ``test.csv`` and ``evaluation.csv`` have the same columns, ``COLUMNS``.
- An out-of-fold probability is calibrated by the out-of-fold predictions of the other folds, so the own outcome has no
  part in it. Decision and conformal set follow the same rules.
- The oracle of phantoms is no model. Its chances are in ``truth.csv`` of the cohort.
- The files hold patient ids. They stay in the report folder of the hospital.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from app.core import csv_text
from app.core.csv_text import Cell
from app.evaluation.metrics import Array, Labels
from app.inference.model_version import NOT_REFRACTORY, REFRACTORY
from app.registry.manifest import Conformal
from app.sdk.types import Flag
from app.training import calibration
from app.training.calibration import Rules
from app.training.cohort import CohortRow
from app.training.dataset import Dataset
from app.training.results_table import ORACLE, ModelScores
from app.training.split import RunSplit
from app.training.splits import Split

COLUMNS = (
    "patient",
    "row",
    "site",
    "part",
    "fold",
    "outcome",
    "model",
    "version",
    "manifest_sha256",
    "probability",
    "decision",
    "conformal",
    "flags",
)
"""Columns of every file, as docs/training.md describes them."""
DEVELOPMENT, TEST, EVALUATION = "development", "test", "evaluation"
EMPTY_SET, UNKNOWN_FLAGS = "none", "unknown"


@dataclass(frozen=True)
class Source:
    """Where a probability comes from: ``name@version`` and the manifest's digest, or the key of a run."""

    version: str
    manifest_sha256: str = ""


@dataclass(frozen=True)
class Predictions:
    """Predictions of one model for some studies.

    Attributes:
        model: Name of the model.
        rows: Studies (m,) of the cohort.
        folds: Fold, site or repeat (m,).
        probabilities: Calibrated probabilities (m,).
        decided: Decisions (m,).
        kept: (m, 2), whether class 0 and class 1 are in the conformal set; None without conformal sets.
        flags: Flags (m) of the model, besides those of the preparation.
    """

    model: str
    rows: Labels
    folds: Sequence[str]
    probabilities: Array
    decided: NDArray[np.bool_]
    kept: NDArray[np.bool_] | None
    flags: Sequence[Sequence[Flag]] = ()


def out_of_fold(
    scores: Mapping[str, ModelScores], labels: Labels, split: Split, names: Sequence[str]
) -> list[Predictions]:
    """Predictions of every model for the development studies; ``names``: name of the fold of each study (n,)."""
    result = []
    for model, scored in scores.items():
        if model == ORACLE:
            continue
        parts = [
            _predictions(
                model, fold_rules(scored, labels, split, own), own, [names[row] for row in own], scored.out_of_fold
            )
            for _, own in split.folds
        ]
        result.append(_joined(parts))
    return result


def tested(parts: Sequence[tuple[RunSplit, Mapping[str, ModelScores]]], labels: Labels) -> list[Predictions]:
    """Predictions of every model for the test studies of each split."""
    result: dict[str, list[Predictions]] = {}
    for part, scores in parts:
        rows = part.split.test
        for model, scored in scores.items():
            if model == ORACLE:
                continue
            rules = scored.rules(labels, part.split.develop)
            own = _predictions(model, rules, rows, [part.block] * len(rows), scored.mean)
            result.setdefault(model, []).append(own)
    return [_joined(own) for own in result.values()]


def fold_rules(scores: ModelScores, labels: Labels, split: Split, own: Labels) -> Rules:
    """Rules for the fold with the rows ``own``, learnt from the out-of-fold logits of the other folds."""
    others = np.setdiff1d(split.develop, own)
    return calibration.rules(labels[others], scores.out_of_fold[others])


def write(
    path: Path,
    part: str,
    predictions: Sequence[Predictions],
    studies: Sequence[CohortRow],
    data: Dataset,
    sources: Mapping[str, Source],
) -> None:
    """Write one file; ``sources`` by the name of the model."""
    csv_text.write(path, COLUMNS, _lines(part, predictions, studies, data, sources))


def _lines(
    part: str,
    predictions: Sequence[Predictions],
    studies: Sequence[CohortRow],
    data: Dataset,
    sources: Mapping[str, Source],
) -> Iterator[list[Cell]]:
    for one in predictions:
        source = sources[one.model]
        for place in np.argsort(one.rows, kind="stable").tolist():
            row = int(one.rows[place])
            study = studies[row]
            yield [
                study.patient,
                study.row,
                study.site,
                part,
                one.folds[place],
                int(data.labels[row]),
                one.model,
                source.version,
                source.manifest_sha256,
                float(one.probabilities[place]),
                bool(one.decided[place]),
                "" if one.kept is None else conformal_text(one.kept[place]),
                flag_text(data.flags[row] if data.flags else None, one.flags[place] if one.flags else ()),
            ]


def conformal_text(kept: NDArray[np.bool_]) -> str:
    """Classes of a conformal set, separated by a space; ``none`` for an empty set."""
    names = [name for name, inside in zip((NOT_REFRACTORY, REFRACTORY), kept, strict=True) if inside]
    return " ".join(names) or EMPTY_SET


def flag_text(flags: Sequence[Flag] | None, more: Sequence[Flag] = ()) -> str:
    """Codes of flags, separated by a space; with ``unknown`` for a study that came prepared."""
    unknown = [UNKNOWN_FLAGS] if flags is None else []
    return " ".join([*unknown, *sorted({flag.code for flag in (*(flags or ()), *more)})])


def conformal_sets(probabilities: Array, conformal: Conformal) -> NDArray[np.bool_]:
    """(m, 2), whether class 0 and class 1 are in the conformal set of each probability (m,)."""
    inside = [1 - probabilities >= conformal.quantile_negative, probabilities >= conformal.quantile_positive]
    return np.stack(inside, axis=1)


def _predictions(model: str, rules: Rules, rows: Labels, folds: Sequence[str], logits: Array) -> Predictions:
    own = logits[rows]
    probabilities = rules.probabilities(own)
    return Predictions(
        model, rows, folds, probabilities, rules.decide(own), conformal_sets(probabilities, rules.conformal)
    )


def _joined(parts: Sequence[Predictions]) -> Predictions:
    kept = [part.kept for part in parts if part.kept is not None]
    return Predictions(
        parts[0].model,
        np.concatenate([part.rows for part in parts]),
        [fold for part in parts for fold in part.folds],
        np.concatenate([part.probabilities for part in parts]),
        np.concatenate([part.decided for part in parts]),
        np.concatenate(kept) if kept else None,
    )
