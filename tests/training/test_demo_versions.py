"""The versions in model_store: they load, are marked as synthetic, and are as good as docs/experiments.md states."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from app.evaluation import metrics
from app.inference import defaults
from app.inference.model_version import ModelVersion
from app.phantoms.biology import Preset
from app.registry.manifest import Manifest
from app.training import score
from app.training.dataset import Dataset, phantoms

STORE = Path(__file__).resolve().parents[2] / "model_store"
NAMES, VERSION = ("rlvo-synthetic", "rlvo-synthetic-lr"), "2.3.0"
EARLIER = "1.0.0"  # a manifest of schema 1, which is still served
FRESH, SEED = 2000, 90210  # a cohort that training did not use
MORE = (90211, 90212, 90213, 90214)  # more cohorts, for the check that needs more events


def load(name: str) -> tuple[Path, Manifest, ModelVersion]:
    folder = STORE / name / VERSION
    manifest = Manifest.model_validate_json((folder / "manifest.json").read_text())
    return folder, manifest, ModelVersion.load(folder, manifest, "cpu")


@pytest.mark.parametrize("name", NAMES)
def test_version_loads_and_reproduces_its_golden_cases(name: str) -> None:
    folder, manifest, model = load(name)
    assert len(manifest.folds) == 4
    assert model.check(folder) < 1e-4


@pytest.mark.parametrize("name", NAMES)
def test_version_is_marked_as_synthetic(name: str) -> None:
    folder, manifest, _ = load(name)
    assert "synthetic" in manifest.name
    assert manifest.training.synthetic
    assert manifest.training.patients == 12_000
    card = (folder / "card.md").read_text()
    assert "**SYNTHETIC." in card
    for text in ("imaging + clinical, DAFT", "imaging + clinical, concatenation", "oracle", "## Limits"):
        assert text in card


@pytest.mark.parametrize("name", NAMES)
def test_version_of_schema_1_is_still_served(name: str) -> None:
    folder = STORE / name / EARLIER
    manifest = Manifest.model_validate_json((folder / "manifest.json").read_text())
    assert (manifest.schema_version, manifest.reference_head, manifest.architecture.box) == (1, None, None)
    assert ModelVersion.load(folder, manifest, "cpu").check(folder) < 1e-4


def test_both_versions_have_at_most_30_megabytes() -> None:
    files = [path for name in NAMES for path in (STORE / name).rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 30 * 2**20


def test_metrics_of_the_test_part_are_good_and_calibrated() -> None:
    measured = load("rlvo-synthetic")[1].metrics
    assert measured["auc"].value > 0.75
    assert measured["calibration_slope"].value == pytest.approx(1, abs=0.1)
    for name in ("conformal_coverage_positive", "conformal_coverage_negative"):
        assert measured[name].value == pytest.approx(0.9, abs=0.03)


@dataclass(frozen=True)
class Fresh:
    """2000 patients that training did not use, and the predictions of both versions."""

    data: Dataset
    manifest: Manifest
    daft: score.VersionPredictions
    logistic: score.VersionPredictions


@pytest.fixture(scope="module")
def fresh() -> Fresh:
    data = phantoms(FRESH, SEED, Preset.INTERACTION, defaults.GRID, defaults.CHANNELS)
    (_, manifest, daft), (_, _, logistic) = load(NAMES[0]), load(NAMES[1])
    return Fresh(data, manifest, score.predict_all(daft, data), score.predict_all(logistic, data))


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_fresh_patients_are_calibrated_and_discriminated_better_than_by_the_record(fresh: Fresh) -> None:
    labels, probabilities = fresh.data.labels, fresh.daft.probabilities
    assert metrics.calibration_slope(labels, probabilities).value == pytest.approx(1, abs=0.1)
    assert metrics.calibration_error(labels, probabilities) < 0.03
    assert covered(fresh.daft, labels, 0).mean() == pytest.approx(level(fresh.manifest), abs=0.02)
    assert metrics.delong(labels, probabilities, fresh.logistic.probabilities).low > 0


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_fresh_patients_are_discriminated_almost_as_by_the_oracle(fresh: Fresh) -> None:
    labels, oracle = fresh.data.labels, fresh.data.oracle
    assert oracle is not None
    assert metrics.auc(labels, oracle) - metrics.auc(labels, fresh.daft.probabilities) < 0.03


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_fresh_events_are_covered_within_two_points(fresh: Fresh) -> None:
    assert covered(fresh.daft, fresh.data.labels, 1).mean() == pytest.approx(level(fresh.manifest), abs=0.02)


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_both_classes_are_covered_within_two_points_over_five_fresh_cohorts(fresh: Fresh) -> None:
    model = load(NAMES[0])[2]
    shares_by_class = {value: [covered(fresh.daft, fresh.data.labels, value)] for value in (0, 1)}
    for seed in MORE:
        data = phantoms(FRESH, seed, Preset.INTERACTION, defaults.GRID, defaults.CHANNELS)
        predictions = score.predict_all(model, data)
        for value, shares in shares_by_class.items():
            shares.append(covered(predictions, data.labels, value))
    for shares in shares_by_class.values():
        assert np.concatenate(shares).mean() == pytest.approx(level(fresh.manifest), abs=0.02)


def covered(predictions: score.VersionPredictions, labels: NDArray[np.int64], value: int) -> NDArray[np.bool_]:
    """For each patient of the class ``value``: whether the conformal set holds it."""
    kept: NDArray[np.bool_] = predictions.kept[labels == value, value]
    return kept


def level(manifest: Manifest) -> float:
    assert manifest.conformal is not None
    return manifest.conformal.level
