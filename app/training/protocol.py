"""Who is trained on and who is not: the paper's protocol, and its relatives.

Notable choices:
- The test fifth is drawn first and frozen: it is kept in ``split.json`` with the digest of what it was drawn from, and
  a later run on other rows is refused instead of silently redrawn.
- Drawing is stratified by label and site, and rows of one patient are never separated.
- Four folds of the rest; leave-one-site-out and a split by date for those who have sites and dates.
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
TEST_SHARE = 0.2


@dataclass(frozen=True)
class Split:
    """``develop`` and ``test`` rows, and for each fold its ``(train, validate)`` rows of ``develop``."""

    develop: Rows
    test: Rows
    folds: tuple[tuple[Rows, Rows], ...]


def deal(labels: Rows, groups: Rows, sites: NDArray[np.str_], parts: int, seed: int) -> Rows:
    """The part (n,) that each row is dealt to: patients of every label and site spread evenly, none separated.

    A patient counts as positive if any of its rows is.
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
        part[own] = (np.arange(len(own)) + offset) % parts  # go on where the last stratum stopped: parts stay even
        offset += len(own)
    return part[member]


def split(labels: Rows, groups: Rows, sites: NDArray[np.str_], seed: int, folds: int = FOLDS) -> Split:
    """The frozen test fifth and the folds of the rest.

    :raises CohortFault: where a fold, or the test part, would have one class only
    """
    fifth = deal(labels, groups, sites, round(1 / TEST_SHARE), seed)
    develop, test = np.flatnonzero(fifth != 0), np.flatnonzero(fifth == 0)
    part = deal(labels[develop], groups[develop], sites[develop], folds, seed + 1)
    pairs = tuple((develop[part != fold], develop[part == fold]) for fold in range(folds))
    _both_classes(labels, [("the test part", test), *((f"fold {i}", rows) for i, (_, rows) in enumerate(pairs))])
    return Split(develop, test, pairs)


def given(own: NDArray[np.str_], labels: Rows) -> Split:
    """The folds that the cohort itself names: ``test``, and any others.

    :raises CohortFault: where there are fewer than two folds, or one of them has one class only
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


def by_site(labels: Rows, sites: NDArray[np.str_]) -> dict[str, tuple[Rows, Rows]]:
    """Leave one site out: (train, test) rows by the site that is left out."""
    found = {str(site): (np.flatnonzero(sites != site), np.flatnonzero(sites == site)) for site in np.unique(sites)}
    _both_classes(labels, [(f"site {site}", test) for site, (_, test) in found.items()])
    return found


def by_date(labels: Rows, dates: Sequence[str]) -> tuple[Rows, Rows]:
    """Train on the earlier four fifths (ISO dates), test on the latest fifth."""
    order = np.argsort(np.asarray(dates), kind="stable")
    cut = round(len(order) * (1 - TEST_SHARE))
    train, test = np.sort(order[:cut]), np.sort(order[cut:])
    _both_classes(labels, [("the earlier part", train), ("the later part", test)])
    return train, test


def freeze(path: Path, parts: Split, digest: str) -> Split:
    """Keep the split beside the run, or take the one that is kept.

    :raises CohortFault: where the kept split was drawn from other data
    """
    if path.exists():
        kept = json.loads(path.read_text())
        if kept["data"] != digest:
            raise CohortFault(["the cohort is not the one that the frozen split was drawn from: use a new folder"])
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
    """What a split was drawn from: the patients and their outcomes, as sha-256."""
    return hashlib.sha256(json.dumps([list(names), labels.tolist()]).encode()).hexdigest()


def _both_classes(labels: Rows, parts: Sequence[tuple[str, Rows]]) -> None:
    faults = [f"{name} has patients of one outcome only" for name, rows in parts if len(np.unique(labels[rows])) < 2]
    if faults:
        raise CohortFault([*faults, "a cohort needs more patients of the rarer outcome"])
