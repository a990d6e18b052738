from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from app.training import protocol
from app.training.errors import CohortFault

RNG = np.random.default_rng(6)
PATIENTS = 300
GROUPS = np.sort(RNG.integers(0, PATIENTS, 400))  # some patients have several rows
LABELS = (RNG.random(PATIENTS) < 0.2).astype(np.int64)[GROUPS]
SITES = np.array(["north", "south"])[RNG.integers(0, 2, PATIENTS)][GROUPS]


def test_every_row_is_in_one_place_and_no_patient_in_two() -> None:
    split = protocol.split(LABELS, GROUPS, SITES, seed=0)
    validates = [validate for _, validate in split.folds]
    assert sorted(np.concatenate([split.test, *validates])) == list(range(400))
    for one in [split.test, *validates]:
        assert not set(GROUPS[one]) & set(GROUPS[np.setdiff1d(np.arange(400), one)])
    for train, validate in split.folds:
        assert sorted(np.concatenate([train, validate])) == sorted(split.develop)


def test_outcome_and_site_are_spread_evenly() -> None:
    split = protocol.split(LABELS, GROUPS, SITES, seed=0)
    for rows in [split.test, *(validate for _, validate in split.folds)]:
        assert LABELS[rows].mean() == pytest.approx(LABELS.mean(), abs=0.06)
        assert (SITES[rows] == "north").mean() == pytest.approx((SITES == "north").mean(), abs=0.09)
    assert len(split.test) == pytest.approx(80, abs=8)


def test_the_seed_draws_the_split() -> None:
    first, again, other = (protocol.split(LABELS, GROUPS, SITES, seed) for seed in (1, 1, 2))
    assert np.array_equal(first.test, again.test)
    assert not np.array_equal(first.test, other.test)


def test_a_frozen_split_stays_and_refuses_other_data(tmp_path: Path) -> None:
    path = tmp_path / "split.json"
    names = [f"p{group}" for group in GROUPS]
    digest = protocol.digest_of(names, LABELS)
    kept = protocol.freeze(path, protocol.split(LABELS, GROUPS, SITES, 1), digest)
    found = protocol.freeze(path, protocol.split(LABELS, GROUPS, SITES, 2), digest)
    assert np.array_equal(kept.test, found.test)
    with pytest.raises(CohortFault, match="not the one"):
        protocol.freeze(path, kept, protocol.digest_of(names, 1 - LABELS))


def test_a_fold_of_one_outcome_is_refused() -> None:
    labels = np.zeros(40, np.int64)
    labels[:3] = 1
    with pytest.raises(CohortFault, match="one outcome only"):
        protocol.split(labels, np.arange(40), np.full(40, "one"), seed=0)


def apart(split: protocol.Split) -> bool:
    """Whether no patient is both developed and tested on, and every development row is validated once."""
    validated = np.sort(np.concatenate([validate for _, validate in split.folds]))
    return not set(GROUPS[split.develop]) & set(GROUPS[split.test]) and np.array_equal(validated, split.develop)


def test_leaving_a_site_out_tests_on_that_site_alone() -> None:
    found = protocol.by_site(LABELS, GROUPS, SITES, seed=0)
    assert set(found) == {"north", "south"}
    for site, split in found.items():
        assert set(SITES[split.test]) == {site}
        assert site not in SITES[split.develop]
        assert apart(split)
    with pytest.raises(CohortFault, match="at least two sites"):
        protocol.by_site(LABELS, GROUPS, np.full(400, "one"), seed=0)


def test_the_split_by_date_tests_on_the_latest_fifth() -> None:
    days = [f"20{10 + group // 40}-{1 + group // 30:02d}-01" for group in GROUPS]
    split = protocol.by_date(LABELS, GROUPS, SITES, days, seed=0)
    assert len(split.test) == pytest.approx(80, abs=25)  # days are few, and are not split
    assert max(np.array(days)[split.develop]) < min(np.array(days)[split.test])
    assert apart(split)


def test_nested_cross_validation_tests_every_row_once_a_repeat() -> None:
    found = protocol.nested(LABELS, GROUPS, SITES, seed=0, repeats=2)
    assert list(found) == ["repeat 1", "repeat 2"]
    for splits in found.values():
        assert sorted(np.concatenate([split.test for split in splits])) == list(range(400))
        assert all(apart(split) for split in splits)
    assert not np.array_equal(found["repeat 1"][0].test, found["repeat 2"][0].test)


def test_the_cohort_s_own_folds_are_used() -> None:
    own = np.array(["test", "1", "2", "3"])[np.arange(400) % 4]
    split = protocol.given(own, LABELS)
    assert np.array_equal(split.test, np.flatnonzero(own == "test"))
    assert [set(own[validate]) for _, validate in split.folds] == [{"1"}, {"2"}, {"3"}]
    with pytest.raises(CohortFault, match="fold"):
        protocol.given(np.full(400, "1"), LABELS)
