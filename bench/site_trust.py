"""Trust at a site: coverage of the validation's intervals, and what a local recalibration does.

Coverage: as in bench/statistics.py, patients with a known chance of the outcome (16 % have it) and an overconfident
model. Each interval of `rlvo validate` is counted if it contains the value of the population.

No shift: outcomes are drawn from the predictions. The closed test of `rlvo recalibrate` should keep the model.

Real patients (``--table``): predictions and outcomes with a site and a country, as the International Stroke Trial. In
each unit with 150 patients or more the update is fitted on 50 or 100 patients and tested on the others, in 30 splits.

Interim looks of a silent trial: bench/site_trust_looks.py.

Planner: the examples of the R and Python packages pmvalsampsize, which simulate what rlvo integrates.
"""

from __future__ import annotations

import argparse
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from rich.progress import track
from scipy.special import expit

from app.evaluation import curves, metrics, recalibration, sample_size, validation
from app.evaluation.metrics import Array, Estimate, Labels
from app.evaluation.recalibration import Update
from app.training.prediction_table import TableColumns, read
from bench import site_trust_looks
from bench.statistics import draw

SIZES = (50, 100, 200, 500)
POPULATION = 500_000
ALLOWED = 0.015
THRESHOLD = np.array([0.2])
LEAST, FITTED, SPLITS = 150, (50, 100), 30


def estimates(labels: Labels, own: Array, rounds: int) -> Iterator[tuple[str, Estimate]]:
    """Intervals of a validation."""
    yield "AUC, DeLong", metrics.auc_estimate(labels, own, by_events=True)
    if rounds:
        yield "AUC, bootstrap", metrics.bootstrap(metrics.auc, labels, own, rounds=rounds)
        yield "Brier score", metrics.brier_estimate(labels, own, rounds=rounds)
    yield "calibration in the large", metrics.calibration_in_the_large(labels, own)
    yield "calibration slope", metrics.calibration_slope(labels, own)
    yield "O/E", metrics.observed_expected(labels, own)
    yield "scaled Brier score", metrics.scaled_brier(labels, own)
    gain = curves.decision(labels, own, THRESHOLD)
    assert gain.low is not None
    assert gain.high is not None
    yield "net benefit at 0.2", Estimate(float(gain.y[0]), float(gain.low[0]), float(gain.high[0]))
    yield "sensitivity at 0.2", validation.share(np.asarray(own[labels == 1] >= THRESHOLD[0]))
    yield "specificity at 0.2", validation.share(np.asarray(own[labels == 0] < THRESHOLD[0]))


def coverage(repeats: int, rounds: int) -> None:
    rng = np.random.default_rng(22)
    labels, _, own, _ = draw(POPULATION, rng)
    truth = {name: one.value for name, one in estimates(labels, own, 0)}
    truth |= {"AUC, bootstrap": truth["AUC, DeLong"], "Brier score": metrics.brier(labels, own)}
    rows: dict[str, list[str]] = defaultdict(list)
    for count in SIZES:
        covered: dict[str, list[bool]] = defaultdict(list)
        for _ in track(range(repeats), f"{count} patients", transient=True):
            labels, _, own, _ = draw(count, rng)
            if not 0 < labels.sum() < count:
                continue
            for name, one in estimates(labels, own, rounds):
                if np.isfinite(one.low):
                    covered[name].append(one.low <= truth[name] <= one.high)
        for name, flags in covered.items():
            share = float(np.mean(flags))
            rows[name].append(f"{share:.3f}{'' if abs(share - 0.95) <= ALLOWED else ' (off)'}")
    print(f"Coverage of the 95 % intervals, 16 % events, {repeats} samples, {rounds} bootstrap samples\n")
    print(f"| interval | {' | '.join(f'{count} patients' for count in SIZES)} |")
    print("|---" * (len(SIZES) + 1) + "|")
    for name, cells in rows.items():
        print(f"| {name} | {' | '.join(cells)} |")


