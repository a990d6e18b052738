"""A cohort of DICOM studies has the same prepared images as the same cohort of NIfTI volumes."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from app.dicom.head import read_head
from app.imaging.io import nifti
from app.phantoms import biology, scene, volumes
from app.phantoms.biology import Preset
from app.phantoms.dicom_series import SeriesPlan, files, planned_slices
from app.sdk.clinical import ClinicalRecord
from app.sdk.types import Flag, Input
from app.training import cohort, dicom_studies
from app.training.cohort import Cohort, CohortRow
from app.training.errors import CohortFault
from app.training.preprocess import preprocess
from app.training.progress import ProgressReporter
from tests.dicom.studies import contents, plan
from tests.training.test_cohort import rows
from tests.training.test_cohort import write as write_table
from tests.worker.test_dicom_pull import numbered

SPACING = (2.5, 2.5, 5.0)
QUIET = ProgressReporter()


def row(number: int, **changes: Any) -> CohortRow:
    usual: dict[str, Any] = {"volumes": {}, "prepared": None, "record": ClinicalRecord(age=70), "outcome": number % 2}
    return CohortRow(row=number, patient=f"p{number}", site="one", date="", fold="", **(usual | changes))


def phantom(number: int) -> Mapping[str, tuple[np.ndarray, np.ndarray]]:
    patient = biology.draw(1, number, Preset.INTERACTION)[0]
    one = scene.build(patient, scene.draw_variation(number, 0, scene.PLAIN))
    pose = volumes.draw_pose(np.random.default_rng(number))
    found = volumes.series(one, pose, dict.fromkeys(("ncct", "cta"), SPACING))
    return {each.name: (each.data.astype(np.int16), each.affine) for each in found if each.name in ("ncct", "cta")}


def write_both(folder: Path, number: int) -> tuple[dict[Input, Path], str]:
    """One phantom as NIfTI, and as DICOM with an accession number among the files of the others; its UID."""
    paths, sent = {}, []
    agents = {"ncct": "", "cta": "Iomeprol"}
    for series, (name, (data, affine)) in enumerate(phantom(number).items(), start=2):
        paths[Input(name)] = folder / f"{name}-{number}.nii"
        nifti.write(paths[Input(name)], data, affine)
        described = SeriesPlan(name, series, f"{name} head", kernel="H30s", contrast=agents[name], thickness=SPACING[2])
        sent += list(files(replace(described, **planned_slices(data, affine)), number))
    (folder / "dicom" / "any").mkdir(parents=True, exist_ok=True)
    for each, content in enumerate(sent):
        (folder / "dicom" / ("any" if each % 4 else "") / f"{number}-{each}").write_bytes(
            numbered(content, f"A{number}")
        )
    return paths, read_head(io.BytesIO(sent[0])).study_uid


def test_the_same_studies_as_dicom_and_as_nifti_give_the_same_images(tmp_path: Path) -> None:
    pairs = [write_both(tmp_path, number) for number in (1, 2)]
    (tmp_path / "dicom" / "DICOMDIR").write_bytes(b"no instance")
    as_nifti = Cohort(tmp_path, tuple(row(n, volumes=paths) for n, (paths, _) in enumerate(pairs, start=1)))
    named = (row(1, dicom=(pairs[0][1], "")), row(2, dicom=("", "A2")))
    read = dicom_studies.convert(Cohort(tmp_path, named), tmp_path / "dicom", QUIET, jobs=2)
    assert [sorted(study.volumes) for study in read.studies] == [["cta", "ncct"]] * 2
    expected, found = preprocess(as_nifti, QUIET), preprocess(read, QUIET)
    np.testing.assert_allclose(found.images.astype(float), expected.images.astype(float), atol=2e-3)
    assert np.array_equal(found.presence, expected.presence)
    assert np.abs(expected.images.astype(float)).max() > 0.5
    assert np.abs(expected.images[0].astype(float) - expected.images[1].astype(float)).max() > 0.5


def study(folder: Path, accession: str = "A1", **changes: Any) -> Path:
    """A small study with uneven slices, which its conversion flags."""
    folder.mkdir(parents=True, exist_ok=True)
    sent = contents(plan(**changes))
    for number, content in enumerate(sent[:10] + sent[12:]):
        (folder / f"{number}").write_bytes(numbered(content, accession))
    return folder


def test_a_study_is_converted_once_and_again_after_a_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    convert = dicom_studies.convert_isolated
    monkeypatch.setattr(dicom_studies, "convert_isolated", lambda *a, **k: (made.append(a), convert(*a, **k))[1])
    folder = tmp_path / "dicom"
    folder.mkdir()
    for number, content in enumerate(contents(plan())):
        (folder / str(number)).write_bytes(numbered(content, "A1"))
    patients = Cohort(tmp_path, (row(1, dicom=("", "A1")),))
    for _ in range(2):
        first = dicom_studies.convert(patients, folder, QUIET)
    assert len(made) == 1
    assert not list((tmp_path / ".dicom").glob(".files-*"))
    (folder / "15").unlink()
    second = dicom_studies.convert(patients, folder, QUIET)
    assert len(made) == 2
    assert first.studies[0].volumes != second.studies[0].volumes


def test_flags_of_the_conversion_are_flags_of_the_study(tmp_path: Path) -> None:
    doubt = Flag(code="series-role-doubtful", detail="ncct: the headers of the series do not say clearly what it is")
    paths, _ = write_both(tmp_path, 3)
    data = preprocess(Cohort(tmp_path, (row(1, volumes=paths, conversion_flags=(doubt,)),)), QUIET)
    assert data.flags[0] is not None
    assert data.flags[0][0] == doubt


def test_rows_whose_study_cannot_be_used_are_named_together(tmp_path: Path) -> None:
    study(tmp_path / "dicom" / "gap", "GAP")
    named = {1: ("9.9.9", ""), 2: ("", "CANARY")}
    patients = Cohort(tmp_path, tuple(row(number, dicom=name) for number, name in named.items()))
    with pytest.raises(CohortFault) as caught:
        dicom_studies.convert(patients, tmp_path / "dicom", QUIET)
    assert caught.value.faults == (
        "row 1: the folder of --dicom has no study with its study_instance_uid",
        "row 2: the folder of --dicom has no study with its accession_number",
    )
    with pytest.raises(CohortFault, match=r"row 4: .*missing"):
        dicom_studies.convert(Cohort(tmp_path, (row(4, dicom=("", "GAP")),)), tmp_path / "dicom", QUIET)
    for folder in (None, tmp_path / "gone"):
        with pytest.raises(CohortFault, match="--dicom"):
            dicom_studies.convert(patients, folder, QUIET)


def test_an_accession_number_of_two_studies_names_none(tmp_path: Path) -> None:
    (tmp_path / "dicom").mkdir()
    for number in (1, 2):
        (content,) = list(files(plan(), f"study {number}"))[:1]
        (tmp_path / "dicom" / str(number)).write_bytes(numbered(content, "A1"))
    with pytest.raises(CohortFault, match="several DICOM studies"):
        dicom_studies.convert(Cohort(tmp_path, (row(1, dicom=("", "A1")),)), tmp_path / "dicom", QUIET)


def test_a_table_names_its_studies_by_uid_or_accession_number(tmp_path: Path) -> None:
    table = [
        {**each, "ncct": "", "study_instance_uid": f"1.2.{n}", "accession_number": ""} for n, each in enumerate(rows())
    ]
    table[3] |= {"study_instance_uid": "", "accession_number": "A 3"}
    table[4] |= {"ncct": "head.nii.gz"}
    studies = cohort.read(write_table(tmp_path, table)).studies
    assert [each.dicom for each in studies[:5]] == [("1.2.0", ""), ("1.2.1", ""), ("1.2.2", ""), ("", "A 3"), None]
    table[5] |= {"study_instance_uid": ""}
    with pytest.raises(CohortFault, match="row 7: there is no volume; name at least one file, or the DICOM study"):
        cohort.read(write_table(tmp_path, table))
    assert pd.read_csv(tmp_path / "cohort.csv").shape[0] == len(table)
