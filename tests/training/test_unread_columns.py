"""Columns that a version does not predict from, and categories that it does not know, are told in one line each."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.registry.manifest import Manifest
from app.sdk.clinical import ClinicalRecord
from app.sdk.types import Input
from app.training import unread_columns
from app.training.cohort import Cohort, CohortRow
from app.training.options import PublishedModel

STORE = Path(__file__).resolve().parents[2] / "model_store"


def cohort(*records: dict[str, object], volumes: tuple[Input, ...] = (Input.NCCT,)) -> Cohort:
    files = {volume: Path(f"{volume}.nii") for volume in volumes}
    rows = [
        CohortRow(n + 2, f"p{n}", "one", "", "", files, None, ClinicalRecord.model_validate(record), n % 2)
        for n, record in enumerate(records)
    ]
    return Cohort(Path(), tuple(rows))


def manifest(name: str) -> Manifest:
    return Manifest.model_validate_json((STORE / name / "1.0.0" / "manifest.json").read_bytes())


def test_version_tells_the_columns_that_it_does_not_predict_from() -> None:
    patients = cohort({"age": 70.0, "inr": 1.1}, {"platelets": 210.0}, volumes=(Input.NCCT, Input.CBV))
    network = unread_columns.of_version(patients, manifest("rlvo-synthetic"))
    assert network == "rlvo-synthetic 1.0.0 does not predict from the columns cbv, inr, platelets."
    logistic = unread_columns.of_version(patients, manifest("rlvo-synthetic-lr"))
    assert logistic == "rlvo-synthetic-lr 1.0.0 does not predict from the columns ncct, cbv, inr, platelets."


def test_column_that_is_read_in_one_row_is_not_named() -> None:
    """CTP is computed from where the maps were not sent."""
    first = cohort({"age": 70.0}, volumes=(Input.NCCT, Input.TMAX, Input.CBF, Input.CTP)).studies
    second = cohort({"age": 70.0}, volumes=(Input.NCCT, Input.CTP)).studies
    assert "ctp" in unread_columns.of_version(Cohort(Path(), first), manifest("rlvo-synthetic"))
    assert unread_columns.of_version(Cohort(Path(), (*first, *second)), manifest("rlvo-synthetic")) == ""


def test_rows_with_a_category_that_the_version_does_not_know_are_counted() -> None:
    patients = cohort(*[{"occlusion_site": "ica-cervical"}] * 3, {"occlusion_site": "m2"})
    (line,) = unread_columns.of_version(patients, manifest("rlvo-synthetic")).splitlines()
    assert line.startswith("rlvo-synthetic 1.0.0, 3 rows: occlusion_site: the version does not know this category")
    assert "ica-cervical" not in line


@pytest.mark.parametrize(
    ("model", "expected"),
    [(PublishedModel.DAFT, "inr"), (PublishedModel.LOGISTIC, "ncct, inr"), (PublishedModel.IMAGING, "age, inr")],
)
def test_training_tells_the_columns_that_the_published_model_will_not_read(
    model: PublishedModel, expected: str
) -> None:
    line = unread_columns.of_training(cohort({"age": 70.0, "inr": 1.1}), model)
    assert line == f"The model {model} does not predict from the columns {expected}."
    if model is PublishedModel.DAFT:
        assert unread_columns.of_training(cohort({"age": 70.0}), model) == ""
    chosen = unread_columns.of_training(cohort({"age": 70.0, "inr": 1.1}), PublishedModel.DAFT, ("inr",))
    assert chosen == "The model daft does not predict from the columns age."
