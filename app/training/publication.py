"""Conditions for publishing a model version: enough patients of both outcomes, and a ranking better than chance.

Design notes:
- The count is checked before anything is trained. The ranking is checked after the report is written.
- ``--publish-anyway`` accepts both; the model card then states what was accepted.
"""

from __future__ import annotations

from collections.abc import Sequence

from app.evaluation.clusters import Clusters, by_outcome
from app.evaluation.metrics import Array, Labels, auc
from app.training.errors import PublicationRefused

MIN_EVENTS = 20
"""Fewest development patients of the rarer outcome: each of four folds then validates on five."""


def too_few_events(labels: Labels, clusters: Clusters = None) -> list[str]:
    """Objection to a version of development studies with these ``labels`` (n,), if one outcome is too rare.

    ``clusters`` (n,) number the patients if some have several studies: these are counted once for each outcome.
    """
    with_outcome, without = by_outcome(labels, clusters)
    if min(with_outcome, without) >= MIN_EVENTS:
        return []
    counts = f"{with_outcome} patients with the outcome and {without} without it"
    return [f"the development part has {counts}; a version needs at least {MIN_EVENTS} of each"]


def below_chance(labels: Labels, out_of_fold: Array) -> list[str]:
    """Objection to a version that ranks development patients (n,) worse than chance by its ``out_of_fold`` logits."""
    area = auc(labels, out_of_fold)
    if area >= 0.5:
        return []
    fault = f"the model ranks patients worse than chance: the AUC of its out-of-fold predictions is {area:.3f}"
    return [f"{fault}; a version needs at least 0.5. Such a version gives every patient the prevalence of the outcome"]


def check(objections: Sequence[str], *, accepted: bool, report: str = "") -> None:
    """Refuse a version with objections unless they are ``accepted``; ``report``: where the results are.

    Raises:
        PublicationRefused: With every objection and what to do.
    """
    if objections and not accepted:
        advice = "no version was written. Leave out --out to get the table only, or give --publish-anyway"
        raise PublicationRefused([*objections, advice, *([f"results of this run: {report}"] if report else [])])
