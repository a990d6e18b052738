"""Draw docs/images: a real head in MNI space with the contour of the MNI brain, and a real angiogram with its mask.

``python -m bench._overlays`` reads the images from ../shared, whose SOURCES.md names their origins and licences (both
BSD-2-Clause).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from app.imaging import vessels
from app.imaging.io import nifti
from app.imaging.io.nifti import Volume
from app.imaging.registration import align, brain_mask
from app.imaging.resample import resample
from app.sdk.types import Input
from bench.align import NCCT, REAL

Array = NDArray[np.float64]

OUT = Path(__file__).resolve().parents[1] / "docs/images"
GRID = np.array([[1.0, 0, 0, -96], [0, 1, 0, -132], [0, 0, 1, -78], [0, 0, 0, 1]])
SHAPE = (193, 229, 193)
GREEN, RED = (90, 230, 120), (255, 90, 70)


def head_in_mni() -> Image.Image:
    """Return three axial, two coronal and two sagittal slices, 0 to 80 HU."""
    volume = nifti.read(NCCT, field=Input.NCCT)
    world_from_mni = np.linalg.inv(align.to_mni(align.RegistrationImage(volume)).mni_from_world)
    matrix = np.linalg.inv(volume.affine) @ world_from_mni @ GRID
    hu = resample(volume.data, matrix, SHAPE, slope=volume.slope, inter=volume.inter, fill=-1000)
    inside = brain_mask.distance(GRID, SHAPE, np.eye(4)) < 0
    edge = inside & ~ndimage.binary_erosion(inside)
    grey = np.clip(hu / 80, 0, 1) * 255
    cuts = [(2, 70), (2, 100), (2, 130), (1, 90), (1, 132), (0, 80), (0, 118)]
    return _row([_coloured(grey.take(at, axis), edge.take(at, axis), GREEN) for axis, at in cuts])


def vessel_tree() -> Image.Image:
    """Return maximum intensity projections of the angiogram, without and with the mask in red, along z, y and x.

    The file has no brain and no bone to align by, so the centre of its field of view gives the position.
    """
    volume = nifti.read(REAL / "cta_avm_vessels.nii.gz", field=Input.CTA)
    mni_from_world = np.eye(4)
    mni_from_world[:3, 3] = [0, -18, 10] - (volume.affine @ [*(np.array(volume.shape) / 2 - 0.5), 1])[:3]
    mask = vessels.segment(volume, mni_from_world)
    grid = np.eye(4)
    grid[:3, 3] = np.linalg.inv(mni_from_world)[:3, 3] + GRID[:3, 3]
    grey_values, mask_values = (_resampled(each, grid) for each in (Volume(volume.values(), volume.affine), mask))
    pictures = []
    for axis in (2, 1, 0):
        grey = np.clip(grey_values.max(axis=axis) / 400, 0, 1) * 255
        projection = mask_values.max(axis=axis) > 0.5
        pictures += [_coloured(grey, np.zeros(grey.shape, bool), RED), _coloured(grey, projection, RED)]
    return _row(pictures)


def _resampled(volume: Volume, grid: Array) -> NDArray[np.float32]:
    return resample(volume.data, np.linalg.inv(volume.affine) @ grid, SHAPE)


def _coloured(grey: NDArray[np.float32], coloured: NDArray[np.bool_], colour: tuple[int, int, int]) -> Array:
    """Return (rows, columns, 3) with the second axis of ``grey`` upwards and the patient's left on the right."""
    picture = np.repeat(grey[..., None], 3, axis=-1)
    picture[coloured] = colour
    return np.asarray(picture.transpose(1, 0, 2)[::-1, ::-1])


def _row(pictures: list[Array]) -> Image.Image:
    tallest = max(picture.shape[0] for picture in pictures)
    padded = [np.pad(picture, ((0, tallest - picture.shape[0]), (0, 4), (0, 0))) for picture in pictures]
    return Image.fromarray(np.concatenate(padded, axis=1).astype(np.uint8))


def main() -> None:
    for name, picture in (("ncct-in-mni", head_in_mni()), ("avm-vessels", vessel_tree())):
        picture.quantize(128).save(OUT / f"{name}.png", optimize=True)


if __name__ == "__main__":
    main()
