"""Error rates of recalibration, drift, control limits and trial looks if patients have several studies.

Every version is calibrated, so each update, change or signal is an error. A share ``together`` of the variance of the
log-odds, and of the latent part of the outcome, is common to the studies of a patient. Each rate is printed with the
studies taken as patients and, after the arrow, with their patients known. The trial looks have an AUC at the margin; a
trial knows patients by their pseudonyms only, and then takes their first study.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

import numpy as np
from scipy import stats
from scipy.special import expit

from app.evaluation import drift, metrics, recalibration, sequential
from app.evaluation.clusters import of_patients
from app.evaluation.metrics import Array, Labels
from app.evaluation.recalibration import Update
from app.evaluation.sequential import LookPlan, LookVerdict, TrialMeasure

LOOKS = (100, 200, 300)


@dataclass(frozen=True)
class Sites:
    """Sites of ``patients`` each, whose numbers of studies are drawn from ``sizes``."""

    name: str
    patients: int
    sizes: tuple[int, ...]
    together: float


SITES = (
    Sites("1 study each", 200, (1,), 0.0),
    Sites("10 % have two", 200, (*(1,) * 9, 2), 0.5),
    Sites("half have two", 200, (1, 2), 0.5),
    Sites("3 each", 100, (3,), 0.5),
    Sites("3 each, more alike", 200, (3,), 0.8),
    Sites("each study twice", 200, (2,), 1.0),
)


def site(sites: Sites, rng: np.random.Generator, patients: int = 0) -> tuple[Labels, Array, Labels]:
    """Outcomes, calibrated probabilities and patients of the studies of one site, each (n,)."""
    patients = patients or sites.patients
    of = np.repeat(np.arange(patients), rng.choice(sites.sizes, patients))
    common, own = np.sqrt(sites.together), np.sqrt(1 - sites.together)
    odds = -1.2 + common * rng.normal(0, 1, patients)[of] + own * rng.normal(0, 1, len(of))
    latent = common * rng.normal(0, 1, patients)[of] + own * rng.normal(0, 1, len(of))
    probabilities = np.asarray(expit(odds))
    return (stats.norm.cdf(latent) < probabilities).astype(np.int64), probabilities, of


def errors(labels: Labels, own: Array, clusters: Labels | None) -> tuple[bool, bool, bool]:
    """Whether the site is updated, called changed, and outside of the control limits."""
    low, high = drift.control_limits(own, clusters)
    return (
        recalibration.recalibrate(labels, own, clusters=clusters).update is not Update.NONE,
        drift.drift(labels, own, clusters).changed,
        not low <= labels.mean() <= high,
    )


def exceeds(plan: LookPlan, labels: Labels, own: Array) -> bool:
    """Whether a look of the trial finds the AUC above the margin."""
    for number, size in enumerate(plan.looks):
        found = sequential.look(plan, labels[:size], own[:size], plan.looks[:number], final=size == plan.size)
        if found.verdict is LookVerdict.ABOVE:
            return True
    return False


def main() -> None:
    """Print one line for each kind of site."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=1000)
    repeats = parser.parse_args().repeats
    print("| studies of a patient | updated | called changed | outside of the limits | trial above, error 2.5 % |")
    print("|---|---|---|---|---|")
    for sites in SITES:
        rng = np.random.default_rng(1)
        truth = metrics.auc(*site(sites, rng, 100_000)[:2])
        plan = LookPlan(TrialMeasure.AUC, truth, 0.025, LOOKS)
        found = np.zeros((repeats, 2, 4), bool)
        for repeat in range(repeats):
            labels, own, of = site(sites, rng)
            found[repeat, 0, :3], found[repeat, 1, :3] = errors(labels, own, None), errors(labels, own, of_patients(of))
            labels, own, of = site(sites, rng, LOOKS[-1])
            first = np.unique(of, return_index=True)[1]
            found[repeat, 0, 3] = exceeds(plan, labels[: LOOKS[-1]], own[: LOOKS[-1]])
            found[repeat, 1, 3] = exceeds(plan, labels[first], own[first])
        before, after = 100 * found.mean(axis=0)
        cells = [f"{one:.1f} % -> {other:.1f} %" for one, other in zip(before, after, strict=True)]
        print(f"| {sites.name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
