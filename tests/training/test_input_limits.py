"""Quantiles, correlations and limits of input statistics, and the tool that adds them to a trained version."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.stats import chi2

from app.imaging.model_grid import ChannelSpec
from app.inference import defaults, input_distance, model_version
from app.inference.input_statistics import InputMeter, Statistics
from app.inference.model_version import ModelVersion
from app.inference.reference_head import ReferenceHead
from app.phantoms import biology
from app.phantoms import cohort as phantom_cohort
from app.phantoms.biology import Preset
from app.registry.manifest import InputGroup, Manifest
from app.sdk.types import Channel
from app.training import input_limits, reference
from tests.factory import EVERY_STUDY, GRID, random_network, tiny_case, tiny_manifest
from tests.training.tiny import GRID as GRID_8
from tests.training.tiny import tiny_dataset
from tools import input_limits as tool

DRAWN, FRESH = 400, 4000


def patients(count: int, seed: int, *, skewed: bool = False) -> list[Statistics]:
    """Statistics of two groups; the second is known of half of the patients, and its statistics are correlated."""
    rng = np.random.default_rng(seed)
    found: list[Statistics] = []
    for number in range(count):
        median, shared = rng.normal(32, 4), rng.normal()
        volume = float(np.exp(rng.normal(2, 0.6))) if skewed else rng.normal(9, 3)
        one: Statistics = {"ncct": {"median": median}}
        if number % 2:
            one["vessels"] = {"volume": volume + 3 * shared, "asymmetry": 1 + 0.5 * shared + 0.2 * rng.normal()}
        found.append(one)
    return found


def share_flagged(groups: tuple[InputGroup, ...], measured: list[Statistics]) -> float:
    return float(np.mean([bool(input_distance.unusual(groups, one)) for one in measured]))


@pytest.mark.parametrize("skewed", [False, True])
def test_few_new_patients_exceed_the_limits(skewed: bool) -> None:
    groups = input_limits.fit(patients(DRAWN, 1, skewed=skewed))
    assert share_flagged(groups, patients(FRESH, 2, skewed=skewed)) < 0.02


def test_unusual_together_is_found_where_each_alone_is_usual() -> None:
    groups = input_limits.fit(patients(DRAWN, 1))
    together: Statistics = {"vessels": {"volume": 0.0, "asymmetry": 2.1}}
    (found,) = input_distance.unusual(groups, together)
    assert "unusual together" in found.describe()
    alone: list[Statistics] = [
        {"vessels": {"volume": 16.0, "asymmetry": 1.8}},
        {"vessels": {"volume": 2.0, "asymmetry": 0.6}},
    ]
    assert share_flagged(groups, alone) == 0


def test_cohort_that_is_too_alike_does_not_narrow_the_limits() -> None:
    groups = input_limits.fit([{"tmax": {"median": 2.0, "texture": 0.3}}] * 100)
    least = input_limits.LEAST_SPREAD["tmax"]["median"]
    assert groups[0].limit == pytest.approx(chi2.ppf(input_limits.LEAST_QUANTILE, 2), abs=1e-3)
    assert share_flagged(groups, [{"tmax": {"median": 2 + 2 * least, "texture": 0.3}}]) == 0
    assert share_flagged(groups, [{"tmax": {"median": 2 + 4 * least, "texture": 0.3}}]) == 1


def test_input_that_few_patients_have_is_not_compared() -> None:
    few: list[Statistics] = [{"tmax": {"median": 2.0}}] * (input_limits.LEAST_PATIENTS - 1)
    measured = [*patients(100, 3), *few]
    assert {group.name for group in input_limits.fit(measured)} == {"ncct", "vessels"}
    assert input_limits.fit(few) == ()
    for one in measured[:20]:
        one.setdefault("ncct", {})["texture"] = 3.0
    assert all("texture" not in group.knots for group in input_limits.fit(measured))


def test_missing_statistic_is_left_out() -> None:
    measured = patients(DRAWN, 4)
    for one in measured[1:80:2]:
        del one["vessels"]["asymmetry"]
    groups = input_limits.fit(measured)
    assert share_flagged(groups, [{"vessels": {"volume": 9.0}}]) == 0
    assert share_flagged(groups, [{"vessels": {"volume": 60.0}}]) == 1


def test_statistics_are_learnt_of_the_chosen_patients() -> None:
    brightness = np.where(np.arange(120) < 80, 1.0, 3.0)
    data = tiny_dataset(np.zeros(120), brightness, np.zeros(120))
    mask = np.ones(GRID_8.shape, bool)
    head = ReferenceHead(mask, np.zeros((1, *GRID_8.shape), np.float32))
    channels = (ChannelSpec(name=Channel.NCCT, window=(-100.0, 100.0), mean=30.0, std=10.0),)
    groups = input_limits.learn(data, np.arange(80), channels, GRID_8, head, 1)
    assert [group.name for group in groups] == ["ncct"]
    meter = InputMeter(channels, GRID_8, head)
    measured = [meter.measure(image.astype(np.float32), np.ones(1, bool)) for image in data.images]
    assert measured[0]["ncct"]["median"] == pytest.approx(30, abs=0.3)
    assert share_flagged(groups, measured[:80]) <= 0.05
    assert share_flagged(groups, measured[80:]) == 1


def test_phantoms_of_other_patients_are_usual_and_exchanged_images_are_not() -> None:
    grid, channels = defaults.GRID, defaults.CHANNELS
    persons = biology.draw(70, 4, Preset.INTERACTION)
    images = [image.astype(np.float32) for image in phantom_cohort.images(persons, 4, grid, channels, offsets=1)]
    mask = reference.intracranial(grid)
    meter = InputMeter(channels, grid, ReferenceHead(mask, (np.mean(images[:50], axis=0) * mask).astype(np.float32)))
    present = np.ones(len(channels), bool)
    groups = input_limits.fit([meter.measure(image, present) for image in images[:50]])
    assert {"ncct", "cta", "vessels", "tmax", "rcbf", "tmax+rcbf"} <= {group.name for group in groups}
    assert share_flagged(groups, [meter.measure(image, present) for image in images[50:]]) <= 0.1
    exchanged = [meter.measure(image[[1, 0, 2, 4, 3]], present) for image in images[50:]]
    assert share_flagged(groups, exchanged) == 1


def test_tool_writes_a_copy_that_answers_as_before_and_knows_the_limits(tmp_path: Path) -> None:
    manifest = tiny_manifest().model_copy(update={"out_of_distribution": EVERY_STUDY})
    mask = np.zeros(GRID.shape, bool)
    mask[3:13, 2:14, 4:12] = True
    reference = ReferenceHead(mask, np.zeros((2, *GRID.shape), np.float32))
    folds = [random_network(manifest.architecture, seed) for seed in (0, 1)]
    folder, out = tmp_path / "tiny" / "1.0.0", tmp_path / "other" / "tiny" / "1.0.1"
    model_version.save(
        folder, manifest, folds, golden=[tiny_case(manifest)], card="# A tiny version\n", reference=reference
    )
    stored = Manifest.model_validate_json((folder / "manifest.json").read_bytes())
    groups = input_limits.fit(patients(100, 5))
    written = tool.write(folder, out, stored, groups)
    assert written == Manifest.model_validate_json((out / "manifest.json").read_bytes())
    assert written.out_of_distribution == EVERY_STUDY.model_copy(update={"inputs": groups})
    assert written.version == "1.0.1"
    assert (out / "card.md").read_text() == "# A tiny version\n"
    assert ModelVersion.load(out, written, "cpu").check(out) == 0
    assert {path.name for path in out.iterdir()} == {path.name for path in folder.iterdir()}


def test_tool_refuses_a_version_without_a_reference_head(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="train it again"):
        tool.learn(tmp_path, tmp_path, tiny_manifest(), 1)
