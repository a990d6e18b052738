"""The games: brute force, the efficiency of pairs, and sums that hold."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from app.inference.attribution.shapley import Array, Game, exact, paired, shares, to_sum


def game_of(order: int, players: int, backgrounds: int, seed: int = 0) -> Game:
    """A random polynomial of the players' values, at most ``order`` of them in one term; the absent take a background
    row's values.
    """
    chance = np.random.default_rng(seed)
    patient, background = chance.normal(size=players), chance.normal(size=(backgrounds, players))
    terms = [
        (chance.choice(players, size, replace=False), chance.normal())
        for size in range(1, order + 1)
        for _ in range(12)
    ]

    def game(present: NDArray[np.bool_], rows: NDArray[np.intp]) -> Array:
        values = np.where(present, patient, background[rows])
        return sum((weight * values[:, members].prod(axis=1) for members, weight in terms), np.zeros(len(rows)))

    return game


def brute_force(game: Game, players: int, backgrounds: int) -> Array:
    """The definition: the mean gain over all orders of entry and all background rows."""
    gains = np.zeros(players)
    orders = list(permutations(range(players)))
    for order in orders:
        for row in range(backgrounds):
            present = np.tril(np.ones((players + 1, players), dtype=bool), -1)
            entering = np.zeros_like(present)
            entering[:, list(order)] = present
            gains[list(order)] += np.diff(game(entering, np.full(players + 1, row)))
    return gains / (len(orders) * backgrounds)


def test_exact_is_the_definition() -> None:
    game = game_of(4, 5, 3)
    found = exact(game, 5, 3)
    assert found.values == pytest.approx(brute_force(game, 5, 3), abs=1e-12)
    assert not found.error.any()


def test_pairs_are_exact_where_at_most_two_interact() -> None:
    game = game_of(2, 9, 4)
    assert paired(game, 9, 4).values == pytest.approx(exact(game, 9, 4).values, abs=1e-12)


@pytest.mark.parametrize("rounds", [1, 4])
def test_the_stated_error_is_that_of_what_is_left_to_chance(rounds: int) -> None:
    game = game_of(5, 8, 4, seed=3)
    truth = exact(game, 8, 4).values
    found = [paired(game, 8, 4, rounds=rounds, seed=seed) for seed in range(100)]
    made = np.mean([np.square(one.values - truth) for one in found])
    stated = np.mean([np.square(one.error) for one in found])
    assert stated > 0.8 * made


@given(seed=st.integers(0, 10**6), players=st.integers(1, 12), backgrounds=st.integers(1, 5))
def test_contributions_add_up_whatever_the_method(seed: int, players: int, backgrounds: int) -> None:
    game = game_of(min(players, 4), players, backgrounds, seed)
    for found in (shares(game, players, backgrounds, budget=64), shares(game, players, backgrounds)):
        assert found.base + found.values.sum() == pytest.approx(found.total, abs=1e-9)


def test_the_budget_is_kept() -> None:
    asked = 0
    inner = game_of(3, 12, 4)

    def counted(present: NDArray[np.bool_], rows: NDArray[np.intp]) -> Array:
        nonlocal asked
        asked += len(rows)
        return inner(present, rows)

    shares(counted, 12, 4, budget=500)
    assert 0 < asked <= 500


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=9), st.floats(-9, 9))
def test_the_remainder_is_spread_by_magnitude(raw: list[float], total: float) -> None:
    found = to_sum(np.asarray(raw), total)
    assert found.sum() == pytest.approx(total, abs=1e-9)
    if abs(total - sum(raw)) < sum(map(abs, raw)):
        assert (np.sign(found) * np.sign(raw) >= 0).all()


def test_a_sum_of_nothing_is_spread_evenly() -> None:
    assert to_sum(np.zeros(4), 2.0).tolist() == [0.5] * 4
