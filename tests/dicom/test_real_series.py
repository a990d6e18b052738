"""Real series of two scanners: slice positions, and voxels equal to those of dcm2niix.

The series are data outside this repository (BSD-2-Clause, neurolabusc/dcm_qa_ct); without them the tests are skipped.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from app.dicom import assemble, geometry
from app.dicom.convert import convert, read_choices
from app.dicom.files import open_files
from app.sdk.types import Input
from tests.dicom.studies import volume

DATA = Path(__file__).resolve().parents[3] / "shared" / "data" / "dicom"
GE, PHILIPS = DATA / "ge_head_tilted", DATA / "philips_phantom_tilted"

pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason="the DICOM series are not beside this repository")


def by_dcm2niix(folder: Path, target: Path) -> tuple[np.ndarray, np.ndarray]:
    """The voxels and the affine of the output without a correction of the tilt."""
    dcm2niix = pytest.importorskip("dcm2niix")
    command = [dcm2niix.bin, "-b", "n", "-f", "out", "-o", str(target), str(folder)]
    subprocess.run(command, check=True, capture_output=True)
    image = nib.load(target / "out.nii")
    return np.asarray(image.dataobj), image.affine


def test_positions_of_a_tilted_uneven_head_are_the_true_ones() -> None:
    choices, _ = read_choices(open_files(GE))
    frames = geometry.in_order(choices[0].stack.frames)
    plan = geometry.plan(frames)
    true = np.array([frame.position for frame in frames])
    assert [choice.role.value for choice in choices] == ["ncct"]
    affine = np.diag([-1, -1, 1, 1]) @ plan.affine
    step = np.linalg.norm(affine[:3, 2]) / np.linalg.norm(true[-1] - true[0])
    for position in true:
        share = np.linalg.norm(position - true[0]) / np.linalg.norm(true[-1] - true[0])
        np.testing.assert_allclose(affine[:3, 3] + share / step * affine[:3, 2], position, atol=0.01)


def test_slices_of_a_tilted_uneven_head_are_those_of_dcm2niix(tmp_path: Path) -> None:
    files = open_files(GE)
    choices, _ = read_choices(files)
    frames = geometry.in_order(choices[0].stack.frames)
    targets = {(frame.file, frame.index): (number,) for number, frame in enumerate(frames)}
    slices = assemble._load(frames, targets, (len(frames),), assemble.Pixels(files), "ncct")
    expected, _ = by_dcm2niix(GE, tmp_path)
    np.testing.assert_array_equal(slices[:, ::-1], expected)


def test_even_series_is_that_of_dcm2niix(tmp_path: Path) -> None:
    data, affine = volume(convert(PHILIPS, tmp_path), Input.NCCT)
    expected, other = by_dcm2niix(PHILIPS, tmp_path)
    np.testing.assert_array_equal(data[:, ::-1], expected)
    first = affine @ [0, data.shape[1] - 1, 0, 1]
    np.testing.assert_allclose(first, other @ [0, 0, 0, 1], atol=1e-3)
    np.testing.assert_allclose(np.abs(affine[:3, :3]), np.abs(other[:3, :3]), atol=1e-5)
