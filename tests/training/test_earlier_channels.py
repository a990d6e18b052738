"""A version whose channels an earlier release defined is scored on images that are prepared for it."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from app.inference import defaults, preprocess_cache
from app.phantoms.biology import Preset
from app.phantoms.cohort import write_patient
from app.sdk.types import Channel, Input
from app.training import cohort, provenance
from app.training.errors import CohortFault
from app.training.progress import ProgressReporter, RichProgress
from app.training.score import EvalConfig, _predicted, predict_cohort, predict_unlabelled
from app.training.synthesize import synthesize

STORE = Path(__file__).resolve().parents[2] / "model_store"
EARLIER, LOGISTIC = STORE / "rlvo-synthetic" / "1.0.0", STORE / "rlvo-synthetic-lr" / "1.0.0"
NEW = STORE / "rlvo-synthetic" / "2.3.0"
COARSE = {"ncct": (2.0, 2.0, 4.0), "cta": (2.0, 2.0, 2.0), "perfusion": (4.0, 4.0, 8.0)}


def test_study_is_prepared_for_each_layout_of_channels(tmp_path: Path) -> None:
    paths = write_patient(tmp_path / "patient", 5, spacing_mm=COARSE)
    volumes = {Input.NCCT: paths["ncct"]}
    earlier = provenance.channels_of(provenance.read_manifest(EARLIER))
    now, before = (
        preprocess_cache.prepare_cached(volumes, tmp_path / "cache", channels).image[0].astype(np.float32)
        for channels in (defaults.CHANNELS, earlier)
    )
    assert len(list((tmp_path / "cache").iterdir())) == 2
    assert [channel.parts for channel in earlier] == [1] * 5
    assert defaults.CHANNELS[0].name is Channel.NCCT
    brain = (before > -0.5) & (before < 0.5)
    assert np.median((now - before)[brain]) * defaults.CHANNELS[0].std > 1  # HU; the brightest part is brighter
    again = preprocess_cache.prepare_cached(volumes, tmp_path / "cache", earlier)
    assert np.array_equal(again.image[0].astype(np.float32), before)


def test_cohort_that_came_prepared_is_refused_for_a_network_that_sees_other_images(tmp_path: Path) -> None:
    synthesize(tmp_path / "cohort", 40, 3, Preset.INTERACTION)
    with pytest.raises(CohortFault, match="another grid or other channels"):
        predict_cohort(EvalConfig([EARLIER], tmp_path / "cohort", i_know=True), ProgressReporter())
    scored = predict_cohort(EvalConfig([LOGISTIC], tmp_path / "cohort", i_know=True), ProgressReporter())
    (predicted,) = scored.predictions.values()
    assert len(predicted.probabilities) == 40  # a logistic regression sees no image


def test_versions_of_two_layouts_are_scored_on_one_cohort(tmp_path: Path) -> None:
    synthesize(tmp_path / "cohort", 2, 3, Preset.INTERACTION, full_size=True)
    manifests = [provenance.read_manifest(folder) for folder in (EARLIER, NEW)]
    read = cohort.read_unlabelled(tmp_path / "cohort", manifests[0].training.target)
    config = EvalConfig([EARLIER, NEW], tmp_path / "cohort", i_know=True)
    bars = RichProgress(Console(file=io.StringIO(), force_terminal=True))
    both = _predicted(manifests, read, read, config, bars, needs_outcomes=False).predictions
    alone = predict_unlabelled(EvalConfig([NEW], tmp_path / "cohort", i_know=True), ProgressReporter()).predictions
    assert set(both) == {"rlvo-synthetic 1.0.0", "rlvo-synthetic 2.3.0"}
    for name, expected in alone.items():
        assert np.array_equal(both[name].probabilities, expected.probabilities)
