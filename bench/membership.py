"""Membership attack on the aggregate of a site: is one person among its patients? ``python -m bench.membership``.

The attacker knows the population (its distribution of predictions, outcomes and subgroups), and of one person the
record and the outcome; the strong attacker knows the exact prediction too. Every number of the aggregate is, up to
small terms, a sum over the patients. The attacker gets these sums exactly, so the attack is at least as good as one on
the rounded file. The score of a person is the log-likelihood ratio of the sums with and without this person, in the
normal approximation: (f - m)' S^-1 (mean - m), with f the person's terms, m and S their mean and covariance in the
population (Sankararaman et al., Nat Genet 2009;41:965). The AUC of this score says how well members and other persons
are told apart: 0.5 is chance. For k independent sums of n patients it is about Phi(sqrt(k / 2 n)).

The subgroups are in the aggregate with ``--share-subgroups`` only; without them, the record says nothing.

``all cells`` is what the aggregate would give away without the merging of small cells: 12 cells of the prediction and
groups of sex by decade of age, each by outcome.
"""

from __future__ import annotations

import argparse

import numpy as np
from rich.progress import track
from scipy.special import expit

from app.evaluation import aggregate, metrics
from app.evaluation.aggregate import EDGES, Aggregate
from app.evaluation.metrics import Array, Labels
from app.evaluation.validation import Groups, PredictionTable, Texts

SIZES = (50, 100, 200, 500, 1000, 2000)
POPULATION = 20_000
FALSE_ALARMS = 0.05


class People:
    """Persons (n) of the population: log-odds, outcome, sex and decade of age."""

    def __init__(self, count: int, rng: np.random.Generator) -> None:
        latent = rng.normal(0, 1, count)
        self.odds = -1.86 + 0.8 * latent
        self.labels: Labels = (rng.random(count) < expit(self.odds)).astype(np.int64)
        self.age = np.clip(70 + 12 * (0.4 * latent + np.sqrt(1 - 0.16) * rng.normal(0, 1, count)), 20, 99)
        self.male = rng.random(count) < 0.53

    @property
    def sex(self) -> Texts:
        return np.where(self.male, "male", "female")

    @property
    def thirds(self) -> Texts:
        return np.array(["under 60", "60 to under 75", "75 and over"])[np.searchsorted([60, 75], self.age, "right")]

    def rows(self, chosen: slice) -> People:
        part = object.__new__(People)
        for name, values in vars(self).items():
            setattr(part, name, values[chosen])
        return part

    def table(self) -> PredictionTable:
        groups = {
            "sex": Groups(self.sex, ("female", "male")),
            "age": Groups(self.thirds, ("under 60", "60 to under 75", "75 and over")),
        }
        return PredictionTable(expit(self.odds), self.labels.astype(np.float64), groups=groups)


def by_outcome(masks: list[Array], labels: Labels) -> list[Array]:
    return [mask * part for mask in masks for part in (labels, 1 - labels)]


def groups_of(people: People, found: Aggregate, *, predicted: bool = False) -> list[Array]:
    """Terms of the published subgroups by outcome, and sums of their predictions."""
    masks = []
    for name, levels in (("sex", people.sex), ("age", people.thirds)):
        cells = [cell.name for cell in found.subgroups.get(name, ())]
        for cell in cells:
            others = [other for other in cells if other != cell]
            masks.append((~np.isin(levels, others) if cell == aggregate.OTHER else levels == cell).astype(float))
    own = expit(people.odds)
    sums = [mask * own for mask in masks] if predicted else []
    return [people.labels.astype(float), *by_outcome(masks, people.labels), *sums]


def cells_of(people: People, limits: list[tuple[float, float]]) -> list[Array]:
    """Terms of cells of the prediction: counts by outcome, and sums of the prediction."""
    own = expit(people.odds)
    masks = [((own >= low) & (own < high)).astype(float) for low, high in limits]
    return [*by_outcome(masks, people.labels), *(mask * own for mask in masks)]


