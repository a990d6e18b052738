"""Error rates of the interim looks of a silent trial, for ``python -m bench site_trust``.

The AUC equals the margin, so each trial that finds it above is in error; 16 % have the outcome. The Brier score gains
nothing: every answer is as good as the comparator on average. Beside them, looks with the plain 95 % interval.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from rich.progress import track
from scipy import stats
from scipy.special import expit

from app.evaluation import metrics, sequential
from app.evaluation.metrics import Array, Labels
from app.evaluation.sequential import LookPlan, LookVerdict, TrialMeasure

PREVALENCE, MARGIN, ALPHA = 0.16, 0.7, 0.025
PLANS = ((100, 200, 300, 400), (50, 100, 150, 200, 250, 300), (250, 500, 1000))
EFFECT = 0.1  # of the AUC, for the power


def binormal(count: int, auc: float, rng: np.random.Generator) -> tuple[Labels, Array]:
    """Outcomes and scores (count,) of a model with this AUC."""
    labels = (rng.random(count) < PREVALENCE).astype(np.int64)
    return labels, expit(rng.normal(0, 1, count) + labels * np.sqrt(2) * stats.norm.ppf(auc) - 2)


def without_gain(count: int, rng: np.random.Generator) -> tuple[Labels, Array]:
    """Outcomes and probabilities (count,) with a mean gain of 0: half of the answers 0.06, half 0.26, no signal."""
    own = np.where(rng.random(count) < 0.5, PREVALENCE - 0.1, PREVALENCE + 0.1)
    # The chance that makes the expected gain 0: (r - y)^2 - (p - y)^2 = r^2 - p^2 + 2 y (p - r).
    chance = np.where(own < PREVALENCE, PREVALENCE - 0.05, PREVALENCE + 0.05)
    return (rng.random(count) < chance).astype(np.int64), own


def with_gain(count: int, rng: np.random.Generator) -> tuple[Labels, Array]:
    """Outcomes and calibrated probabilities (count,) of a good model: AUC 0.85."""
    own = expit(rng.normal(-2.4, 1.7, count))
    return (rng.random(count) < own).astype(np.int64), own


def stops(plan: LookPlan, labels: Labels, own: Array) -> LookVerdict:
    """Verdict of the first look that decides."""
    for number, size in enumerate(plan.looks):
        found = sequential.look(plan, labels[:size], own[:size], plan.looks[:number], final=size == plan.size)
        if found.verdict in (LookVerdict.ABOVE, LookVerdict.BELOW):
            return found.verdict
    return LookVerdict.INCONCLUSIVE


def naive(plan: LookPlan, labels: Labels, own: Array) -> bool:
    """Whether the plain 95 % interval of any look is above the margin."""
    return any(metrics.auc_estimate(labels[:size], own[:size], by_events=True).low > plan.margin for size in plan.looks)


def error_rates(repeats: int) -> None:
    """Print the share of trials in error on each side, and the power."""
    rng = np.random.default_rng(91)
    print(f"\nInterim looks, alpha {ALPHA} on each side, {repeats} trials: share above and below the margin\n")
    print("| measure | looks | above, in error | below, in error | plain intervals, above | power |")
    print("|---" * 6 + "|")
    for looks in PLANS:
        area = LookPlan(TrialMeasure.AUC, MARGIN, ALPHA, looks)
        found, plain, power = [], 0, 0
        for _ in track(range(repeats), f"AUC, looks at {looks}", transient=True):
            labels, own = binormal(looks[-1], MARGIN, rng)
            found.append(stops(area, labels, own))
            plain += naive(area, labels, own)
            power += stops(area, *binormal(looks[-1], MARGIN + EFFECT, rng)) is LookVerdict.ABOVE
        _row("AUC", area, found, f"{plain / repeats:.4f}", f"{power / repeats:.2f} at {MARGIN + EFFECT:g}")
        gain = replace(area, measure=TrialMeasure.BRIER_GAIN, margin=0.0, reference=PREVALENCE)
        found, power = [], 0
        for _ in track(range(repeats), f"gain, looks at {looks}", transient=True):
            found.append(stops(gain, *without_gain(looks[-1], rng)))
            power += stops(gain, *with_gain(looks[-1], rng)) is LookVerdict.ABOVE
        _row("gain of the Brier score", gain, found, "", f"{power / repeats:.2f} of a good model")


def _row(name: str, plan: LookPlan, found: list[LookVerdict], plain: str, power: str) -> None:
    shares = [found.count(side) / len(found) for side in (LookVerdict.ABOVE, LookVerdict.BELOW)]
    limit = ALPHA + 3 * np.sqrt(ALPHA * (1 - ALPHA) / len(found))
    marks = ["" if share <= limit else " (off)" for share in shares]
    cells = [f"{share:.4f}{mark}" for share, mark in zip(shares, marks, strict=True)]
    print(f"| {name} | {', '.join(map(str, plan.looks))} | {cells[0]} | {cells[1]} | {plain} | {power} |", flush=True)
