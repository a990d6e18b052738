"""Detection of the side of the occlusion, on phantoms with a known side."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from app.inference import occlusion_side
from app.inference.attribution import atlas
from app.inference.defaults import CHANNELS, GRID
from app.phantoms import biology, cohort
from app.phantoms.biology import Preset
from app.sdk.clinical import Side
from app.sdk.types import Channel

PATIENTS = 12


@pytest.fixture(scope="module")
def phantoms() -> list[tuple[str, np.ndarray]]:
    patients = biology.draw(PATIENTS, 5, Preset.INTERACTION)
    images = cohort.images(patients, 5, GRID, CHANNELS)
    return [
        ("left" if patient.left else "right", np.asarray(image, np.float32))
        for patient, image in zip(patients, images, strict=True)
    ]


# Delay is always sufficient, low flow mostly, arteries seldom, because collaterals fill them on both sides.
@pytest.mark.parametrize(
    ("only", "known"), [(None, PATIENTS), (Channel.TMAX, PATIENTS), (Channel.RCBF, PATIENTS // 2), (Channel.VESSELS, 1)]
)
def test_side_is_never_wrong_and_mostly_known(
    phantoms: list[tuple[str, np.ndarray]], only: Channel | None, known: int
) -> None:
    presence = np.asarray([only is None or spec.name is only for spec in CHANNELS])
    shown = [
        occlusion_side.shown_sides(image * presence[:, None, None, None], presence, CHANNELS, GRID)
        for _, image in phantoms
    ]
    assert all(side == truth for sides, (truth, _) in zip(shown, phantoms, strict=True) for side in sides.values())
    assert sum(bool(sides) for sides in shown) >= known


def test_mirrored_patient_has_the_other_side(phantoms: list[tuple[str, np.ndarray]]) -> None:
    present = np.ones(len(CHANNELS), bool)
    for truth, image in phantoms[:4]:
        shown = occlusion_side.shown_sides(np.ascontiguousarray(image[:, ::-1]), present, CHANNELS, GRID)
        assert shown
        assert truth not in shown.values()


def test_ncct_alone_gives_no_side(phantoms: list[tuple[str, np.ndarray]]) -> None:
    presence = np.asarray([spec.name is Channel.NCCT for spec in CHANNELS])
    assert occlusion_side.shown_sides(phantoms[0][1], presence, CHANNELS, GRID) == {}


@pytest.mark.parametrize("mirrored", [Channel.TMAX, Channel.RCBF])
def test_mirrored_maps_contradict_the_record_or_each_other(
    phantoms: list[tuple[str, np.ndarray]], mirrored: Channel
) -> None:
    """Without a record one mirrored map contradicts the other map."""
    present = np.ones(len(CHANNELS), bool)
    seen = 0
    for truth, image in phantoms:
        changed = image.copy()
        index = [spec.name for spec in CHANNELS].index(mirrored)
        changed[index] = changed[index, ::-1]
        shown = occlusion_side.shown_sides(changed, present, CHANNELS, GRID)
        if mirrored in shown:
            seen += 1
            side, flags = occlusion_side.compare(Side(truth), shown)
            assert side is None
            assert [flag.code for flag in flags] == ["side-contradiction"]
    assert seen >= PATIENTS // 2


LEFT, RIGHT = Side.LEFT, Side.RIGHT


@pytest.mark.parametrize(
    ("recorded", "shown", "side", "codes"),
    [
        (LEFT, {Channel.TMAX: LEFT, Channel.VESSELS: LEFT}, LEFT, []),
        (LEFT, {}, LEFT, []),
        (None, {}, None, []),
        (None, {Channel.TMAX: RIGHT, Channel.VESSELS: RIGHT}, RIGHT, ["side-from-images"]),
        (LEFT, {Channel.VESSELS: RIGHT}, None, ["side-contradiction"]),
        (None, {Channel.TMAX: LEFT, Channel.VESSELS: RIGHT}, None, ["side-contradiction"]),
    ],
)
def test_known_sides_are_compared(
    recorded: Side | None, shown: dict[Channel, Side], side: Side | None, codes: list[str]
) -> None:
    result, flags = occlusion_side.compare(recorded, shown)
    assert result == side
    assert [flag.code for flag in flags] == codes


def test_relative_side_of_regions() -> None:
    assert atlas.relative_side("left MCA M1", "left") == "affected"
    assert atlas.relative_side("right MCA M1", "left") == "contralateral"
    assert atlas.relative_side("brainstem and cerebellum", "left") is None
    assert atlas.relative_side("left MCA M1", None) is None


@pytest.mark.parametrize("tilt", [-0.4, 0.4])
def test_tilted_slab_of_a_flow_map_shows_no_wrong_side(phantoms: list[tuple[str, np.ndarray]], tilt: float) -> None:
    """The lower edge of the slab is higher on one side, so this side has less data."""
    x, _, z = np.meshgrid(
        *[np.arange(n) * 4.0 + GRID.affine[axis][3] for axis, n in enumerate(GRID.shape)], indexing="ij"
    )
    presence = np.asarray([spec.name is Channel.RCBF for spec in CHANNELS])
    index = [spec.name for spec in CHANNELS].index(Channel.RCBF)
    for truth, image in phantoms:
        changed = image.copy()
        changed[index][z < tilt * x - 6] = -CHANNELS[index].mean / CHANNELS[index].std
        shown = occlusion_side.shown_sides(changed, presence, CHANNELS, GRID)
        assert shown.get(Channel.RCBF, truth) == truth


def test_regions_of_the_sides_do_not_follow_the_atlas_of_explanations() -> None:
    """Other voxels would change what side is found, and so the answers of versions that mirror the images."""
    affine = ((4.0, 0.0, 0.0, -78.0), (0.0, 4.0, 0.0, -112.0), (0.0, 0.0, 4.0, -74.0), (0.0, 0.0, 0.0, 1.0))
    before = atlas.labels((40, 48, 40), affine, atlas.BEFORE)
    expected = "127117e8765df04f56bf9e4b23bee798b2f2b19ea2e7040eb379cd1604fa63d5"
    assert hashlib.sha256(before.astype(np.uint8).tobytes()).hexdigest() == expected
    named = [atlas.NAMES.index(f"{side} {region}") for side in ("left", "right") for region in ("MCA M1", "insula")]
    left, right = occlusion_side._halves((40, 48, 40), affine, occlusion_side._DEEP)
    assert np.array_equal(left | right, np.isin(before, named))
    assert not np.array_equal(before, atlas.labels((40, 48, 40), affine))
