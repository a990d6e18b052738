"""Many centres on a table of real patients: pooled bundles, and federated fits against the fit of all patients.

Each unit (``--units``) with enough patients gives an aggregate, as `rlvo validate --export-aggregate` writes it. They
are pooled; the recalibration of the others is applied to each site, and its gain by the bundles is compared with the
gain on the patients. The federated recalibration over the sites is compared with the fit of all patients. Then five
processes answer the rounds for the five largest sites, and one of them is killed after the first round and started
again: ``python -m bench.centres --table ist.csv``.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from app.evaluation import aggregate, centres, logistic, rounds
from app.evaluation.aggregate import Aggregate
from app.evaluation.metrics import Array, Labels
from app.evaluation.rounds import Kind, Plan, Result
from app.evaluation.validation import Groups, PredictionTable
from app.operations import federation
from app.training.prediction_table import TableColumns, read
from app.training.site_data import SiteData

NAME = "published"
Patients = tuple[Labels, Array]


def part(table: PredictionTable, rows: NDArray[np.bool_]) -> PredictionTable:
    """The patients of one unit."""
    return PredictionTable(
        table.probabilities[rows],
        table.outcomes[rows],
        groups={name: Groups(group.levels[rows], group.order) for name, group in table.groups.items()},
        characteristics={
            name: [value for value, inside in zip(values, rows, strict=True) if inside]
            for name, values in table.characteristics.items()
        },
    )


def bundles_of(table: PredictionTable) -> tuple[list[Aggregate], dict[str, Patients]]:
    """Aggregates of the units with enough patients, and the patients of each."""
    assert table.sites is not None
    found, patients = [], {}
    for number, unit in enumerate(np.unique(table.sites)):
        own, name = part(table, table.sites == unit), f"S{number}"
        try:
            found.append(aggregate.of(own, name, NAME))
        except ValueError:
            continue
        patients[name] = (own.outcomes[own.known].astype(np.int64), logistic.log_odds(own.probabilities[own.known]))
    return found, patients


def pooled(found: list[Aggregate], patients: dict[str, Patients], units: int) -> None:
    result = centres.pool(found)
    print(f"{len(found)} of {units} units give an aggregate: {result.patients} patients, {result.events} events\n")
    print("| measure | sites | mean | 95 % prediction interval | tau | I2 | Q | p of Q |")
    print("|---|---|---|---|---|---|---|---|")
    for one in result.pooled:
        ends = f"{one.prediction[0]:.3f} to {one.prediction[1]:.3f}"
        share = f"{100 * one.i2:.0f} % | {one.q:.0f} | {one.p_equal:.2g}"
        print(f"| {one.measure} | {one.sites} | {one.mean} | {ends} | {one.tau:.3f} | {share} |")
    names = [one.measure for one in result.pooled]
    for place, name in enumerate(names):
        flags = [one.inside[place] for one in result.left_out if one.inside[place] is not None]
        print(f"left out, {name}: {sum(map(bool, flags))} of {len(flags)} sites inside of what the others predict")
    gains, errors = [], []
    for one in result.left_out:
        labels, x = patients[one.site]
        before = logistic.log_likelihood(labels, x)
        exact = (logistic.log_likelihood(labels, one.intercept + one.slope * x) - before) / len(labels)
        gains.append(exact)
        errors.append(abs(exact - one.gain))
    worse = sum(gain < 0 for gain in gains)
    print(f"recalibration of the others: median gain {np.median(gains):+.4f}, worse at {worse} of {len(gains)} sites; ")
    print(f"  largest difference of the gain by the aggregates from that of the patients: {np.nanmax(errors):.1e}")


def compared(found: Result, patients: dict[str, Patients]) -> str:
    """Largest differences of both fits from those of all patients of the sites that took part."""
    labels = np.concatenate([patients[site][0] for site in found.sites])
    x = np.concatenate([patients[site][1] for site in found.sites])
    ones = np.ones((len(x), 1))
    fits = logistic.fit(ones, labels, offset=x), logistic.fit(np.column_stack([ones, x]), labels)
    differences = [
        float(np.abs(np.subtract(own.parameters, fit.coefficients)).max())
        for own, fit in zip(found.fits, fits, strict=True)
    ]
    intercept, slope = found.fits[1].parameters
    where = f"{len(found.sites)} sites, {found.patients} patients, {found.rounds} rounds"
    return (
        f"{where}: intercept {intercept:.4f}, slope {slope:.4f}; largest difference from the fit of all patients: "
        f"intercept alone {differences[0]:.1e}, both {differences[1]:.1e}"
    )


def federated(patients: dict[str, Patients]) -> None:
    plan = Plan(kind=Kind.RECALIBRATION, predictor=NAME, sites=tuple(patients), quorum=2, columns=(1, 2), nonce="bench")
    own = {site: rounds.recalibration_patients(*one) for site, one in patients.items()}
    given, played = rounds.first_round(plan), []
    while True:
        played.append((given, {site: rounds.answer(given, "", site, one) for site, one in own.items()}))
        state = rounds.replay(played, ())
        if state.done:
            break
        given = rounds.next_round(given, state)
    print(f"federated in one process, {compared(rounds.result(played, state), patients)}")


def processes(patients: dict[str, Patients]) -> None:
    """Five processes with real files; one is killed after the first round, and started again after the second."""
    largest = sorted(patients, key=lambda site: -len(patients[site][0]))[:5]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "rounds"
        for site in largest:
            SiteData(NAME, "", *patients[site]).save(Path(temporary) / f"{site}.npz")
        members = {"predictor": NAME, "sites": tuple(largest), "quorum": 5, "columns": (1, 2)}
        federation.start(folder, federation.new_plan(kind=Kind.RECALIBRATION, **members))

        def start(site: str) -> subprocess.Popen[bytes]:
            command = [sys.executable, "-m", "app.cli", "federate", "answer", str(folder)]
            command += [f"{temporary}/{site}.npz", "--site", site, "--follow", "300"]
            return subprocess.Popen(
                command, stdout=subprocess.DEVNULL, env={**os.environ, "PYTHONPATH": str(Path.cwd())}
            )

        running = {site: start(site) for site in largest}
        first = federation.combine(folder, wait=300)
        killed = largest[2]
        running[killed].kill()
        running[killed].wait()
        time.sleep(2)
        second = federation.combine(folder, wait=0)
        print(f"killed {killed} before it answered round {first.number}; missing then: {', '.join(second.missing)}")
        running[killed] = start(killed)
        while (found := federation.combine(folder, wait=300).result) is None:
            pass
        print(f"five processes, {compared(found, patients)}")
        print(f"exit statuses of the sites: {[running[site].wait(60) for site in largest]}")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--table", type=Path, help="table of real patients; without it nothing is run")
    parser.add_argument("--probability", default="expected_dead_or_dependent")
    parser.add_argument("--outcome", default="dead_or_dependent_6m")
    parser.add_argument("--units", nargs="+", default=["hospital", "country"], help="columns of the units")
    parser.add_argument("--subgroups", nargs="*", default=["sex", "age=60,75"])
    options = parser.parse_args()
    if options.table is None:
        print("no --table: nothing to do")
        return
    for unit in options.units:
        columns = TableColumns(options.probability, options.outcome, unit, subgroups=tuple(options.subgroups))
        table = read(options.table, columns)
        assert table.sites is not None
        print(f"\n### {unit}\n")
        found, patients = bundles_of(table)
        pooled(found, patients, len(set(table.sites.tolist())))
        federated(patients)
        if unit == options.units[0]:
            processes(patients)


if __name__ == "__main__":
    main()
