"""Selection of the patients that a version is scored on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from app.sdk.clinical import ClinicalRecord
from app.training.cohort import Cohort, CohortRow
from app.training.errors import CohortFault
from app.training.score import EvalConfig, _select

ROW = CohortRow(2, "p", "north", "2024-02-01", "", {}, 0, ClinicalRecord(), 0)
DAYS = ("2023-12-31", "2024-02-01", "2024-03-15", "2024-11-02")
COHORT = Cohort(
    Path(),
    tuple(replace(ROW, row=n, patient=f"p{n}", date=DAYS[n // 2], outcome=n % 2) for n in range(8)),
    "unsuccessful_reperfusion",
)


def selected(since: str, cohort: Cohort = COHORT) -> list[str]:
    chosen = _select(cohort, EvalConfig([], Path(), since=since))
    assert chosen.target == cohort.target
    return [study.date for study in chosen.studies]


@pytest.mark.parametrize(("since", "count"), [("", 8), ("2023-12-31", 8), ("2024-02-02", 4), ("2024-03-15T10:00", 4)])
def test_since_compares_dates(since: str, count: int) -> None:
    assert len(selected(since)) == count


@pytest.mark.parametrize("since", ["2024", "2024-3-15", "15/03/2024", "20240315", "march"])
def test_since_of_another_form_is_refused(since: str) -> None:
    with pytest.raises(CohortFault, match="--since: expected an ISO date"):
        selected(since)


def test_row_without_date_is_refused_and_not_left_out() -> None:
    undated = replace(COHORT, studies=(*COHORT.studies, replace(ROW, row=30, date="")))
    with pytest.raises(CohortFault, match="row 30, column date: missing; --since needs it"):
        selected("2024-01-01", undated)
    assert len(selected("", undated)) == 9


def test_site_is_selected_in_either_form_of_its_accent() -> None:
    studies = tuple(replace(study, site="Cl\u00ednic") for study in COHORT.studies[:4])
    both = replace(COHORT, studies=(*studies, *COHORT.studies[4:]))
    chosen = _select(both, EvalConfig([], Path(), site="Cli\u0301nic"))
    assert len(chosen.studies) == 4
