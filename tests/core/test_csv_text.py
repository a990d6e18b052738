"""CSV files: no cell is run as a formula, and every text and number is read back."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from app.core import csv_text


@pytest.mark.parametrize("text", ['=HYPERLINK("http://x")', "+1+1", "-2+3", "@SUM(A1)", "\tx", "\n=1", "-x", "--5"])
def test_text_that_a_spreadsheet_would_run_is_written_as_text(tmp_path: Path, text: str) -> None:
    csv_text.write(tmp_path / "t.csv", ["patient"], [[text]])
    with (tmp_path / "t.csv").open(newline="") as file:
        (line,) = csv.DictReader(file)
    assert line["patient"] == f"'{text}"
    assert csv_text.plain(line["patient"]) == text


@pytest.mark.parametrize("text", ["p-1", "a=b", "'quoted'", "O'Neill", 'José, "the" first\nline', "-12", "+0.25", ""])
def test_other_text_is_unchanged(tmp_path: Path, text: str) -> None:
    csv_text.write(tmp_path / "t.csv", ["patient", "other"], [[text, 1]])
    with (tmp_path / "t.csv").open(newline="", encoding="utf-8") as file:
        (line,) = csv.DictReader(file)
    assert line["patient"] == text
    assert csv_text.plain(text) == text


def test_carriage_return_does_not_end_the_row(tmp_path: Path) -> None:
    csv_text.write(tmp_path / "t.csv", ["patient", "other"], [["a\rb", "\r=1"]])
    with (tmp_path / "t.csv").open(newline="") as file:
        (line,) = csv.DictReader(file)
    assert (line["patient"], line["other"]) == ("a\nb", "'\n=1")


def test_numbers_keep_their_sign_and_missing_ones_are_empty(tmp_path: Path) -> None:
    csv_text.write(tmp_path / "t.csv", list("abcdef"), [[-0.5, -3, True, None, float("nan"), 1 / 3]])
    assert (tmp_path / "t.csv").read_text() == "a,b,c,d,e,f\n-0.5,-3,1,,,0.333333\n"
