"""The same volume in two fields is refused, also if it is stored differently; similar volumes pass."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from app.imaging.io.duplicates import check_bytes, check_voxels
from app.imaging.io.nifti import Volume
from app.sdk.errors import ImplausibleModality
from app.sdk.types import Input

SHAPE = (10, 12, 14)


@pytest.fixture
def cta() -> Volume:
    values = np.random.default_rng(0).integers(-1000, 1000, SHAPE).astype(np.int16)
    return Volume(np.asfortranarray(values), np.diag([2.0, 2.0, 2.0, 1.0]))


def turned(volume: Volume) -> Volume:
    """The same volume, stored from right to left and with two axes exchanged."""
    affine = volume.affine @ np.array([[0, -1, 0, SHAPE[0] - 1], [1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])
    return Volume(volume.data[::-1].transpose(1, 0, 2), affine)


def scaled(volume: Volume) -> Volume:
    """The same values, stored with a slope and an intercept."""
    return dataclasses.replace(volume, data=(volume.data + 1024) * 2, slope=0.5, inter=-1024.0)


def in_float(volume: Volume) -> Volume:
    return dataclasses.replace(volume, data=volume.data.astype(np.float32))


@pytest.mark.parametrize("store", [lambda volume: volume, turned, scaled, in_float])
def test_same_voxels_are_refused(cta: Volume, store: object) -> None:
    assert callable(store)
    with pytest.raises(ImplausibleModality, match="cta and ncct contain the same voxels") as refusal:
        check_voxels({Input.CTA: cta, Input.NCCT: store(cta)})
    assert [error.field for error in refusal.value.errors] == [Input.CTA, Input.NCCT]


def test_one_other_voxel_passes(cta: Volume) -> None:
    data = cta.data.copy()
    data[3, 4, 5] += 1
    check_voxels({Input.CTA: cta, Input.NCCT: dataclasses.replace(cta, data=data)})


def test_first_frame_of_a_series_as_ncct_passes(cta: Volume) -> None:
    series = np.stack([cta.data] * 3, axis=-1)
    check_voxels({Input.NCCT: cta, Input.CTP: dataclasses.replace(cta, data=series)})


def test_same_bytes_are_refused() -> None:
    check_bytes({Input.CTA: "a", Input.NCCT: "b"})
    with pytest.raises(ImplausibleModality, match="tmax and cbf contain the same file"):
        check_bytes({Input.CTA: "a", Input.TMAX: "b", Input.CBF: "b"})
