"""Draw splits: the paper's test part and folds, leave-one-site-out, the latest patients, nested cross-validation.

Design notes:
- A split is stratified by outcome and site, and the rows of one patient stay in one part.
- A split is kept in ``split.json`` with the digest of its cohort. A later run on another cohort is refused.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from app.training.errors import CohortFault

Rows = NDArray[np.int64]
FOLDS = 4
SHOWN_PARTS = 5
TEST_SHARE = 0.2


@dataclass(frozen=True)
class Split:
    """Row numbers of one split.

    Attributes:
        develop: Rows of the folds.
        test: Rows that no fold is trained or validated on.
        folds: ``(train, validate)`` rows of each fold, both from ``develop``.
    """

    develop: Rows
    test: Rows
    folds: tuple[tuple[Rows, Rows], ...]


def deal(labels: Rows, groups: Rows, sites: NDArray[np.str_], parts: int, seed: int) -> Rows:
    """Assign each row (n,) to one of ``parts`` parts, evenly for each outcome and site.

    The rows of one patient go to one part; a patient counts as positive if any row is.
    """
    rng = np.random.default_rng([seed, 9])
    patients, first, member = np.unique(groups, return_index=True, return_inverse=True)
    positive = np.zeros(len(patients), np.int64)
    np.maximum.at(positive, member, labels)
    strata = np.array([f"{p}/{s}" for p, s in zip(positive, sites[first], strict=True)])
    part = np.empty(len(patients), np.int64)
    offset = 0
    for stratum in np.unique(strata):
        own = rng.permutation(np.flatnonzero(strata == stratum))
        part[own] = (np.arange(len(own)) + offset) % parts  # start where the last stratum ended, to keep the parts even
        offset += len(own)
    return part[member]


def split(labels: Rows, groups: Rows, sites: NDArray[np.str_], seed: int, folds: int = FOLDS) -> Split:
    """Draw the test part, a fifth of the patients, and the folds of the others.

    Raises:
        CohortFault: If a fold, or the test part, has patients of one outcome only.
    """
    fifth = deal(labels, groups, sites, round(1 / TEST_SHARE), seed)
    develop, test = np.flatnonzero(fifth != 0), np.flatnonzero(fifth == 0)
    return with_folds(test, develop, labels, groups, sites, seed, folds)


def with_folds(
    test: Rows,
    develop: Rows,
    labels: Rows,
    groups: Rows,
    sites: NDArray[np.str_],
    seed: int,
    folds: int = FOLDS,
    name: str = "the test part",
) -> Split:
    """Draw the folds of the ``develop`` rows for a given test part, which a fault calls ``name``.

    Raises:
        CohortFault: If a fold, or the test part, has patients of one outcome only.
    """
    part = deal(labels[develop], groups[develop], sites[develop], folds, seed + 1)
    pairs = tuple((develop[part != fold], develop[part == fold]) for fold in range(folds))
    _both_classes(labels, [(name, test), *((f"fold {i + 1}", rows) for i, (_, rows) in enumerate(pairs))])
    return Split(develop, test, pairs)


def nested(labels: Rows, groups: Rows, sites: NDArray[np.str_], seed: int, repeats: int) -> dict[str, list[Split]]:
    """Repeated nested cross-validation: for each repeat, five splits that test every patient once.

    Raises:
        CohortFault: If a part has patients of one outcome only.
    """
    repeated = {}
    for repeat in range(repeats):
        own = seed + 1000 * repeat
        outer = deal(labels, groups, sites, round(1 / TEST_SHARE), own)
        repeated[f"repeat {repeat + 1}"] = [
            with_folds(np.flatnonzero(outer == part), np.flatnonzero(outer != part), labels, groups, sites, own + part)
            for part in range(round(1 / TEST_SHARE))
        ]
    return repeated


def given(own: NDArray[np.str_], labels: Rows) -> Split:
    """Split by the cohort's ``fold`` column: ``own`` (n,) is ``test`` or the name of a fold.

    Raises:
        CohortFault: If there are fewer than two folds, or one of them has patients of one outcome only.
    """
    names = sorted(set(own.tolist()) - {"test"})
    develop, test = np.flatnonzero(own != "test"), np.flatnonzero(own == "test")
    if len(names) < 2 or not len(test):
        raise CohortFault(["column fold: needs at least two folds besides test, and some test rows"])
    pairs = tuple((np.flatnonzero((own != "test") & (own != n)), np.flatnonzero(own == n)) for n in names)
    _both_classes(
        labels, [("fold test", test), *((f"fold {n}", rows) for n, (_, rows) in zip(names, pairs, strict=True))]
    )
    return Split(develop, test, pairs)


def by_site(labels: Rows, groups: Rows, sites: NDArray[np.str_], seed: int) -> dict[str, Split]:
    """Leave-one-site-out: one split for each site with both outcomes.

    A patient of the test site is in no fold, at any site. A site of one outcome is no test part, but is trained on.

    Raises:
        CohortFault: If fewer than two sites have both outcomes, or a fold has patients of one outcome only.
    """
    untested = sites_of_one_outcome(labels, sites)
    names = [site for site in map(str, np.unique(sites)) if site not in untested]
    if len(names) < 2:
        fault = "column site: leaving one site out needs at least two sites with both outcomes"
        raise CohortFault([f"{fault}; one outcome only: {', '.join(untested)}" if untested else fault])
    by_name = {}
    for site in names:
        test, others = np.flatnonzero(sites == site), np.flatnonzero(sites != site)
        develop = others[~np.isin(groups[others], groups[test])]
        by_name[site] = with_folds(test, develop, labels, groups, sites, seed, name=f"site {site}")
    return by_name


def sites_of_one_outcome(labels: Rows, sites: NDArray[np.str_]) -> tuple[str, ...]:
    """Names of the sites whose patients have one outcome only, so that no AUC exists there."""
    return tuple(site for site in map(str, np.unique(sites)) if len(np.unique(labels[sites == site])) < 2)


def by_date(labels: Rows, groups: Rows, sites: NDArray[np.str_], dates: Sequence[str], seed: int) -> Split:
    """Test on the latest fifth of the patients by ISO date. A patient's date is the earliest of the rows.

    Patients of one date stay together, so the test part can be larger than a fifth.

    Raises:
        CohortFault: If all patients have one date, or a part has patients of one outcome only.
    """
    days = np.asarray(dates)
    first = {group: min(days[groups == group].tolist()) for group in np.unique(groups).tolist()}
    own = [first[group] for group in groups.tolist()]
    cut = sorted(own)[round(len(own) * (1 - TEST_SHARE))]
    late = np.array([day >= cut for day in own])
    if late.all():
        raise CohortFault(["column date: no patient has an earlier date than the latest fifth; give exact dates"])
    return with_folds(np.flatnonzero(late), np.flatnonzero(~late), labels, groups, sites, seed, name="the later part")


def freeze(path: Path, parts: Split, digest: str) -> Split:
    """Write the split to ``path``, or return the split that is there.

    Raises:
        CohortFault: If the split that is there belongs to another cohort.
    """
    if path.exists():
        kept = json.loads(path.read_text())
        if kept["data"] != digest:
            raise CohortFault(["the frozen split belongs to another cohort: use a new folder"])
        pairs = [(np.array(train, np.int64), np.array(validate, np.int64)) for train, validate in kept["folds"]]
        return Split(np.array(kept["develop"], np.int64), np.array(kept["test"], np.int64), tuple(pairs))
    document = {
        "data": digest,
        "develop": parts.develop.tolist(),
        "test": parts.test.tolist(),
        "folds": [[train.tolist(), validate.tolist()] for train, validate in parts.folds],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".part")
    draft.write_text(json.dumps(document))
    draft.replace(path)
    return parts


def digest_of(names: Sequence[str], labels: Rows) -> str:
    """SHA-256 of the patients and their outcomes: the cohort that a split belongs to."""
    return hashlib.sha256(json.dumps([list(names), labels.tolist()]).encode()).hexdigest()


def _both_classes(labels: Rows, parts: Sequence[tuple[str, Rows]]) -> None:
    single = [name for name, rows in parts if len(np.unique(labels[rows])) < 2]
    faults = [f"{name} has patients of one outcome only" for name in single[:SHOWN_PARTS]]
    if len(single) > SHOWN_PARTS:
        faults.append(f"{len(single) - SHOWN_PARTS} other parts have patients of one outcome only")
    if faults:
        raise CohortFault([*faults, "a cohort needs more patients of the rarer outcome"])
