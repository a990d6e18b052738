"""Published scores against a version: AUCs for the outcome of the version, on the same patients.

Design notes:
- Ranks need no calibration, so AUCs are compared and nothing else (DeLong 1988).
- The target of the scores is not the outcome of the version; each table says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from app.evaluation import baseline_table
from app.evaluation.clusters import Clusters, chosen, rarer_outcome
from app.evaluation.metrics import Array, Comparison, Estimate, Labels, auc_estimate, delong
from app.evaluation.subgroups import MIN_EVENTS
from app.sdk.clinical import ClinicalRecord
from app.sdk.published_scores import NOT_IMPLEMENTED, SCORES, TARGET_NOTE

USED_SHARE: Final = 0.5
"""An item takes part in the comparison if it is known in at least this share of the patients."""


@dataclass(frozen=True)
class ScoreComparison:
    """A score against the probabilities of a version, on the patients whose used items are all known.

    Attributes:
        name: ``Score-ICAD, 5 of 9 items``.
        missing: Items that are not used.
        patients: Patients whose used items are all known.
        events: Those of them with the outcome.
        score: AUC of the sum of the used items; None if one outcome is too rare.
        version: AUC of the version on the same patients.
        difference: AUC of the version minus that of the score (DeLong).
    """

    name: str
    missing: tuple[str, ...]
    patients: int
    events: int
    score: Estimate | None = None
    version: Estimate | None = None
    difference: Comparison | None = None

    @property
    def p(self) -> float | None:
        """The p value of the difference; None if it could not be computed."""
        return None if self.difference is None else self.difference.p


def compare(
    records: Sequence[ClinicalRecord], labels: Labels, probabilities: Array, clusters: Clusters = None
) -> list[ScoreComparison]:
    """Compare each score that has a used item with the version.

    Args:
        records: The n patients.
        labels: Outcomes (n,), 0 or 1.
        probabilities: Of the version, (n,).
        clusters: Patients (n,) if some have several studies.
    """
    found = []
    for score in SCORES:
        states = np.array([[np.nan if s is None else s for s in score.of(one).states] for one in records], float)
        used = np.isfinite(states).mean(axis=0) >= USED_SHARE
        if not used.any():
            continue
        complete = np.isfinite(states[:, used]).all(axis=1)
        sums = states[complete][:, used] @ np.array([item.points for item in score.items])[used]
        name = f"{score.name}, {used.sum()} of {len(used)} items"
        missing = tuple(item.text for item, one in zip(score.items, used, strict=True) if not one)
        own, events = labels[complete], int(labels[complete].sum())
        patients = chosen(clusters, complete)
        if rarer_outcome(own, patients) < MIN_EVENTS:
            found.append(ScoreComparison(name, missing, len(own), events))
            continue
        given = probabilities[complete]
        estimates = (
            auc_estimate(own, sums, clusters=patients),
            auc_estimate(own, given, clusters=patients),
            delong(own, given, sums, clusters=patients),
        )
        found.append(ScoreComparison(name, missing, len(own), events, *estimates))
    return found


_METHOD: Final = (
    "AUCs are those for the outcome of the version, on the patients whose used items are all known (DeLong). An item "
    "is used if it is known in at least half of the patients. A sum without all items is not the published score."
)
HEAD: Final = ("score", "patients", "AUC of the score for this outcome", "AUC of the version", "version minus score")


def cells(rows: Sequence[ScoreComparison]) -> list[list[str]]:
    """Cells of the table with the columns ``HEAD``."""
    return [
        [row.name, str(row.patients), "too few of one outcome", "", ""]
        if row.score is None
        else [row.name, str(row.patients), str(row.score), str(row.version), str(row.difference)]
        for row in rows
    ]


def notes(rows: Sequence[ScoreComparison]) -> list[str]:
    """Sentences that belong to the table of ``rows``."""
    left = [f"{row.name}: without {', '.join(row.missing)}." for row in rows if row.missing]
    return [
        TARGET_NOTE,
        _METHOD,
        *left,
        f"Not implemented, because items or points could not be confirmed: {', '.join(NOT_IMPLEMENTED)}.",
    ]


def markdown(rows: Sequence[ScoreComparison]) -> str:
    """The table and its sentences as Markdown that follows another table; empty without rows."""
    if not rows:
        return ""
    return "\n\n".join(["", "Published scores:", baseline_table.markdown(HEAD, cells(rows)), *notes(rows)])
