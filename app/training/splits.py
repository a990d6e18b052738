"""Who is trained on and who is not: the paper's protocol, and its relatives.

Notable choices:
- The test fifth is drawn first and frozen: it is kept in ``split.json`` with the digest of what it was drawn from, and
  a later run on other rows is refused instead of silently redrawn.
- Drawing is stratified by label and site, and rows of one patient are never separated.
- Four folds of the rest, as the paper's. Other validations are splits of the same kind, each with folds of its own:
  one site left out, the latest patients left out, or repeated nested cross-validation, where every patient is tested.
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
    return around(test, develop, labels, groups, sites, seed, folds)


def around(
    test: Rows,
    develop: Rows,
    labels: Rows,
    groups: Rows,
    sites: NDArray[np.str_],
    seed: int,
    folds: int = FOLDS,
    name: str = "the test part",
) -> Split:
    """A test part and the folds of the ``develop`` rows.

    :raises CohortFault: where a fold, or the test part, would have one class only
    """
    part = deal(labels[develop], groups[develop], sites[develop], folds, seed + 1)
    pairs = tuple((develop[part != fold], develop[part == fold]) for fold in range(folds))
    _both_classes(labels, [(name, test), *((f"fold {i + 1}", rows) for i, (_, rows) in enumerate(pairs))])
    return Split(develop, test, pairs)


def nested(labels: Rows, groups: Rows, sites: NDArray[np.str_], seed: int, repeats: int) -> dict[str, list[Split]]:
    """Repeated nested cross-validation: by repeat, five splits that test every patient once.

    :raises CohortFault: where a part would have one class only
    """
    found = {}
    for repeat in range(repeats):
        own = seed + 1000 * repeat
        outer = deal(labels, groups, sites, round(1 / TEST_SHARE), own)
        found[f"repeat {repeat + 1}"] = [
            around(np.flatnonzero(outer == part), np.flatnonzero(outer != part), labels, groups, sites, own + part)
            for part in range(round(1 / TEST_SHARE))
        ]
    return found


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


def by_site(labels: Rows, groups: Rows, sites: NDArray[np.str_], seed: int) -> dict[str, Split]:
    """Leave one site out, by the site that is left out. A patient who was at several sites is not trained on there.

    :raises CohortFault: where there is one site only, or a part would have one class only
    """
    names = np.unique(sites)
    if len(names) < 2:
        raise CohortFault(["column site: leaving one site out needs at least two sites"])
    found = {}
    for site in map(str, names):
        test, others = np.flatnonzero(sites == site), np.flatnonzero(sites != site)
        develop = others[~np.isin(groups[others], groups[test])]
        found[site] = around(test, develop, labels, groups, sites, seed, name=f"site {site}")
    return found


def by_date(labels: Rows, groups: Rows, sites: NDArray[np.str_], dates: Sequence[str], seed: int) -> Split:
    """Test on the latest fifth (ISO dates), train on the patients before them. A patient's date is the first of theirs.

    :raises CohortFault: where a part would have one class only
    """
    days = np.asarray(dates)
    first = {group: min(days[groups == group].tolist()) for group in np.unique(groups).tolist()}
    own = [first[group] for group in groups.tolist()]
    cut = sorted(own)[round(len(own) * (1 - TEST_SHARE))]
    late = np.array([day >= cut for day in own])
    return around(np.flatnonzero(late), np.flatnonzero(~late), labels, groups, sites, seed, name="the later part")


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
