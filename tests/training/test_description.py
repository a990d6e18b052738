"""Flow of the studies, table 1 and missing values: complete in the report, without small counts in the card."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from app.sdk.clinical import ClinicalRecord
from app.sdk.types import PerfusionSummary
from app.training import description, outcome
from app.training.cohort import Cohort, CohortRow
from app.training.dataset import Dataset
from app.training.options import Target
from app.training.splits import Split
from tests.training.tiny import tiny_dataset

COUNT = 60
LABELS = (np.arange(COUNT) % 3 == 0).astype(np.int64)
SITES = np.where(np.arange(COUNT) < 40, "north", "south")


@pytest.fixture
def data() -> Dataset:
    plain = tiny_dataset(np.zeros(COUNT), np.zeros(COUNT), LABELS)
    records = [
        ClinicalRecord.model_validate(
            {"age": None if n < 3 else 60 + n % 20, "diabetes": n % 15 == 0, "sex": "male" if n % 2 else "female"}
        )
        for n in range(COUNT)
    ]
    return replace(
        plain,
        records=records,
        sites=SITES,
        presence=np.tile(np.arange(COUNT)[:, None] >= 2, (1, 5)),
        perfusion=[PerfusionSummary(core_ml=20.0 + n) for n in range(COUNT)],
    )


def cohort(unknown: int = 4) -> Cohort:
    studies = tuple(
        CohortRow(n + 2, f"p{n}", str(SITES[n]), "", "", {}, None, ClinicalRecord(), int(LABELS[n]))
        for n in range(COUNT)
    )
    found = [(study.site, {"etici": bool(study.outcome)}) for study in studies] + [("south", {"etici": None})] * unknown
    counts = outcome.count(Target.RLVO.outcome, ["etici"], found, drop_unknown=True)
    return Cohort(Path(), studies, counts=counts)


def cells(path: Path) -> dict[str, dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return {next(iter(line.values())): line for line in csv.DictReader(file)}


def test_flow_accounts_for_every_row_of_the_table(data: Dataset, tmp_path: Path) -> None:
    split = Split(np.arange(45), np.arange(45, COUNT), ())
    described = description.describe(data, cohort(), split=split)
    described.write(tmp_path)
    flow = cells(tmp_path / "flow.csv")
    assert list(flow) == [
        "studies in the table",
        "left out: unknown outcome (--drop-unknown)",
        "analysed",
        "development",
        "test",
    ]
    assert [line["studies"] for line in flow.values()] == ["64", "4", "60", "45", "15"]
    assert [line["site south"] for line in flow.values()] == ["24", "4", "20", "5", "15"]
    assert flow["test"]["with the outcome"] == str(LABELS[45:].sum())
    assert flow["analysed"]["patients"] == "60"


def test_flow_names_each_selection_with_its_counts(data: Dataset) -> None:
    read = cohort(0)
    north = [study for study in read.studies if study.site == "north"]
    late = north[10:]
    few = replace(
        data.first(30), labels=LABELS[10:40], sites=SITES[10:40], records=data.records[10:40], groups=np.arange(30)
    )
    described = description.describe(few, read, [("another site (--site)", north), ("before 2024 (--since)", late)])
    assert [(step.name, step.studies) for step in described.flow] == [
        ("studies in the table", 60),
        ("left out: another site (--site)", 20),
        ("left out: before 2024 (--since)", 10),
        ("analysed", 30),
    ]
    assert dict(described.flow[1].sites) == {"south": 20}


def test_table_has_groups_missing_values_and_images(data: Dataset, tmp_path: Path) -> None:
    split = Split(np.arange(45), np.arange(45, COUNT), ())
    described = description.describe(data, cohort(), split=split)
    described.write(tmp_path)
    table, missing = cells(tmp_path / "table1.csv"), cells(tmp_path / "missing.csv")
    assert "development (n = 45)" in table["age, years"]
    assert table["age, years"]["missing"] == "3 (5 %)"
    assert table["diabetes"]["all (n = 60)"] == "4 (7 %)"
    assert table["core, mL"]["statistic"] == "mean ± SD"  # computed from the maps
    assert table["image: NCCT"]["all (n = 60)"] == "58 (97 %)"
    assert "nihss" not in str(table).lower()  # no study has one
    assert missing["age, years"]["site north"] == "3 (8 %)"
    assert missing["age, years"]["site south"] == "0 (0 %)"
    names = {line["characteristic"] for line in described.document()["table1"]}  # type: ignore[attr-defined]
    assert {"age, years", "sex", "image: CTA"} <= names


def test_card_shows_no_small_count_and_no_column_to_compute_one_from(data: Dataset) -> None:
    split = Split(np.arange(45), np.arange(45, COUNT), ())
    described = description.describe(data, cohort(), split=split)
    report, card = ("\n\n".join(described.sections(least=least)) for least in (0, 5))
    assert "| diabetes | n (%) | 0 (0 %) | 4 (7 %) |" in report
    assert "| diabetes | n (%) | 0 (0 %) | <5 | 0 (0 %) |" in card
    assert "| left out: unknown outcome (--drop-unknown) | <5 |" in card
    assert "Counts from 1 to 4 are not shown." in card
    for column in ("development", "test", "all", "site"):
        assert f"| {column} (n" not in card
        assert f"| {column} north" not in card
    assert "4 (7 %)" not in card


def test_card_hides_small_counts_of_the_outcome_by_site() -> None:
    counts = cohort().counts
    assert counts is not None
    whole, hidden = "\n".join(counts.lines()), "\n".join(counts.lines(least=5))
    assert "| south | 6 | 14 | 4 |" in whole
    assert "| south | 6 | 14 | <5 |" in hidden
    assert "4 rows of unknown outcome" in whole
    assert "<5 rows of unknown outcome" in hidden
    assert "missing: etici in <5" in hidden


def test_card_hides_counts_from_which_a_small_one_follows(data: Dataset) -> None:
    test = np.flatnonzero(LABELS == 0)[:12]
    test = np.append(test, np.flatnonzero(LABELS == 1)[:3])
    split = Split(np.setdiff1d(np.arange(COUNT), test), test, ())
    described = description.describe(data, cohort(), split=split)
    report, card = ("\n\n".join(described.sections(least=least)) for least in (0, 5))
    assert "| test | 15 | 15 | 3 |" in report
    assert "| development | 45 | 45 | not shown |" in card
    assert "| test | 15 | 15 | not shown |" in card


def test_card_hides_a_second_site_from_which_a_small_count_follows() -> None:
    counts = cohort().counts
    assert counts is not None
    sites = {"a": {1: 3, 0: 9, None: 0}, "b": {1: 8, 0: 2, None: 0}, "c": {1: 7, 0: 4, None: 0}}
    hidden = replace(counts, sites=sites).lines(least=5)
    assert "| a | <5 | 9 | 0 |" in hidden
    assert "| b | 8 | <5 | 0 |" in hidden
    assert "| c | not shown | <5 | 0 |" in hidden
