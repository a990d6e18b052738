"""A large dense region in the brain of an NCCT is flagged; clots, calcium, noise and small bleedings pass."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from app.imaging.io import nifti
from app.imaging.io.nifti import Volume
from app.imaging.plausibility import check
from app.sdk.flags import Severity, severity_of
from app.sdk.types import Input
from tests.imaging import heads

SHAPE = (100, 120, 90)
CODE = "haemorrhage-possible"


def said(volume: Volume, field: Input = Input.NCCT) -> bool:
    return CODE in {flag.code for flag in check(volume, field)}


def denser(volume: Volume, millilitres: float, side_mm: float, hu: float) -> Volume:
    """A ball in one hemisphere, at the height of the middle of the volume, denser by ``hu``."""
    radius = (3000 * millilitres / (4 * np.pi)) ** (1 / 3)
    at = np.indices(volume.shape, sparse=True)
    move_mm = (side_mm, 0.0, 10.0)
    away = [(at[n] - volume.shape[n] / 2) * volume.spacing_mm[n] - move_mm[n] for n in range(3)]
    values = np.array(volume.data)
    ball = (away[0] ** 2 + away[1] ** 2 + away[2] ** 2 < radius**2) & (values > -20) & (values < 90)
    return dataclasses.replace(volume, data=np.asfortranarray(values + hu * ball, dtype=values.dtype))


def drawn() -> Volume:
    return heads.ct(heads.grid(SHAPE, (2, 2, 2)), SHAPE, noise=4)


@pytest.mark.parametrize("side_mm", [-30.0, 30.0])
@pytest.mark.parametrize("millilitres", [30.0, 60.0])
def test_a_large_haemorrhage_is_flagged(real_images: Path, millilitres: float, side_mm: float) -> None:
    real = nifti.read(real_images / "ncct_human_ge_deskewed.nii.gz", field=Input.NCCT)
    for head in (drawn(), real):
        assert not said(head)
        assert said(denser(head, millilitres, side_mm, 35.0))
    assert severity_of(CODE) is Severity.WARNING


def test_look_alikes_pass(real_images: Path) -> None:
    real = nifti.read(real_images / "ncct_human_ge_deskewed.nii.gz", field=Input.NCCT)
    for head in (drawn(), real):
        assert not said(denser(head, 4.0, 30.0, 35.0))  # a small bleeding
        assert not said(denser(head, 60.0, 30.0, 10.0))  # the density of grey matter
        assert not said(denser(head, 2.0, 30.0, 300.0))  # calcium
        assert not said(denser(head, 60.0, 30.0, -15.0))  # an infarct
        assert not said(denser(head, 60.0, 30.0, 35.0), Input.CTA)
    values = np.array(drawn().data)
    values[48:50, 20:100, 20:80] += 40  # a dense falx of 4 mm
    values[30:48, 60:62, 40:42] += 40  # a clot in an artery
    assert not said(dataclasses.replace(drawn(), data=values))
