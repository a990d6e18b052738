"""Coverage of the printed 95 % intervals, and calibration slope of single runs: ``python -m bench.statistics``.

Coverage: patients are drawn with a known chance of the outcome (16 % have it), and with the predictions of two models.
Each interval is computed with the functions of app/evaluation/metrics.py, and counted if it contains the value of the
population. The population's values come from 500,000 patients. The observed share of a tenth is compared with the mean
chance of its patients. The AUC of a subgroup is computed for a quarter of the patients, if it has five events.

Slope: each run draws 599 phantoms of the preset `paper`, trains the logistic regression on 481 of them in four folds,
and learns the calibration out of fold. The slope is that of the served probabilities on 4,000 other phantoms, against
their true chances.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Iterator

import numpy as np
from rich.progress import track
from scipy.special import expit, logit

from app.evaluation import curves, metrics
from app.evaluation.metrics import Array, Labels
from app.evaluation.subgroups import MIN_EVENTS
from app.inference import clinical_encoder, defaults
from app.phantoms.biology import Preset
from app.training import baselines, splits
from app.training.baselines import Baseline
from app.training.dataset import Dataset, Drawn, Vectors, phantoms
from app.training.results_table import ModelScores

SIZES = (118, 481, 2000)
PAPER_PATIENTS = 599
POPULATION, FRESH = 500_000, 4_000
ALLOWED = 0.02
THRESHOLDS = np.array([0.05, 0.1, 0.2, 0.3])
PREDICTED = (0.1, 0.2, 0.3)

Sample = tuple[Labels, Array, Array, Array]


def draw(count: int, rng: np.random.Generator) -> Sample:
    """Labels, true chances and the probabilities of two models, (count,) each; both are overconfident."""
    truth = rng.normal(-1.86, 0.8, count)
    labels = (rng.random(count) < expit(truth)).astype(np.int64)
    first, second = (expit(1.1 * (truth + rng.normal(0, noise, count)) + 0.2) for noise in (0.5, 0.8))
    return labels, expit(truth), first, second


def population(rng: np.random.Generator) -> dict[str, float]:
    labels, _, first, second = draw(POPULATION, rng)
    return {
        "AUC": metrics.auc(labels, first),
        "AUC of a subgroup": metrics.auc(labels, first),
        "AUPRC": metrics.average_precision(labels, first),
        "Brier score": metrics.brier(labels, first),
        "calibration slope": metrics.calibration_slope(labels, first).value,
        "calibration in the large": metrics.calibration_in_the_large(labels, first).value,
        "difference of two AUCs": metrics.auc(labels, first) - metrics.auc(labels, second),
        **{name: (low + high) / 2 for name, low, high in bands(labels, first)},
    }


def bands(labels: Labels, probabilities: Array) -> Iterator[tuple[str, float, float]]:
    """Name and ends of the bands of a decision curve and of a calibration line at some points."""
    gains = curves.decision(labels, probabilities, THRESHOLDS)
    line = curves.calibration(labels, probabilities).line
    assert gains.low is not None
    assert gains.high is not None
    for at, low, high in zip(THRESHOLDS, gains.low, gains.high, strict=True):
        yield f"net benefit at {at:.2f}", float(low), float(high)
    if line is not None and line.low is not None and line.high is not None:
        for at in PREDICTED:
            ends = [float(np.interp(at, line.x, end)) for end in (line.low, line.high)]
            yield f"calibration line at {at:.2f}", ends[0], ends[1]


def intervals(sample: Sample, rounds: int) -> Iterator[tuple[str, float, float, float | None]]:
    """Name, ends and true value of each interval of one sample; None: the population's value."""
    labels, chances, first, second = sample
    quarter = slice(0, len(labels) // 4)
    estimates = {
        "AUC": metrics.auc_estimate(labels, first),
        "AUPRC": metrics.average_precision_estimate(labels, first, rounds=rounds),
        "Brier score": metrics.brier_estimate(labels, first, rounds=rounds),
        "calibration slope": metrics.calibration_slope(labels, first),
        "calibration in the large": metrics.calibration_in_the_large(labels, first),
        "difference of two AUCs": metrics.delong(labels, first, second),
    }
    if MIN_EVENTS <= labels[quarter].sum() <= len(labels) // 4 - MIN_EVENTS:
        estimates["AUC of a subgroup"] = metrics.auc_estimate(labels[quarter], first[quarter])
    for name, estimate in estimates.items():
        yield name, estimate.low, estimate.high, None
    for name, low, high in bands(labels, first):
        yield name, low, high, None
    for part in np.array_split(np.argsort(first, kind="stable"), 10):
        low, high = metrics.wilson(int(labels[part].sum()), len(part))
        yield "observed share of a tenth", low, high, float(chances[part].mean())


def coverage(repeats: int, rounds: int) -> None:
    rng = np.random.default_rng(16)
    truth = population(rng)
    rows: dict[str, list[float]] = defaultdict(list)
    for count in SIZES:
        covered: dict[str, list[bool]] = defaultdict(list)
        for _ in track(range(repeats), f"{count} patients", transient=True):
            sample = draw(count, rng)
            for name, low, high, own in intervals(sample, rounds):
                value = truth[name] if own is None else own
                covered[name].append(low <= value <= high)
        for name, flags in covered.items():
            rows[name].append(float(np.mean(flags)))
    print(f"Coverage of the 95 % intervals, {repeats} samples of each size, {rounds} bootstrap samples\n")
    print(f"| interval | {' | '.join(f'{count} patients' for count in SIZES)} |")
    print("|---" * (len(SIZES) + 1) + "|")
    for name, shares in rows.items():
        cells = [f"{share:.3f}{'' if abs(share - 0.95) <= ALLOWED else ' (off)'}" for share in shares]
        print(f"| {name} | {' | '.join(cells)} |")


def served_slope(seed: int, fresh: Dataset) -> float:
    """Calibration slope of the probabilities that one run's version serves."""
    data = _phantoms(PAPER_PATIENTS, seed)
    split = splits.split(data.labels, data.groups, data.sites, seed)
    spec = clinical_encoder.fit([data.records[row] for row in split.develop], [*defaults.VARIABLES])
    both = [Vectors.of(each, spec) for each in (data, fresh)]
    known, new = (each.joined(np.arange(n := len(each.values)), np.ones((n, 0), bool)) for each in both)
    joined = np.concatenate([known, new])
    labels = np.concatenate([data.labels, fresh.labels])
    fitted = baselines.fit(Baseline.LOGISTIC, joined, labels, split, np.ones(joined.shape[1], bool), seed)
    # The version's rules come from the run's own patients only.
    own = ModelScores(fitted.out_of_fold[: len(data)], fitted.each[:, : len(data)], fitted.aucs)
    served = own.rules(data.labels, split.develop).probabilities(fitted.mean[len(data) :])
    assert fresh.oracle is not None
    return metrics.platt(fresh.oracle, logit(served))[0]


def _phantoms(count: int, seed: int) -> Dataset:
    return phantoms(count, seed, Preset.PAPER, defaults.GRID, (), drawn=Drawn(np.empty((count, 0), np.float16)))


def slopes(runs: int) -> None:
    fresh = _phantoms(FRESH, 10_000)
    values = [served_slope(run, fresh) for run in track(range(runs), "Training runs", transient=True)]
    low, middle, high = np.quantile(values, [0.05, 0.5, 0.95])
    print(f"\nServed calibration slope of {runs} runs with 481 development patients: median {middle:.2f}, ", end="")
    print(f"5 to 95 %: {low:.2f} to {high:.2f}")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=1000, help="samples of each size; 0: no coverage")
    parser.add_argument("--rounds", type=int, default=500, help="bootstrap samples of each interval")
    parser.add_argument("--runs", type=int, default=100, help="training runs; 0: no slopes")
    options = parser.parse_args()
    if options.repeats:
        coverage(options.repeats, options.rounds)
    if options.runs:
        slopes(options.runs)


if __name__ == "__main__":
    main()
