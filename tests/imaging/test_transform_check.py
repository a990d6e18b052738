"""Heads that contradict their header are refused or flagged; unusual heads that are right are not."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from app.imaging import slices_check
from app.imaging.io import nifti
from app.imaging.io.nifti import Volume
from app.imaging.registration import align, transform_check
from app.sdk.errors import GeometryMismatch
from app.sdk.types import Input
from bench import align as bench
from tests.imaging import phantom_studies

HEADS = ("phantom", "real NCCT", "CT template")


@pytest.fixture(scope="module", params=HEADS)
def head(request: pytest.FixtureRequest) -> Volume:
    """A phantom, and, if the images are there, a real NCCT and a whole-head CT template."""
    if request.param == "phantom":
        return phantom_studies.phantom()[Input.CTA]
    real_images: Path = request.getfixturevalue("real_images")
    if request.param == "CT template":
        return bench.ct_template()
    return nifti.read(real_images / "ncct_human_ge_deskewed.nii.gz", field=Input.NCCT)


def codes(volume: Volume) -> set[str]:
    image = align.RegistrationImage(volume)
    flags = transform_check.check(image, align.to_mni(image), Input.CTA)
    return {flag.code for flag in (*flags, *slices_check.check(image, Input.CTA))}


def moved(volume: Volume, linear: np.ndarray) -> Volume:
    transform = np.eye(4)
    transform[:3, :3] = linear
    return dataclasses.replace(volume, affine=transform @ volume.affine)


def refused(volume: Volume, reason: str) -> None:
    with pytest.raises(GeometryMismatch, match=reason):
        codes(volume)


# Orientation -------------------------------------------------------------------------------------------------------


def test_head_as_scanned_has_no_flags(head: Volume) -> None:
    assert codes(head) == set()


def test_slices_in_reverse_order_are_refused(head: Volume) -> None:
    refused(dataclasses.replace(head, data=np.asfortranarray(head.data[:, :, ::-1])), "reverse order")


def test_other_order_of_slices_that_the_affine_describes_passes(head: Volume) -> None:
    affine = head.affine @ np.diag([1.0, 1.0, -1.0, 1.0])
    affine[:3, 3] += head.affine[:3, 2] * (head.shape[2] - 1)
    assert codes(Volume(np.asfortranarray(head.data[:, :, ::-1]), affine)) == set()


def test_lps_read_as_ras_is_refused(head: Volume) -> None:
    refused(moved(head, np.diag([-1.0, -1.0, 1.0])), "left and right are unknown")


@pytest.mark.parametrize("number", [0, 5, 11, 16, 22])
def test_head_along_other_axes_is_refused(number: int) -> None:
    orientations = transform_check.along_axes()
    assert len(orientations) == 23
    refused(moved(phantom_studies.phantom()[Input.CTA], orientations[number]), "does not lie as the header says")


@pytest.mark.parametrize("degrees", [(0, 0, 40), (0, 0, -40), (0, 30, 0), (30, 0, 0)])
def test_head_that_is_turned_on_the_pillow_passes(head: Volume, degrees: tuple[float, float, float]) -> None:
    assert codes(moved(head, align.rotation(degrees))) == set()


def test_left_and_right_alone_cannot_be_seen(head: Volume) -> None:
    """A head is nearly its own mirror image, so this fault must be found by the sides of the study."""
    assert codes(moved(head, np.diag([-1.0, 1.0, 1.0]))) == set()


# Size --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("factor", [0.7, 1.5, 2.0])
def test_wrong_spacing_is_refused(head: Volume, factor: float) -> None:
    refused(moved(head, factor * np.eye(3)), "size or shape that no adult head has")


def test_wrong_distance_of_slices_is_refused(head: Volume) -> None:
    refused(moved(head, np.diag([1.0, 1.0, 1.6])), "slice spacing")


def test_small_and_large_adult_heads_pass() -> None:
    phantom = phantom_studies.phantom()[Input.CTA]
    for factor in (0.9, 1.06):
        assert codes(moved(phantom, factor * np.eye(3))) == set()


def test_gantry_tilt_that_the_affine_leaves_out_is_flagged() -> None:
    shear = np.eye(3)
    shear[1, 2] = np.tan(np.radians(20))
    assert "head-size-implausible" in codes(moved(phantom_studies.phantom()[Input.CTA], shear))


def test_size_is_not_judged_where_the_head_is_cut_off() -> None:
    phantom = phantom_studies.phantom()[Input.CTA]
    cut = dataclasses.replace(phantom, data=np.asfortranarray(phantom.data[:, :, :-22]))
    assert codes(cut) == set()


# Slices ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", [0.35, 0.5, 0.65])
def test_lost_slices_are_flagged(head: Volume, place: float) -> None:
    """21 mm of slices are lost, and the rest is stacked."""
    start, lost = int(head.shape[2] * place), round(21 / head.spacing_mm[2])
    data = np.delete(head.data, slice(start, start + lost), axis=2)
    image = align.RegistrationImage(dataclasses.replace(head, data=np.asfortranarray(data)))
    assert [flag.code for flag in slices_check.check(image, Input.CTA)] == ["slices-missing"]


@pytest.mark.parametrize("count", [1, 4])
def test_empty_slices_inside_the_head_are_flagged(count: int) -> None:
    phantom = phantom_studies.phantom()[Input.CTA]
    data = np.array(phantom.data)
    data[:, :, 50 : 50 + count] = -1024
    image = align.RegistrationImage(dataclasses.replace(phantom, data=data))
    assert [flag.code for flag in slices_check.check(image, Input.CTA)] == ["slices-missing"]


def test_thick_slices_and_empty_ends_pass() -> None:
    phantom = phantom_studies.phantom()[Input.CTA]
    thick = Volume(np.asfortranarray(phantom.data[:, :, ::3]), phantom.affine @ np.diag([1.0, 1.0, 3.0, 1.0]))
    assert slices_check.check(align.RegistrationImage(thick), Input.NCCT) == ()
    data = np.array(phantom.data)
    data[:, :, :4] = data[:, :, -4:] = -1024
    assert slices_check.check(align.RegistrationImage(dataclasses.replace(phantom, data=data)), Input.CTA) == ()
