"""Table 1: statistics, standardised differences, missing values, and the suppression of small counts."""

from __future__ import annotations

import numpy as np
import pytest

from app.evaluation import baseline_table
from app.evaluation.baseline_table import Characteristic, Value

PAIR = (("a", "b"),)


def groups(first: int, second: int) -> dict[str, np.ndarray]:
    inside = np.arange(first + second) < first
    return {"a": inside, "b": ~inside}


def row(values: list[Value], first: int, least: int = 0) -> list[str]:
    lines = baseline_table.rows([Characteristic("x", values)], groups(first, len(values) - first), PAIR)
    return baseline_table.cells_of(lines, least=least)[0]


def test_symmetric_number_has_mean_and_sd_and_a_skewed_one_median_and_quartiles() -> None:
    assert row([60.0, 70.0, None, 80.0, 90.0, 100.0], 3) == [
        "x",
        "mean ± SD",
        "1 (17 %)",
        "65 ± 7.07",
        "90 ± 10",
        "-2.89",
    ]
    name, statistic, _, first, *_ = row([1.0, 2.0, 3.0, 4.0, 500.0, 5.0, 6.0, 7.0], 5)
    assert (name, statistic, first) == ("x", "median [IQR]", "3 [2-4]")


def test_standardised_difference_of_a_flag_is_that_of_two_shares() -> None:
    cells = row([True] * 30 + [False] * 70 + [True] * 50 + [False] * 50, 100)
    assert cells[3:5] == ["30 (30 %)", "50 (50 %)"]
    assert float(cells[5]) == pytest.approx((0.3 - 0.5) / np.sqrt((0.21 + 0.25) / 2), abs=0.005)


def test_category_has_one_line_for_each_level_and_one_distance() -> None:
    values = ["m1"] * 40 + ["m2"] * 10 + ["ica"] * 50 + ["m1"] * 30 + ["m2"] * 40 + ["ica"] * 30
    lines = baseline_table.rows([Characteristic("site", values)], groups(100, 100), PAIR)
    assert [line.level for line in lines] == ["ica", "m1", "m2"]
    shares = [np.array([0.4, 0.1]), np.array([0.3, 0.4])]
    covariance = sum(np.diag(p) - np.outer(p, p) for p in shares) / 2
    gap = shares[0] - shares[1]
    assert lines[0].differences[0] == pytest.approx(np.sqrt(gap @ np.linalg.inv(covariance) @ gap))
    assert np.isnan(lines[1].differences[0])
    two = baseline_table.rows(
        [Characteristic("sex", ["f"] * 5 + ["m"] * 5 + ["f"] * 2 + ["m"] * 8)], groups(10, 10), PAIR
    )
    assert two[0].differences[0] == pytest.approx((0.5 - 0.2) / np.sqrt((0.25 + 0.16) / 2))


@pytest.mark.parametrize("values", [[True] * 6, [5.0] * 6, ["x"] * 6, [None, None, None, 1.0, 2.0, 3.0]])
def test_difference_without_variation_is_empty_or_zero(values: list[Value]) -> None:
    assert row(values, 3)[5] in ("", "+0.00")


def test_variable_without_any_value_has_no_line() -> None:
    assert baseline_table.rows([Characteristic("x", [None, None])], groups(1, 1), PAIR) == []


@pytest.mark.parametrize("count", [1, 4, 16, 19])
def test_small_count_and_its_complement_are_suppressed(count: int) -> None:
    values: list[Value] = [True] * count + [False] * (20 - count) + [True] * 10 + [False] * 10
    assert row(values, 20, least=5)[3:5] == ["<5", "10 (50 %)"]
    assert row(values, 20)[3] == f"{count} ({5 * count} %)"


@pytest.mark.parametrize("count", [0, 5, 15, 20])
def test_other_counts_are_shown(count: int) -> None:
    values: list[Value] = [True] * count + [False] * (20 - count) + [True] * 10 + [False] * 10
    assert row(values, 20, least=5)[3] == f"{count} ({5 * count} %)"


def test_no_level_follows_from_the_other_levels() -> None:
    values: list[Value] = ["a"] * 3 + ["b"] * 20 + ["c"] * 10 + ["a"] * 10 + ["b"] * 10 + ["c"] * 10
    lines = baseline_table.rows([Characteristic("x", values)], groups(33, 30), PAIR)
    cells = baseline_table.cells_of(lines, least=5)
    assert [line[3] for line in cells] == ["<5", "20 (61 %)", "<5"]
    assert [line[4] for line in cells] == ["10 (33 %)"] * 3


def test_few_known_numbers_and_few_missing_values_are_suppressed() -> None:
    values: list[Value] = [50.0, 60.0, *[None] * 8, *[70.0, 80.0] * 5]
    assert row(values, 10, least=5)[2:4] == ["8 (40 %)", "<5"]
    lines = baseline_table.rows([Characteristic("x", values[:9] + [1.0] * 11)], groups(10, 10), PAIR)
    assert baseline_table.missing_cells(lines, least=5) == [["x", "7 (70 %)", "0 (0 %)"]]
    assert baseline_table.missing_cells(
        baseline_table.rows([Characteristic("x", [None, *[1.0] * 19])], groups(10, 10), PAIR), least=5
    ) == [["x", "<5", "0 (0 %)"]]
