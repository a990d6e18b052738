from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest

from app.imaging.io import nifti
from app.phantoms import biology
from app.phantoms.cohort import MISSING, measured_perfusion, record, write_patient
from app.sdk.clinical import ClinicalRecord
from app.sdk.types import Input

COARSE = {"ncct": (3.0, 3.0, 3.0), "cta": (3.0, 3.0, 3.0), "perfusion": (4.0, 4.0, 6.0)}


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_patient(tmp_path_factory.mktemp("study"), 11, spacing_mm=COARSE)


def test_service_reads_the_study(study: dict[str, Path]) -> None:
    for field in (Input.NCCT, Input.CTA, Input.TMAX, Input.CBF):
        volume = nifti.read(study[field.value], field=field)
        assert volume.flags == ()
        assert len(volume.shape) == 3
    ClinicalRecord.model_validate_json(study["clinical"].read_text())


def test_ground_truth_is_in_a_separate_folder(study: dict[str, Path]) -> None:
    truth = json.loads((study["clinical"].parent / "truth" / "patient.json").read_text())
    assert truth["probability"] == biology.draw(1, 11)[0].probability
    assert not {"refractory", "probability", "truncal", "intensity"} & json.loads(study["clinical"].read_text()).keys()
    masks = {path.name for path in (study["clinical"].parent / "truth").glob("*.nii.gz")}
    assert masks == {"vessels.nii.gz", "clot.nii.gz", "core.nii.gz", "tmax6.nii.gz"}


def test_masks_have_the_grid_of_their_series(study: dict[str, Path]) -> None:
    truth = study["clinical"].parent / "truth"
    for mask, series in (("vessels", "cta"), ("clot", "cta"), ("core", "tmax"), ("tmax6", "cbf")):
        one = nibabel.Nifti1Image.from_filename(truth / f"{mask}.nii.gz")
        other = nibabel.Nifti1Image.from_filename(study[series])
        assert one.shape == other.shape
        assert np.allclose(one.affine, other.affine)


def test_same_seed_writes_the_same_voxels(study: dict[str, Path], tmp_path: Path) -> None:
    again = write_patient(tmp_path, 11, spacing_mm=COARSE)
    for name in ("ncct", "cta", "tmax", "cbf"):
        one, other = (nifti.read(paths[name], field=Input(name)) for paths in (study, again))
        assert np.array_equal(one.data, other.data)
        assert np.array_equal(one.affine, other.affine)


def test_some_facts_are_missing_but_never_the_age() -> None:
    rng = np.random.default_rng(0)
    records = [record(person, rng) for person in biology.draw(400, 2)]
    assert all(one.age is not None for one in records)
    share = np.mean([one.nihss is None for one in records])
    assert share == pytest.approx(MISSING, abs=0.0163)  # measured 0.0125
    assert record(biology.draw(1, 2)[0]).nihss is not None


def test_measured_volumes_are_near_the_truth() -> None:
    rng = np.random.default_rng(0)
    people = biology.draw(200, 2)
    ratios = [
        found.tmax6_ml / person.tmax6_ml for person in people if (found := measured_perfusion(person, rng)).tmax6_ml
    ]
    assert np.mean(ratios) == pytest.approx(1, abs=0.0032)  # measured 0.0024
    assert np.std(ratios) == pytest.approx(0.04, abs=1e-4)  # measured 0.3e-4
