from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from app.training import splits
from app.training.errors import CohortFault
from app.training.splits import Split

RNG = np.random.default_rng(6)
PATIENTS = 300
GROUPS = np.sort(RNG.integers(0, PATIENTS, 400))  # some patients have several rows
LABELS = (RNG.random(PATIENTS) < 0.2).astype(np.int64)[GROUPS]
SITES = np.array(["north", "south"])[RNG.integers(0, 2, PATIENTS)][GROUPS]


def test_each_row_and_each_patient_is_in_one_part() -> None:
    split = splits.split(LABELS, GROUPS, SITES, seed=0)
    validates = [validate for _, validate in split.folds]
    assert sorted(np.concatenate([split.test, *validates])) == list(range(400))
    for one in [split.test, *validates]:
        assert not set(GROUPS[one]) & set(GROUPS[np.setdiff1d(np.arange(400), one)])
    for train, validate in split.folds:
        assert sorted(np.concatenate([train, validate])) == sorted(split.develop)


def test_outcome_and_site_are_stratified() -> None:
    split = splits.split(LABELS, GROUPS, SITES, seed=0)
    for rows in [split.test, *(validate for _, validate in split.folds)]:
        assert LABELS[rows].mean() == pytest.approx(LABELS.mean(), abs=0.06)
        assert (SITES[rows] == "north").mean() == pytest.approx((SITES == "north").mean(), abs=0.09)
    assert len(split.test) == pytest.approx(80, abs=8)


def test_same_seed_gives_same_split() -> None:
    first, again, other = (splits.split(LABELS, GROUPS, SITES, seed) for seed in (1, 1, 2))
    assert np.array_equal(first.test, again.test)
    assert not np.array_equal(first.test, other.test)


def test_frozen_split_is_reused_and_refuses_another_cohort(tmp_path: Path) -> None:
    path = tmp_path / "split.json"
    names = [f"p{group}" for group in GROUPS]
    digest = splits.digest_of(names, LABELS)
    first = splits.freeze(path, splits.split(LABELS, GROUPS, SITES, 1), digest)
    second = splits.freeze(path, splits.split(LABELS, GROUPS, SITES, 2), digest)
    assert np.array_equal(first.test, second.test)
    with pytest.raises(CohortFault, match="belongs to another cohort"):
        splits.freeze(path, first, splits.digest_of(names, 1 - LABELS))


def test_fold_with_one_outcome_is_refused() -> None:
    labels = np.zeros(40, np.int64)
    labels[:3] = 1
    with pytest.raises(CohortFault, match="one outcome only"):
        splits.split(labels, np.arange(40), np.full(40, "one"), seed=0)


def is_valid(split: Split) -> bool:
    """Whether no patient is in both parts, and each development row is validated once."""
    validated = np.sort(np.concatenate([validate for _, validate in split.folds]))
    return not set(GROUPS[split.develop]) & set(GROUPS[split.test]) and np.array_equal(validated, split.develop)


def test_leave_one_site_out_tests_on_that_site_only() -> None:
    by_site = splits.by_site(LABELS, GROUPS, SITES, seed=0)
    assert set(by_site) == {"north", "south"}
    for site, split in by_site.items():
        assert set(SITES[split.test]) == {site}
        assert site not in SITES[split.develop]
        assert is_valid(split)
    with pytest.raises(CohortFault, match="at least two sites"):
        splits.by_site(LABELS, GROUPS, np.full(400, "one"), seed=0)


def test_site_of_one_outcome_is_no_test_part_and_is_trained_on() -> None:
    sites = SITES.astype("U8")
    sites[(LABELS == 0) & (GROUPS < 60)] = "west"
    sites[(LABELS == 1) & (GROUPS < 20)] = "north"
    by_site = splits.by_site(LABELS, GROUPS, sites, seed=0)
    assert set(by_site) == {"north", "south"}
    assert splits.sites_of_one_outcome(LABELS, sites) == ("west",)
    assert "west" in sites[by_site["south"].develop]
    with pytest.raises(CohortFault, match="one outcome only: west"):
        splits.by_site(LABELS, GROUPS, np.where(sites == "west", "west", "other"), seed=0)


def test_split_by_date_tests_on_the_latest_fifth() -> None:
    days = [f"20{10 + group // 40}-{1 + group // 30:02d}-01" for group in GROUPS]
    split = splits.by_date(LABELS, GROUPS, SITES, days, seed=0)
    assert len(split.test) == pytest.approx(80, abs=25)  # patients of one date stay together
    assert max(np.array(days)[split.develop]) < min(np.array(days)[split.test])
    assert is_valid(split)


def test_split_by_one_date_is_refused_with_its_reason() -> None:
    with pytest.raises(CohortFault, match="column date: no patient has an earlier date"):
        splits.by_date(LABELS, GROUPS, SITES, ["2024-01-01"] * len(GROUPS), seed=0)


def test_nested_cross_validation_tests_each_row_once_per_repeat() -> None:
    repeated = splits.nested(LABELS, GROUPS, SITES, seed=0, repeats=2)
    assert list(repeated) == ["repeat 1", "repeat 2"]
    for parts in repeated.values():
        assert sorted(np.concatenate([split.test for split in parts])) == list(range(400))
        assert all(is_valid(split) for split in parts)
    assert not np.array_equal(repeated["repeat 1"][0].test, repeated["repeat 2"][0].test)


def test_fold_column_defines_the_split() -> None:
    own = np.array(["test", "1", "2", "3"])[np.arange(400) % 4]
    split = splits.given(own, LABELS)
    assert np.array_equal(split.test, np.flatnonzero(own == "test"))
    assert [set(own[validate]) for _, validate in split.folds] == [{"1"}, {"2"}, {"3"}]
    with pytest.raises(CohortFault, match="fold"):
        splits.given(np.full(400, "1"), LABELS)
