from __future__ import annotations

import numpy as np
import pytest

from app.evaluation.metrics import auc
from app.phantoms import biology
from app.phantoms.biology import Preset

DRAWS = biology.draw_random(120_000, 3)


@pytest.fixture(scope="module")
def columns() -> dict[str, np.ndarray]:
    return biology.process(DRAWS, Preset.PAPER)


def test_prevalences_equal_the_literature(columns: dict[str, np.ndarray]) -> None:
    found = {name: columns[name].mean() for name in ("atrial_fibrillation", "hypertension", "diabetes")}
    assert found == pytest.approx({"atrial_fibrillation": 0.38, "hypertension": 0.65, "diabetes": 0.24}, abs=0.006)
    assert columns["age"].mean() == pytest.approx(74, abs=0.043)  # measured 0.033


def test_odds_ratios_are_those_of_docs_training(columns: dict[str, np.ndarray]) -> None:
    outcome = columns["refractory"].astype(bool)
    for name, expected in {"atrial_fibrillation": 0.29, "diabetes": 1.87, "smoking": 2.21}.items():
        exposed = columns[name].astype(bool)
        odds = [(outcome & each).sum() / (~outcome & each).sum() for each in (exposed, ~exposed)]
        assert odds[0] / odds[1] == pytest.approx(expected, rel=0.05), name


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
def test_standard_constants_equal_the_process(columns: dict[str, np.ndarray], name: str, column: str) -> None:
    mean, deviation = biology.STANDARD[name]
    assert columns[column].mean() == pytest.approx(mean, abs=0.0073 * deviation)  # measured 0.0056
    assert columns[column].std() == pytest.approx(deviation, rel=0.0052)  # measured 0.0040


@pytest.mark.parametrize(
    ("preset", "prevalence", "oracle"),
    [(Preset.PAPER, 0.158, 0.780), (Preset.INTERACTION, 0.148, 0.799), (Preset.NULL, 0.158, 0.5)],
)
def test_preset_has_its_prevalence_and_oracle_auc(preset: Preset, prevalence: float, oracle: float) -> None:
    found = biology.process(DRAWS, preset)
    labels = found["refractory"].astype(np.int64)
    assert labels.mean() == pytest.approx(prevalence, abs=0.0013)  # measured 0.0010
    assert auc(labels, found["probability"]) == pytest.approx(oracle, abs=0.0027)  # measured 0.0021


def test_xor_outcome_depends_only_on_the_product() -> None:
    found = biology.process(DRAWS, Preset.XOR)
    labels = found["refractory"].astype(np.int64)
    assert auc(labels, found["probability"]) > 0.9935  # measured 0.9950
    assert auc(labels, found["clinical_score"]) == pytest.approx(0.5, abs=0.0415)  # measured 0.0319
    assert auc(labels, found["imaging_score"]) == pytest.approx(0.5, abs=0.0389)  # measured 0.0299


def test_probabilities_are_calibrated(columns: dict[str, np.ndarray]) -> None:
    order = np.argsort(columns["probability"])
    for part in np.array_split(order, 10):
        expected, observed = columns["probability"][part].mean(), columns["refractory"][part].mean()
        standard_error = np.sqrt(expected * (1 - expected) / len(part))
        assert observed == pytest.approx(expected, abs=1.33 * standard_error)  # measured 1.02 standard errors


def test_patient_does_not_depend_on_cohort_size() -> None:
    assert biology.draw(40, 7)[:5] == biology.draw(5, 7)
    assert biology.draw(5, 7) != biology.draw(5, 8)


def test_core_lies_within_tmax10(columns: dict[str, np.ndarray]) -> None:
    assert (columns["core_ml"] < columns["intensity"] * columns["tmax6_ml"]).all()
    assert (columns["core_ml"] >= 0).all()
