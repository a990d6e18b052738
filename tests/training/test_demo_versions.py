"""The versions in model_store: that they load, say what they are, and are as good as docs/experiments.md says."""

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
from app.training import evaluate
from app.training.dataset import Dataset, phantoms

STORE = Path(__file__).resolve().parents[2] / "model_store"
NAMES = ("rlvo-synthetic", "rlvo-synthetic-lr")
FRESH, SEED = 2000, 90210  # a cohort that training never saw
MORE = (90211, 90212, 90213, 90214)  # and more of them, where one has too few events


def load(name: str) -> tuple[Path, Manifest, ModelVersion]:
    folder = STORE / name / "1.0.0"
    manifest = Manifest.model_validate_json((folder / "manifest.json").read_text())
    return folder, manifest, ModelVersion.load(folder, manifest, "cpu")


@pytest.mark.parametrize("name", NAMES)
def test_the_version_loads_and_gives_its_golden_answers(name: str) -> None:
    folder, manifest, model = load(name)
    assert len(manifest.folds) == 4
    assert model.check(folder) < 1e-4


@pytest.mark.parametrize("name", NAMES)
def test_it_says_that_it_is_synthetic(name: str) -> None:
    folder, manifest, _ = load(name)
    assert "synthetic" in manifest.name
    assert manifest.training.synthetic
    assert manifest.training.patients == 20_000
    card = (folder / "card.md").read_text()
    assert "**SYNTHETIC." in card
    for words in ("imaging + clinical, DAFT", "imaging + clinical, concatenation", "oracle", "## Limits"):
        assert words in card


def test_both_together_are_small() -> None:
    files = [path for name in NAMES for path in (STORE / name).rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 30 * 2**20


def test_the_frozen_test_part_was_near_the_oracle_and_calibrated() -> None:
    found = load("rlvo-synthetic")[1].metrics
    assert found["auc"].value > 0.75
    assert found["calibration_slope"].value == pytest.approx(1, abs=0.15)
    for name in ("conformal_coverage_positive", "conformal_coverage_negative"):
        assert found[name].value == pytest.approx(0.9, abs=0.03)


@dataclass(frozen=True)
class Fresh:
    """2000 patients that training never saw, and what both versions say of them."""

    data: Dataset
    manifest: Manifest
    daft: evaluate.VersionPredictions
    logistic: evaluate.VersionPredictions


@pytest.fixture(scope="module")
def fresh() -> Fresh:
    data = phantoms(FRESH, SEED, Preset.INTERACTION, defaults.GRID, defaults.CHANNELS)
    (_, manifest, daft), (_, _, logistic) = load(NAMES[0]), load(NAMES[1])
    return Fresh(data, manifest, evaluate.answer(daft, data), evaluate.answer(logistic, data))


def missed(why: str) -> pytest.MarkDecorator:
    """An aim that the version does not reach; only the aim itself may fail, not what leads there."""
    return pytest.mark.xfail(strict=True, raises=AssertionError, reason=why)


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_fresh_patients_are_calibrated_and_told_apart_better_than_by_the_record(fresh: Fresh) -> None:
    labels, chances = fresh.data.labels, fresh.daft.probabilities
    assert metrics.calibration_line(labels, chances)[0] == pytest.approx(1, abs=0.1)
    assert metrics.calibration_error(labels, chances) < 0.03
    assert covered(fresh.daft, labels, 0).mean() == pytest.approx(level(fresh.manifest), abs=0.02)
    assert metrics.delong(labels, chances, fresh.logistic.probabilities).low > 0


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_fresh_patients_are_told_apart_nearly_as_by_the_oracle(fresh: Fresh) -> None:
    labels, oracle = fresh.data.labels, fresh.data.oracle
    assert oracle is not None
    assert metrics.auc(labels, oracle) - metrics.auc(labels, fresh.daft.probabilities) < 0.03


@pytest.mark.soak
@pytest.mark.timeout(1800)
@missed(
    "of these 293 events the true chances themselves cover 0.874: a share of 0.9 has a standard error of 0.018 there"
)
def test_fresh_events_are_covered_within_two_points(fresh: Fresh) -> None:
    assert covered(fresh.daft, fresh.data.labels, 1).mean() == pytest.approx(level(fresh.manifest), abs=0.02)


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_both_classes_are_covered_within_two_points_over_five_fresh_cohorts(fresh: Fresh) -> None:
    model = load(NAMES[0])[2]
    found = {value: [covered(fresh.daft, fresh.data.labels, value)] for value in (0, 1)}
    for seed in MORE:
        data = phantoms(FRESH, seed, Preset.INTERACTION, defaults.GRID, defaults.CHANNELS)
        said = evaluate.answer(model, data)
        for value, shares in found.items():
            shares.append(covered(said, data.labels, value))
    for shares in found.values():
        assert np.concatenate(shares).mean() == pytest.approx(level(fresh.manifest), abs=0.02)


def covered(said: evaluate.VersionPredictions, labels: NDArray[np.int64], value: int) -> NDArray[np.bool_]:
    """Which of the patients of a class it did not exclude from it."""
    kept: NDArray[np.bool_] = said.kept[labels == value, value]
    return kept


def level(manifest: Manifest) -> float:
    assert manifest.conformal is not None
    return manifest.conformal.level
