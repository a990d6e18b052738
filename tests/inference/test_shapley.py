"""Shapley values: brute force, exactness of pairs, and sums."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from app.inference.attribution.shapley import Array, Game, distribute_remainder, exact, paired, shapley_values


def game_of(order: int, players: int, backgrounds: int, seed: int = 0) -> Game:
    """A random polynomial with at most ``order`` players per term; absent players take a background row's values."""
    rng = np.random.default_rng(seed)
    patient, background = rng.normal(size=players), rng.normal(size=(backgrounds, players))
    terms = [
        (rng.choice(players, size, replace=False), rng.normal()) for size in range(1, order + 1) for _ in range(12)
    ]

    def game(present: NDArray[np.bool_], rows: NDArray[np.intp]) -> Array:
        values = np.where(present, patient, background[rows])
        return sum((weight * values[:, members].prod(axis=1) for members, weight in terms), np.zeros(len(rows)))

    return game


def brute_force(game: Game, players: int, backgrounds: int) -> Array:
    """Compute the mean gain over all orders of entry and all background rows, which is the definition."""
    gains = np.zeros(players)
    orders = list(permutations(range(players)))
    for order in orders:
        for row in range(backgrounds):
            present = np.tril(np.ones((players + 1, players), dtype=bool), -1)
            entering = np.zeros_like(present)
            entering[:, list(order)] = present
            gains[list(order)] += np.diff(game(entering, np.full(players + 1, row)))
    return gains / (len(orders) * backgrounds)


def test_exact_values_follow_the_definition() -> None:
    game = game_of(4, 5, 3)
    result = exact(game, 5, 3)
    assert result.values == pytest.approx(brute_force(game, 5, 3), abs=1e-12)
    assert not result.error.any()


def test_pairs_are_exact_if_at_most_two_players_interact() -> None:
    game = game_of(2, 9, 4)
    assert paired(game, 9, 4).values == pytest.approx(exact(game, 9, 4).values, abs=1e-12)


@pytest.mark.parametrize("rounds", [1, 4])
def test_stated_error_covers_the_sampling_error(rounds: int) -> None:
    game = game_of(5, 8, 4, seed=3)
    truth = exact(game, 8, 4).values
    result = [paired(game, 8, 4, rounds=rounds, seed=seed) for seed in range(100)]
    actual = np.mean([np.square(one.values - truth) for one in result])
    stated = np.mean([np.square(one.error) for one in result])
    assert stated > 0.8 * actual


@given(seed=st.integers(0, 10**6), players=st.integers(1, 12), backgrounds=st.integers(1, 5))
def test_values_sum_to_the_total_with_every_method(seed: int, players: int, backgrounds: int) -> None:
    game = game_of(min(players, 4), players, backgrounds, seed)
    for result in (shapley_values(game, players, backgrounds, budget=64), shapley_values(game, players, backgrounds)):
        assert result.base + result.values.sum() == pytest.approx(result.total, abs=1e-9)


def test_budget_is_kept() -> None:
    evaluations = 0
    inner = game_of(3, 12, 4)

    def counted(present: NDArray[np.bool_], rows: NDArray[np.intp]) -> Array:
        nonlocal evaluations
        evaluations += len(rows)
        return inner(present, rows)

    shapley_values(counted, 12, 4, budget=500)
    assert 0 < evaluations <= 500


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=9), st.floats(-9, 9))
def test_remainder_is_distributed_by_magnitude(raw: list[float], total: float) -> None:
    result = distribute_remainder(np.asarray(raw), total)
    assert result.sum() == pytest.approx(total, abs=1e-9)
    if abs(total - sum(raw)) < sum(map(abs, raw)):
        assert (np.sign(result) * np.sign(raw) >= 0).all()


def test_remainder_of_zeros_is_distributed_evenly() -> None:
    assert distribute_remainder(np.zeros(4), 2.0).tolist() == [0.5] * 4