def sums_of(people: People, population: People) -> list[Array]:
    """Terms of AUC, O/E, intercept, slope, their errors and the log-likelihoods."""
    own, labels, x = expit(people.odds), people.labels, people.odds
    places = []
    for outcome in (0, 1):
        ordered = np.sort(population.odds[population.labels == outcome])
        places.append(np.searchsorted(ordered, x) / len(ordered))
    placement = np.where(labels == 1, places[0], -places[1])
    weight = own * (1 - own)
    likelihood = np.log(np.where(labels == 1, own, 1 - own))
    return [
        labels.astype(float),
        own,
        placement,
        placement**2,
        (labels - own) * x,
        weight,
        weight * x,
        weight * x**2,
        likelihood,
    ]


def score(mine: list[Array], population: list[Array], members: list[Array]) -> Array:
    """Score (n,) of persons with the terms ``mine``, from the mean terms of the members."""
    everyone = np.column_stack(population)
    middle, deviation = everyone.mean(0), everyone.std(0)
    kept = deviation > 1e-9
    scaled = (everyone[:, kept] - middle[kept]) / deviation[kept]
    correlation = scaled.T @ scaled / len(scaled)
    values, vectors = np.linalg.eigh(correlation)
    real = values > 1e-6
    inverse = (vectors[:, real] / values[real]) @ vectors[:, real].T
    shift = (np.column_stack(members)[:, kept].mean(0) - middle[kept]) / deviation[kept]
    return np.asarray((np.column_stack(mine)[:, kept] - middle[kept]) / deviation[kept] @ inverse @ shift)


def hits(members: Array, others: Array) -> float:
    """Share of members found at 5 % false alarms; equal scores are decided by lot."""
    limits = np.unique(np.concatenate([members, others]))[::-1]
    found, alarms = ([0.0, *((part[None] >= limits[:, None]).mean(1))] for part in (members, others))
    return float(np.interp(FALSE_ALARMS, alarms, found))


def attacks(n: int, repeats: int) -> dict[str, list[tuple[float, float]]]:
    """AUC, and share of members found at 5 % false alarms, of each attack on each aggregate of n patients."""
    rng = np.random.default_rng(n)
    population = People(POPULATION, rng)
    found: dict[str, list[tuple[float, float]]] = {}
    limits_all = list(zip(EDGES[:-1], [*EDGES[1:-1], 1.1], strict=True))
    for _ in track(range(repeats), f"{n} patients", transient=True):
        people = People(2 * n, rng)
        inside = people.rows(slice(0, n))
        try:
            bundle = aggregate.of(inside.table(), "a", "p", with_subgroups=True)
        except ValueError:  # too few of one outcome: no bundle
            continue
        limits = [tuple(map(float, cell.name.split(" to "))) for cell in bundle.calibration]
        limits = [(low, high if high < 1 else 1.1) for low, high in limits]
        decades = {
            id(p): by_outcome(
                [
                    ((p.male == male) & (p.age // 10 == decade)).astype(float)
                    for male in (0, 1)
                    for decade in range(2, 10)
                ],
                p.labels,
            )
            for p in (people, population, inside)
        }
        variants = {
            "outcome": lambda p: [p.labels.astype(float)],
            "outcome, prediction": lambda p, li=limits: [*cells_of(p, li), *sums_of(p, population)],
            "record, outcome; with subgroups": lambda p, b=bundle: groups_of(p, b),
            "record, outcome, prediction; with subgroups": lambda p, b=bundle, li=limits: [
                *groups_of(p, b, predicted=True),
                *cells_of(p, li),
                *sums_of(p, population),
            ],
            "record, outcome, prediction; all cells": lambda p, d=decades: [
                *d[id(p)],
                *cells_of(p, limits_all),
                *sums_of(p, population),
            ],
        }
        member = np.repeat([1, 0], n)
        for name, terms in variants.items():
            value = score(terms(people), terms(population), terms(inside))
            found.setdefault(name, []).append((metrics.auc(member, value), hits(value[:n], value[n:])))
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=200, help="aggregates of each size")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    options = parser.parse_args()
    print("Membership attack, 16 % events\n")
    print("| patients | the attacker knows | AUC (± half interval) | members found at 5 % false alarms | aggregates |")
    print("|---|---|---|---|---|")
    for n in options.sizes:
        for name, values in attacks(n, options.repeats).items():
            areas, shares = np.array(values).T
            half = 1.96 * areas.std(ddof=1) / np.sqrt(len(areas))
            print(
                f"| {n} | {name} | {areas.mean():.3f} ± {half:.3f} | {100 * shares.mean():.1f} % | {len(areas)} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
