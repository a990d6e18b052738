"""Shapley values of a game that is averaged over background patients.

Notable choices:
- A coalition's value is the mean, over background rows, of the game where absent players take that row's values.
- Few players: every coalition is evaluated (``exact``). Many: permutations, each together with its reverse, and every
  background row visited equally often (``paired``). A pair is exact for every game whose players interact at most two
  at a time (each pair of players meets once in either order), so only higher interactions are left to chance; their
  standard error is reported (Mitchell et al., "Sampling permutations for Shapley value estimation", JMLR 2022).
- Where a pair for each background row is more than may be spent, every second row takes the reverse of the order of
  the row before it (``alternating``): half the price, about twice the error.
- All telescope: base + sum(values) = total up to rounding, whatever the error of a single value.
- The remainder of a cheaper rule is spread in proportion to magnitude (``to_sum``): no sign is turned for the sake of
  the sum while the remainder is smaller than the magnitudes, and nothing is divided by a small sum.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import comb

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

# Game of n coalitions: (n, players) bool, who is present, and (n,) which background row stands in for the absent.
Game = Callable[[NDArray[np.bool_], NDArray[np.intp]], Array]


@dataclass(frozen=True)
class Shares:
    """``base`` + ``values``.sum() = ``total``; ``error`` is one standard error of each value, 0 where exact."""

    base: float
    total: float
    values: Array
    error: Array


def shares(game: Game, players: int, backgrounds: int, *, budget: int = 768, seed: int = 0) -> Shares:
    """Exact Shapley values if that takes at most ``budget`` evaluations of the game, else the best estimate it buys."""
    if (1 << min(players, 40)) * backgrounds <= budget:
        return exact(game, players, backgrounds)
    rounds = budget // max(1, 2 * players * backgrounds)
    if not rounds:
        return alternating(game, players, backgrounds, seed=seed)
    return paired(game, players, backgrounds, rounds=rounds, seed=seed)


def exact(game: Game, players: int, backgrounds: int) -> Shares:
    """Every coalition: 2^players * backgrounds evaluations."""
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
    return Shares(float(value[0]), float(value[-1]), values, np.zeros(players))


def paired(game: Game, players: int, backgrounds: int, *, rounds: int = 1, seed: int = 0) -> Shares:
    """``rounds`` permutations and their reverses for each background row.

    The standard error is that of the pairs around their background row's mean. With a single round it is taken from
    the two halves of each pair, which overstates it: the halves err in opposite directions.
    """
    chance = np.random.default_rng(seed)
    forward = np.stack([chance.permutation(players) for _ in range(backgrounds * rounds)])
    orders = np.stack([forward, forward[:, ::-1]], axis=1).reshape(-1, players)
    rows = np.repeat(np.tile(np.arange(backgrounds), rounds), 2)
    value = _along(game, orders, rows)
    gains = np.empty(orders.shape)
    np.put_along_axis(gains, orders, np.diff(value, axis=1), axis=1)
    halves = gains.reshape(rounds, backgrounds, 2, players)
    pairs = halves.mean(axis=2)
    variance = pairs.var(axis=0, ddof=1) / rounds if rounds > 1 else (np.diff(halves[0], axis=1)[:, 0] / 2) ** 2
    error = np.sqrt(variance.sum(axis=0)) / backgrounds
    return Shares(float(value[:, 0].mean()), float(value[:, -1].mean()), pairs.mean(axis=(0, 1)), error)


def alternating(game: Game, players: int, backgrounds: int, *, seed: int = 0) -> Shares:
    """One order for each background row, every second one the reverse of that before it.

    The standard error is that of the pairs' mean. It holds how far background rows differ as well as chance, so it
    overstates what a second draw would change.
    """
    chance = np.random.default_rng(seed)
    half = np.stack([chance.permutation(players) for _ in range((backgrounds + 1) // 2)])
    orders = np.stack([half, half[:, ::-1]], axis=1).reshape(-1, players)[:backgrounds]
    rows = chance.permutation(backgrounds)
    value = _along(game, orders, rows)
    gains = np.empty(orders.shape)
    np.put_along_axis(gains, orders, np.diff(value, axis=1), axis=1)
    couples = gains[: backgrounds // 2 * 2].reshape(-1, 2, players).mean(axis=1)
    error = couples.std(axis=0, ddof=1) / np.sqrt(len(couples)) if len(couples) > 1 else gains.std(axis=0)
    return Shares(float(value[:, 0].mean()), float(value[:, -1].mean()), gains.mean(axis=0), error)


def _along(game: Game, orders: NDArray[np.intp], rows: NDArray[np.intp]) -> Array:
    """The game's value as the players enter one by one: (permutations, players + 1).

    Equal coalitions (everybody, nobody, the first one in two orders) are evaluated once.
    """
    count, players = orders.shape
    rank = np.argsort(orders, axis=1)
    present = rank[:, None, :] < np.arange(players + 1)[None, :, None]
    coalitions = np.concatenate(
        [present.reshape(-1, players), np.repeat(rows, players + 1)[:, None]], axis=1, dtype=np.int64
    )
    # Where everybody is present the background row does not matter.
    coalitions[present.reshape(-1, players).all(axis=1), -1] = 0
    distinct, where = np.unique(coalitions, axis=0, return_inverse=True)
    value = game(distinct[:, :-1].astype(bool), distinct[:, -1].astype(np.intp))
    return value[where].reshape(count, players + 1)


def to_sum(raw: Array, total: float) -> Array:
    """``raw`` with the remainder to ``total`` added in proportion to magnitude (evenly if all are zero)."""
    magnitude = np.abs(raw)
    norm = magnitude.sum()
    weight = magnitude / norm if norm > 0 else np.full(raw.shape, 1.0 / raw.size)
    summed: Array = raw + (total - raw.sum()) * weight
    return summed
