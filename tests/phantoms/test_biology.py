from __future__ import annotations

import numpy as np
import pytest

from app.evaluation.metrics import auc
from app.phantoms import biology
from app.phantoms.biology import Preset

CHANCES = biology.draw_random(120_000, 3)


@pytest.fixture(scope="module")
def columns() -> dict[str, np.ndarray]:
    return biology.process(CHANCES, Preset.PAPER)


def test_prevalences_are_those_of_the_literature(columns: dict[str, np.ndarray]) -> None:
    found = {name: columns[name].mean() for name in ("atrial_fibrillation", "hypertension", "diabetes")}
    assert found == pytest.approx({"atrial_fibrillation": 0.38, "hypertension": 0.65, "diabetes": 0.24}, abs=0.006)
    assert columns["age"].mean() == pytest.approx(74, abs=0.1)


@pytest.mark.parametrize(
    ("name", "column"),
    [
        ("truncal", "truncal"),
        ("intensity", "intensity"),
        ("length", "clot_length_mm"),
        ("density", "clot_hu"),
        ("calcified", "calcified"),
    ],
)
def test_the_standard_constants_are_those_of_the_process(
    columns: dict[str, np.ndarray], name: str, column: str
) -> None:
    mean, deviation = biology.STANDARD[name]
    assert columns[column].mean() == pytest.approx(mean, abs=0.02 * deviation)
    assert columns[column].std() == pytest.approx(deviation, rel=0.02)


@pytest.mark.parametrize(
    ("preset", "prevalence", "oracle"),
    [(Preset.PAPER, 0.158, 0.780), (Preset.INTERACTION, 0.148, 0.799), (Preset.NULL, 0.158, 0.5)],
)
def test_a_preset_has_its_prevalence_and_its_oracle(preset: Preset, prevalence: float, oracle: float) -> None:
    found = biology.process(CHANCES, preset)
    labels = found["refractory"].astype(np.int64)
    assert labels.mean() == pytest.approx(prevalence, abs=0.004)
    assert auc(labels, found["probability"]) == pytest.approx(oracle, abs=0.008)


def test_xor_lies_in_the_product_alone() -> None:
    found = biology.process(CHANCES, Preset.XOR)
    labels = found["refractory"].astype(np.int64)
    assert auc(labels, found["probability"]) > 0.97
    assert auc(labels, found["clinical_score"]) == pytest.approx(0.5, abs=0.05)
    assert auc(labels, found["imaging_score"]) == pytest.approx(0.5, abs=0.05)


def test_chances_are_calibrated_by_construction(columns: dict[str, np.ndarray]) -> None:
    order = np.argsort(columns["probability"])
    for part in np.array_split(order, 10):
        said, was = columns["probability"][part].mean(), columns["refractory"][part].mean()
        assert was == pytest.approx(said, abs=4 * np.sqrt(said * (1 - said) / len(part)))


def test_a_patient_is_the_same_in_a_cohort_of_any_size() -> None:
    assert biology.draw(40, 7)[:5] == biology.draw(5, 7)
    assert biology.draw(5, 7) != biology.draw(5, 8)


def test_lesions_nest(columns: dict[str, np.ndarray]) -> None:
    assert (columns["core_ml"] < columns["intensity"] * columns["tmax6_ml"]).all()
    assert (columns["core_ml"] >= 0).all()
