"""Detection of the side of the occlusion, on phantoms with a known side."""

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
    detected = [
        occlusion_side.affected_side(image * presence[:, None, None, None], presence, CHANNELS, GRID)
        for _, image in phantoms
    ]
    pairs = [(result[0].value, truth) for result, (truth, _) in zip(detected, phantoms, strict=True) if result]
    assert all(side == truth for side, truth in pairs)
    assert len(pairs) >= known


def test_mirrored_patient_has_the_other_side(phantoms: list[tuple[str, np.ndarray]]) -> None:
    present = np.ones(len(CHANNELS), bool)
    for truth, image in phantoms[:4]:
        result = occlusion_side.affected_side(np.ascontiguousarray(image[:, ::-1]), present, CHANNELS, GRID)
        assert result is not None
        assert result[0].value != truth


def test_ncct_alone_gives_no_side(phantoms: list[tuple[str, np.ndarray]]) -> None:
    presence = np.asarray([spec.name is Channel.NCCT for spec in CHANNELS])
    assert occlusion_side.affected_side(phantoms[0][1], presence, CHANNELS, GRID) is None


def test_relative_side_of_regions() -> None:
    assert atlas.relative_side("left MCA M1", "left") == "affected"
    assert atlas.relative_side("right MCA M1", "left") == "contralateral"
    assert atlas.relative_side("brainstem and cerebellum", "left") is None
    assert atlas.relative_side("left MCA M1", None) is None
