"""The side of the occlusion, read off phantoms that know theirs."""

from __future__ import annotations

import numpy as np
import pytest

from app.inference import occlusion_side
from app.inference.attribution import atlas
from app.inference.defaults import CHANNELS, GRID
from app.phantoms import biology, cohort
from app.phantoms.biology import Preset
from app.sdk.types import Channel

PATIENTS = 12


@pytest.fixture(scope="module")
def phantoms() -> list[tuple[str, np.ndarray]]:
    people = biology.draw(PATIENTS, 5, Preset.INTERACTION)
    images = cohort.images(people, 5, GRID, CHANNELS)
    return [
        ("left" if one.left else "right", np.asarray(image, np.float32))
        for one, image in zip(people, images, strict=True)
    ]


# Delay always tells; low flow mostly; arteries seldom, for collaterals fill them on both sides.
@pytest.mark.parametrize(
    ("only", "known"), [(None, PATIENTS), (Channel.TMAX, PATIENTS), (Channel.RCBF, PATIENTS // 2), (Channel.VESSELS, 1)]
)
def test_it_is_never_the_wrong_side_and_mostly_known(
    phantoms: list[tuple[str, np.ndarray]], only: Channel | None, known: int
) -> None:
    presence = np.asarray([only is None or spec.name is only for spec in CHANNELS])
    found = [
        occlusion_side.affected_side(image * presence[:, None, None, None], presence, CHANNELS, GRID)
        for _, image in phantoms
    ]
    told = [(read[0].value, truth) for read, (truth, _) in zip(found, phantoms, strict=True) if read]
    assert all(read == truth for read, truth in told)
    assert len(told) >= known


def test_a_mirrored_patient_has_the_other_side(phantoms: list[tuple[str, np.ndarray]]) -> None:
    present = np.ones(len(CHANNELS), bool)
    for truth, image in phantoms[:4]:
        read = occlusion_side.affected_side(np.ascontiguousarray(image[:, ::-1]), present, CHANNELS, GRID)
        assert read is not None
        assert read[0].value != truth


def test_a_plain_ct_tells_no_side(phantoms: list[tuple[str, np.ndarray]]) -> None:
    presence = np.asarray([spec.name is Channel.NCCT for spec in CHANNELS])
    assert occlusion_side.affected_side(phantoms[0][1], presence, CHANNELS, GRID) is None


def test_sides_of_regions() -> None:
    assert atlas.side("left MCA M1", "left") == "affected"
    assert atlas.side("right MCA M1", "left") == "contralateral"
    assert atlas.side("brainstem and cerebellum", "left") is None
    assert atlas.side("left MCA M1", None) is None
