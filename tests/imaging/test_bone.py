"""Bone in a CT angiogram without an NCCT: the vessel mask of a skull that is no denser than arteries."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from app.imaging import vessels
from app.imaging.io import nifti
from app.imaging.io.nifti import Volume
from app.imaging.registration import align, brain_mask
from app.phantoms import anatomy
from app.sdk.types import Input
from tests.imaging import heads

MNI = np.eye(4)
SHAPE, SPACING = (172, 200, 172), (1.1, 1.1, 1.1)


@pytest.mark.parametrize(("density", "above_mm"), [(330, 0), (450, -200), (600, -200)])
def test_thin_bone_is_no_vessel(density: int, above_mm: float) -> None:
    """Half of the skull above an MNI z is as dense as arteries (350 HU) or a little denser; the arteries are found."""
    drawn = heads.angiogram(SHAPE, SPACING)
    depth = brain_mask.distance(drawn.cta.affine, SHAPE, MNI)
    half = (brain_mask.mni_mm(drawn.cta.affine, SHAPE, MNI, 0) < 0) & (
        brain_mask.mni_mm(drawn.cta.affine, SHAPE, MNI, 2) > above_mm
    )
    thin = (depth >= 3) & (depth < 10) & half & ~drawn.vessels
    both = [np.where(thin, one.data - heads.BONE + density, one.data) for one in (drawn.cta, drawn.ncct)]
    cta, ncct = (replace(drawn.cta, data=np.asfortranarray(data.astype(np.int16))) for data in both)
    alone = vessels.segment(cta, MNI).data > 0
    away = alone & ~ndimage.binary_dilation(drawn.vessels, iterations=2)
    assert away.sum() <= 0.005 * alone.sum()
    found, subtracted = (
        np.count_nonzero(mask & drawn.vessels) for mask in (alone, vessels.segment(cta, MNI, ncct).data > 0)
    )
    assert found > 0.95 * subtracted


@pytest.mark.parametrize("contrast", [260, 360])
def test_mask_of_a_real_skull_is_mostly_vessel(real_images: Path, contrast: int) -> None:
    """The real NCCT with the arteries of the phantoms drawn into it. Measured 1.9 and 3.3 mL of bone; before, 36 mL."""
    head = nifti.read(real_images / "ncct_human_ge_deskewed.nii.gz", field=Input.CTA)
    mni_from_world = align.to_mni(align.RegistrationImage(head)).mni_from_world
    lumen = _arteries(head, mni_from_world)
    values = (head.data * head.slope + head.inter) * (1 - lumen) + (40 + contrast) * lumen
    cta = Volume(np.asfortranarray(values.astype(np.int16)), head.affine)
    found = vessels.segment(cta, mni_from_world).data > 0
    voxel_ml = float(np.prod(head.spacing_mm)) / 1000
    assert np.count_nonzero(found & ~(ndimage.maximum_filter(lumen, 3) > 0.2)) * voxel_ml < 4.0
    near = brain_mask.distance(cta.affine, cta.shape, mni_from_world) < 5
    assert found[(lumen > 0.6) & near].mean() > 0.9


def _arteries(head: Volume, mni_from_world: np.ndarray) -> np.ndarray:
    """Share of each voxel of ``head`` that the arteries of the template's anatomy fill."""
    tree = anatomy.arteries()
    canvas = np.zeros(anatomy.SHAPE, np.float32)
    canvas.reshape(-1)[tree.index] = tree.cover
    to_mni = mni_from_world @ head.affine
    voxels = np.indices(head.shape, dtype=np.float32).reshape(3, -1)
    points = to_mni[:3, :3] @ voxels + to_mni[:3, 3:] - np.array(anatomy.ORIGIN_MM)[:, None]
    filled: np.ndarray = ndimage.map_coordinates(canvas, points, order=1).reshape(head.shape)
    return filled
