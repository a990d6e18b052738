"""A coarse phantom study, for tests that need the anatomy of a whole head with its neck."""

from __future__ import annotations

from functools import cache

import numpy as np

from app.imaging.io.nifti import Volume
from app.phantoms import biology, scene, volumes
from app.sdk.types import Input

SPACING = {"ncct": (2.5, 2.5, 3.0), "cta": (2.0, 2.0, 2.0), "perfusion": (3.0, 3.0, 6.0)}


@cache
def phantom(index: int = 0, seed: int = 11) -> dict[Input, Volume]:
    """NCCT, CTA, Tmax and CBF of one patient."""
    patient = biology.draw(index + 1, seed)[index]
    drawn = scene.build(patient, scene.draw_variation(seed, index))
    pose = volumes.draw_pose(np.random.default_rng([seed, 5, index]))
    names = {str(name) for name in Input} - {"vessels"}
    series = [one for one in volumes.series(drawn, pose, SPACING) if one.name in names]
    return {Input(one.name): Volume(np.asfortranarray(one.data), one.affine) for one in series}
