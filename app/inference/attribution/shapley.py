"""Shapley values of a game that is averaged over background patients.

Design notes:
- A coalition's value is the mean of the game over background rows; absent players take the values of the row.
- Few players: every coalition is evaluated (``exact``).
- Many players: permutations with their reverses, equally many for each background row (``paired``; Mitchell et al.,
  "Sampling permutations for Shapley value estimation", JMLR 2022). This is exact if players interact at most in pairs.
- Small budget: every second row takes the reverse of the order before it (``alternating``), with a larger error.
- With every method, base + sum(values) = total up to rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import comb

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

# Value (n,) of n coalitions: (n, players) bool, the present players, and (n,) the background row for the absent ones.
Game = Callable[[NDArray[np.bool_], NDArray[np.intp]], Array]


@dataclass(frozen=True)
class ShapleyValues:
    """``base`` + ``values``.sum() = ``total``; ``error`` is one standard error of each value, 0 where exact."""

    base: float
    total: float
    values: Array
    error: Array


def shapley_values(game: Game, players: int, backgrounds: int, *, budget: int = 768, seed: int = 0) -> ShapleyValues:
    """Compute Shapley values with at most ``budget`` evaluations of the game: exactly if possible, else by sampling."""
    if (1 << min(players, 40)) * backgrounds <= budget:
        return exact(game, players, backgrounds)
    rounds = budget // max(1, 2 * players * backgrounds)
    if not rounds:
        return alternating(game, players, backgrounds, seed=seed)
    return paired(game, players, backgrounds, rounds=rounds, seed=seed)


def exact(game: Game, players: int, backgrounds: int) -> ShapleyValues:
    """Evaluate every coalition: 2^players * backgrounds evaluations."""
    subsets = np.arange(1 << players)
    present = (subsets[:, None] >> np.arange(players)) & 1 == 1
    rows = np.tile(np.arange(backgrounds), len(subsets))
    value = game(np.repeat(present, backgrounds, axis=0), rows).reshape(-1, backgrounds).mean(axis=1)
    sizes = present.sum(axis=1)
    values = np.zeros(players)
    for player in range(players):
        without = subsets[~present[:, player]]
        weight = np.asarray([1.0 / (players * comb(players - 1, int(size))) for size in sizes[without]])
        values[player] = weight @ (value[without | (1 << player)] - value[without])
    return ShapleyValues(float(value[0]), float(value[-1]), values, np.zeros(players))


def paired(game: Game, players: int, backgrounds: int, *, rounds: int = 1, seed: int = 0) -> ShapleyValues:
    """Sample ``rounds`` permutations and their reverses for each background row.

    The standard error is that of the pairs around the mean of their background row. With a single round it comes from
    the two halves of each pair and is too large, because their errors have opposite signs.
    """
    rng = np.random.default_rng(seed)
    forward = np.stack([rng.permutation(players) for _ in range(backgrounds * rounds)])
    orders = np.stack([forward, forward[:, ::-1]], axis=1).reshape(-1, players)
    rows = np.repeat(np.tile(np.arange(backgrounds), rounds), 2)
    value = _values_along(game, orders, rows)
    gains = np.empty(orders.shape)
    np.put_along_axis(gains, orders, np.diff(value, axis=1), axis=1)
    halves = gains.reshape(rounds, backgrounds, 2, players)
    pairs = halves.mean(axis=2)
    variance = pairs.var(axis=0, ddof=1) / rounds if rounds > 1 else (np.diff(halves[0], axis=1)[:, 0] / 2) ** 2
    error = np.sqrt(variance.sum(axis=0)) / backgrounds
    return ShapleyValues(float(value[:, 0].mean()), float(value[:, -1].mean()), pairs.mean(axis=(0, 1)), error)


def alternating(game: Game, players: int, backgrounds: int, *, seed: int = 0) -> ShapleyValues:
    """Sample one order for each background row; every second order is the reverse of the one before it.

    The standard error is that of the mean of the pairs. It includes the spread of the background rows, so it is too
    large as a measure of sampling error.
    """
    rng = np.random.default_rng(seed)
    half = np.stack([rng.permutation(players) for _ in range((backgrounds + 1) // 2)])
    orders = np.stack([half, half[:, ::-1]], axis=1).reshape(-1, players)[:backgrounds]
    value = _values_along(game, orders, rng.permutation(backgrounds))
    gains = np.empty(orders.shape)
    np.put_along_axis(gains, orders, np.diff(value, axis=1), axis=1)
    pairs = gains[: backgrounds // 2 * 2].reshape(-1, 2, players).mean(axis=1)
    error = pairs.std(axis=0, ddof=1) / np.sqrt(len(pairs)) if len(pairs) > 1 else gains.std(axis=0)
    return ShapleyValues(float(value[:, 0].mean()), float(value[:, -1].mean()), gains.mean(axis=0), error)


def _values_along(game: Game, orders: NDArray[np.intp], rows: NDArray[np.intp]) -> Array:
    """Return the game's value as the players enter one by one, (permutations, players + 1).

    Equal coalitions are evaluated once.
    """
    count, players = orders.shape
    rank = np.argsort(orders, axis=1)
    present = rank[:, None, :] < np.arange(players + 1)[None, :, None]
    coalitions = np.concatenate(
        [present.reshape(-1, players), np.repeat(rows, players + 1)[:, None]], axis=1, dtype=np.int64
    )
    # If all players are present, the background row has no effect.
    coalitions[present.reshape(-1, players).all(axis=1), -1] = 0
    distinct, where = np.unique(coalitions, axis=0, return_inverse=True)
    value = game(distinct[:, :-1].astype(bool), distinct[:, -1].astype(np.intp))
    return value[where].reshape(count, players + 1)


def distribute_remainder(raw: Array, total: float) -> Array:
    """Add the difference to ``total`` to ``raw``, in proportion to magnitude (evenly if all are zero).

    No sign changes while the difference is smaller than the sum of the magnitudes.
    """
    magnitude = np.abs(raw)
    norm = magnitude.sum()
    weight = magnitude / norm if norm > 0 else np.full(raw.shape, 1.0 / raw.size)
    summed: Array = raw + (total - raw.sum()) * weight
    return summed
