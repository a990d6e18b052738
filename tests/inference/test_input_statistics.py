"""Statistics of prepared images, their distance from the training patients, and the flag that says what is unusual."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from app.inference import input_distance, model_version
from app.inference.input_statistics import InputMeter, Statistics
from app.inference.model_input import ModelInput
from app.inference.model_version import ModelVersion
from app.inference.reference_head import ReferenceHead
from app.registry.manifest import SCORES, InputGroup, Manifest, OutOfDistribution
from app.sdk.errors import ModelNotReady
from app.sdk.types import Channel
from app.training import input_limits
from tests.factory import CHANNELS, EVERY_STUDY, GRID, random_network, tiny_case, tiny_manifest

NAMES = tuple(Channel)
SPECS = tuple(CHANNELS[name] for name in NAMES)
PRESENT = np.ones(len(NAMES), bool)


def head() -> ReferenceHead:
    """A mask that is symmetric along x, and a smooth mean head inside it."""
    mask = np.zeros(GRID.shape, bool)
    mask[2:14, 2:14, 3:13] = True
    x, y, z = np.indices(GRID.shape)
    mean = np.stack([np.cos((x - 7.5) / (3 + n)) * np.sin(y / 4) * np.cos(z / 5) for n in range(len(NAMES))])
    return ReferenceHead(mask, (mean * mask).astype(np.float32))


def physical(rng: np.random.Generator) -> dict[Channel, np.ndarray]:
    """One patient in HU, HU, 0 to 1, s and ratio, which follows the mean head."""
    mean, shape = head().mean, GRID.shape
    base = 35 + rng.normal(0, 2)
    tubes = (rng.random(shape) < 0.08).astype(float)
    delayed = np.indices(shape)[0] < 6
    return {
        Channel.NCCT: base + 5 * mean[0] + rng.normal(0, 2, shape),
        Channel.CTA: base + 5 * mean[1] + 200 * tubes + rng.normal(0, 3, shape),
        Channel.VESSELS: tubes,
        Channel.TMAX: 2 + 6 * delayed + rng.normal(0, 0.5, shape),
        Channel.RCBF: 1 - 0.5 * delayed + 0.2 * mean[4] + rng.normal(0, 0.1, shape),
    }


def normalised(values: dict[Channel, np.ndarray]) -> np.ndarray:
    parts = [(np.clip(values[spec.name], *spec.window) - spec.mean) / spec.std for spec in SPECS]
    return np.stack(parts).astype(np.float32)


def meter() -> InputMeter:
    return InputMeter(SPECS, GRID, head())


def measured(values: dict[Channel, np.ndarray], present: np.ndarray = PRESENT) -> Statistics:
    return meter().measure(normalised(values) * present[:, None, None, None], present)


@pytest.fixture(scope="module")
def groups() -> tuple[InputGroup, ...]:
    return input_limits.fit([measured(physical(np.random.default_rng([1, n]))) for n in range(120)])


def test_statistics_are_in_the_units_of_the_modality() -> None:
    values = physical(np.random.default_rng(0))
    values[Channel.NCCT] = np.full(GRID.shape, 40.0)
    values[Channel.NCCT][:, :, 9:] = 0
    values[Channel.TMAX] = np.where(np.indices(GRID.shape)[0] < 6, 8.0, 2.0)
    found = measured(values)
    voxel_ml = 12 * 14 * 12 / 1000
    assert found["ncct"]["no-data"] == pytest.approx(0.4)
    assert found["ncct"]["median"] == pytest.approx(40, abs=1e-3)
    assert found["ncct"]["texture"] == pytest.approx(0, abs=1e-3)
    assert found["tmax"]["delayed"] == pytest.approx(4 * 12 * 10 * voxel_ml)
    assert found["tmax"]["asymmetry"] == pytest.approx(6 * 8 / 12, abs=1e-3)
    assert found["vessels"]["volume"] == pytest.approx(values[Channel.VESSELS][head().mask].sum() * voxel_ml, rel=1e-5)
    assert found["vessels"]["thickness"] == pytest.approx(1)
    assert found["cta+vessels"]["contrast"] == pytest.approx(200, abs=10)


def test_statistics_do_not_depend_on_the_side() -> None:
    values = physical(np.random.default_rng(2))
    mirrored = {name: value[::-1] for name, value in values.items()}
    one, two = measured(values), measured(mirrored)
    assert {group: pytest.approx(own, abs=1e-4) for group, own in one.items()} == two


def test_absent_channels_are_not_measured_and_flag_nothing(groups: tuple[InputGroup, ...]) -> None:
    only_ncct = np.array([name is Channel.NCCT for name in NAMES])
    found = measured(physical(np.random.default_rng(3)), only_ncct)
    assert set(found) == {"ncct"}
    assert input_distance.unusual(groups, found) == []


def test_empty_and_constant_channels_have_finite_statistics(groups: tuple[InputGroup, ...]) -> None:
    for level in (-1e9, 0.0, 1e9):
        found = measured({name: np.full(GRID.shape, level) for name in NAMES})
        assert all(np.isfinite(value) for own in found.values() for value in own.values())
        assert input_distance.unusual(groups, found)


def test_tensor_beyond_the_windows_has_finite_statistics() -> None:
    for scale in (5.0, -5.0, 1e30):
        image = np.random.default_rng(8).normal(0, 1, (len(NAMES), *GRID.shape)).astype(np.float32) * np.float32(scale)
        found = meter().measure(image, PRESENT)
        assert all(np.isfinite(value) for own in found.values() for value in own.values())


def test_score_of_a_quantile_is_its_normal_score_and_goes_on_beyond() -> None:
    knots = (1.0, 2.0, 4.0, 8.0, 16.0)
    assert input_distance.scores(knots, np.array(knots)) == pytest.approx(SCORES)
    beyond = input_distance.scores(knots, np.array([0.0, 24.0]))
    assert beyond == pytest.approx([SCORES[0] - 1.044, SCORES[-1] + 1.044])


def test_patients_like_those_of_the_training_are_not_unusual(groups: tuple[InputGroup, ...]) -> None:
    fresh = [measured(physical(np.random.default_rng([2, n]))) for n in range(120)]
    assert np.mean([bool(input_distance.unusual(groups, one)) for one in fresh]) <= 0.03


@pytest.mark.parametrize(
    ("changed", "group", "words"),
    [
        ({Channel.NCCT: lambda v: v[Channel.NCCT] + 30}, "ncct", r"NCCT: .*median in the brain \d+ HU is high"),
        ({Channel.CTA: lambda v: v[Channel.NCCT]}, "cta+vessels", r"CTA and vessel mask: contrast .* is low"),
        ({Channel.VESSELS: lambda v: v[Channel.VESSELS] + 0.5}, "vessels", "volume of the arteries .* mL is high"),
        ({Channel.TMAX: lambda v: v[Channel.TMAX] * 10}, "tmax", r"Tmax: .* s is high .*; check that the map is Tmax"),
        (
            {Channel.TMAX: lambda v: v[Channel.RCBF] * 4, Channel.RCBF: lambda v: v[Channel.TMAX] / 4},
            "rcbf",
            "relative CBF: .* is high .*; check that the map is CBF",
        ),
        ({Channel.NCCT: lambda v: v[Channel.NCCT][..., ::-1]}, "ncct", "likeness .* is low"),
        ({Channel.CTA: lambda v: np.where(np.indices(GRID.shape)[2] > 6, 0, v[Channel.CTA])}, "cta", "without data"),
    ],
)
def test_wrong_input_is_named_with_what_is_unusual(
    groups: tuple[InputGroup, ...], changed: dict[Channel, object], group: str, words: str
) -> None:
    values = physical(np.random.default_rng(4))
    assert input_distance.unusual(groups, measured(values)) == []
    wrong = {name: make(values) for name, make in changed.items()}  # type: ignore[operator]
    found = {one.group.name: one for one in input_distance.unusual(groups, measured(values | wrong))}
    assert group in found
    assert re.search(words, found[group].describe()), found[group].describe()


def test_image_that_is_very_like_the_mean_head_is_not_unusual(groups: tuple[InputGroup, ...]) -> None:
    values = physical(np.random.default_rng(5))
    values[Channel.NCCT] = 35 + 5 * head().mean[0] + np.random.default_rng(6).normal(0, 1.9, GRID.shape)
    symmetric = values[Channel.NCCT] + values[Channel.NCCT][::-1]
    values[Channel.NCCT] = 35 + (symmetric - 70) / np.sqrt(2)
    names = [one.group.name for one in input_distance.unusual(groups, measured(values))]
    assert "ncct" not in names


@pytest.fixture
def version(tmp_path: Path, groups: tuple[InputGroup, ...]) -> ModelVersion:
    features = EVERY_STUDY.model_copy(update={"limit": 1e9, "inputs": groups})
    manifest = tiny_manifest(channels=NAMES).model_copy(update={"channels": SPECS, "out_of_distribution": features})
    folds = [random_network(manifest.architecture, seed) for seed in (0, 1)]
    folder = tmp_path / manifest.name / manifest.version
    model_version.save(folder, manifest, folds, reference=head())
    stored = Manifest.model_validate_json((folder / "manifest.json").read_bytes())
    assert stored.out_of_distribution == features
    return ModelVersion.load(folder, stored, "cpu")


def case(version: ModelVersion, values: dict[Channel, np.ndarray]) -> ModelInput:
    return replace(tiny_case(version.manifest), image=normalised(values))


def test_answer_says_which_input_is_unusual(version: ModelVersion) -> None:
    values = physical(np.random.default_rng(7))
    assert version.predict(case(version, values)).flags == ()
    values[Channel.TMAX] = values[Channel.TMAX] / 60
    flags = version.predict(case(version, values)).flags
    assert {flag.code for flag in flags} == {"out-of-distribution"}
    (detail,) = (flag.detail for flag in flags if flag.detail.startswith("Tmax: "))
    assert "is low (usual" in detail
    assert "check that the map is Tmax in seconds" in detail


def test_version_without_input_statistics_is_served_as_before(version: ModelVersion) -> None:
    values = physical(np.random.default_rng(7))
    values[Channel.TMAX] = values[Channel.TMAX] / 60
    limits = version.manifest.out_of_distribution
    assert limits is not None
    document = limits.model_dump()
    del document["inputs"]  # as in manifests of earlier releases
    earlier = OutOfDistribution.model_validate(document)
    version.manifest = version.manifest.model_copy(update={"out_of_distribution": earlier})
    assert version.predict(case(version, values)).flags == ()


def test_statistic_that_this_release_does_not_measure_is_refused(
    version: ModelVersion, groups: tuple[InputGroup, ...]
) -> None:
    (group, *_) = groups
    named = group.model_copy(update={"knots": {"entropy": next(iter(group.knots.values()))}, "correlation": ((1.0,),)})
    with pytest.raises(ModelNotReady, match="ncct entropy"):
        input_distance.check([named])
    input_distance.check(groups)


@pytest.mark.parametrize(
    "damage",
    [
        {"correlation": ((1.0, 0.5), (0.4, 1.0))},
        {"correlation": ((1.0, 1.0), (1.0, 1.0))},
        {"correlation": ((1.0,),)},
        {"knots": {"median": (1, 2, 3, 4, 5), "p90": (1, 2, 2, 4, 5)}},
        {"limit": -1.0},
        {"name": "tmax "},
    ],
)
def test_damaged_limits_are_refused(damage: dict[str, object]) -> None:
    good = {
        "name": "tmax",
        "knots": {"median": (1, 2, 3, 4, 5), "p90": (1, 2, 3, 4, 5)},
        "correlation": ((1.0, 0.5), (0.5, 1.0)),
        "limit": 9.0,
    }
    assert InputGroup.model_validate(good).limit == 9
    with pytest.raises(ValueError):  # noqa: PT011 - each field has its own message
        InputGroup.model_validate(good | damage)
