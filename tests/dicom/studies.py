"""Small DICOM studies for tests: one head-like volume, written in different ways."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from app.dicom.conversion import Conversion
from app.dicom.convert import convert
from app.dicom.writing import Syntax
from app.phantoms.dicom_series import SeriesPlan, files, planned_slices
from app.sdk.types import Input

SHAPE = (40, 36, 16)
TILT = np.deg2rad(18.5)
REGULAR = np.array([[-5.0, 0, 0, 100], [0, -5.0, 0, 90], [0, 0, 8.0, -60], [0, 0, 0, 1]])
TILTED = np.array([[-5.0, 0, 0, 100], [0, -5 * np.cos(TILT), 0, 90], [0, -5 * np.sin(TILT), 8.0, -60], [0, 0, 0, 1]])


def voxels(seed: int = 0) -> NDArray[np.int16]:
    return np.random.default_rng(seed).normal(40, 30, SHAPE).round().astype(np.int16)


def plan(affine: NDArray[np.float64] = REGULAR, data: NDArray[np.int16] | None = None, **changes: object) -> SeriesPlan:
    slices = planned_slices(voxels() if data is None else data, affine) | {"thickness": 8.0}
    return replace(SeriesPlan("ncct", 3, "Head native", kernel="H30s", **slices), **changes)


def contents(*plans: SeriesPlan, syntax: Syntax = Syntax.EXPLICIT) -> list[bytes]:
    return [content for one in plans for content in files(one, "study", syntax=syntax)]


def write(folder: Path, written: list[bytes]) -> Path:
    folder.mkdir(exist_ok=True)
    for number, content in enumerate(written):
        (folder / f"{number:04d}").write_bytes(content)
    return folder


def converted(tmp_path: Path, written: list[bytes], **options: object) -> Conversion:
    return convert(write(tmp_path / "study", written), tmp_path, **options)


def volume(conversion: Conversion, name: Input = Input.NCCT) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Voxels and affine, with the slices in rising order of z."""
    image = nib.load(conversion.volumes[name])
    data, affine = np.asarray(image.dataobj, np.float64), np.array(image.affine)
    if affine[2, 2] < 0:
        affine[:3, 3] += affine[:3, 2] * (data.shape[2] - 1)
        affine[:3, 2] *= -1
        data = data[:, :, ::-1]
    return data, affine