def no_shift(repeats: int) -> None:
    print(f"\nClosed test without a shift, 16 % events, {repeats} samples: share without an update\n")
    for count in SIZES:
        rng, kept = np.random.default_rng(count), 0
        for number in track(range(repeats), f"{count} patients", transient=True):
            own = expit(rng.normal(-1.86, 0.8, count))
            labels = (rng.random(count) < own).astype(np.int64)
            kept += recalibration.recalibrate(labels, own, seed=number).update is Update.NONE
        print(f"{count} patients: {kept / repeats:.3f}", flush=True)


def real(path: Path, columns: TableColumns) -> None:
    """Gain of a local recalibration in each unit of a table of real patients; a positive gain is better."""
    table = read(path, columns)
    assert table.sites is not None
    for size in FITTED:
        medians, literal, chosen = {}, {}, Counter[str]()
        for unit in np.unique(table.sites):
            inside = (table.sites == unit) & table.known
            labels, own = table.outcomes[inside].astype(np.int64), table.probabilities[inside]
            if len(labels) < LEAST:
                continue
            gains, losses = [], []
            for split in range(SPLITS):
                order = np.random.default_rng([split, size]).permutation(len(labels))
                fit, test = order[:size], order[size:]
                found = recalibration.recalibrate(labels[fit], own[fit])
                chosen[found.update] += 1
                before = recalibration.log_loss(labels[test], own[test])
                after = recalibration.log_loss(labels[test], found.apply(own[test]))
                gains.append(before - after)
                losses.append((before, after))
            medians[str(unit)] = float(np.median(gains))
            first, second = np.median(losses, axis=0)
            literal[str(unit)] = float(first - second)
        values = np.array(list(medians.values()))
        shares = ", ".join(f"{name} {100 * chosen[name] / chosen.total():.0f} %" for name in Update)
        print(f"{columns.site}, fitted on {size}: {len(values)} units, {shares}")
        print(f"  gain of log-loss: median {np.median(values):.4f}, smallest {values.min():.4f}, largest ", end="")
        print(f"{values.max():.4f}; worse than no update in {(values < 0).sum()}")
        apart = np.array(list(literal.values()))
        print(
            f"  difference of the median log-losses: median {np.median(apart):.4f}, smallest {apart.min():.4f}; "
            f"worse in {(apart < -1e-12).sum()}",
            flush=True,
        )


def planner() -> None:
    print("\nPatients for a validation, rlvo and the published example\n")
    print("| prevalence | AUC | log-odds | O/E | slope | AUC |\n|---|---|---|---|---|---|")
    for prevalence, auc, mean, sd, width, published in (
        (0.018, 0.8, -5.0, 2.5, 1.0, (905, 4544, 4252)),
        (0.2, 0.78, -1.75, 1.22, 0.2, (1538, 2958, 511)),
    ):
        own = sample_size.Predictions(mean, sd)
        found = (
            sample_size.observed_expected(prevalence, width),
            sample_size.slope(own, 0.2),
            sample_size.area(prevalence, auc, 0.1),
        )
        cells = " | ".join(f"{a}, published {b}" for a, b in zip(found, published, strict=True))
        print(f"| {prevalence} | {auc} | {mean} ± {sd} | {cells} |")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=1000, help="samples of each size; 0: no simulation")
    parser.add_argument("--rounds", type=int, default=200, help="bootstrap samples of each interval; 0: no bootstrap")
    parser.add_argument("--table", type=Path, help="table of real patients with predictions and outcomes")
    parser.add_argument("--probability", default="expected_dead_or_dependent")
    parser.add_argument("--outcome", default="dead_or_dependent_6m")
    parser.add_argument("--units", nargs="+", default=["hospital", "country"], help="columns of the units")
    options = parser.parse_args()
    planner()
    if options.table:
        for unit in options.units:
            real(options.table, TableColumns(options.probability, options.outcome, unit))
    if options.repeats:
        no_shift(options.repeats)
        site_trust_looks.error_rates(4 * options.repeats)
        coverage(options.repeats, options.rounds)


if __name__ == "__main__":
    main()
