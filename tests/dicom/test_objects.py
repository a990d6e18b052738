"""Result objects: what they say, where they lie, and that they are the same at each call."""

from __future__ import annotations

import subprocess
from io import BytesIO
from pathlib import Path

import highdicom
import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import Dataset

from app.dicom.objects.export import ObjectFile, make
from app.dicom.objects.isolated import export_isolated
from app.dicom.objects.key_images import burnt_in
from app.dicom.objects.kinds import ObjectKind
from app.imaging.io import nifti
from app.sdk.errors import InternalError
from tests.conftest import needed_program
from tests.dicom.results import ID, MNI_FROM_WORLD, MODEL_GRID, SIGN_VOXEL, address, files, prediction
from tests.dicom.studies import TILTED

IDENTITY = ("PID-4711", "Canary", "19410203", "ACC-0815", "Doe^Jane")
SIGNED = {"interval": {"kind": "calibrated", "low": 0.2, "high": 0.5, "level": 0.9, "coverage": 0.88}}


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return files(tmp_path_factory.mktemp("stored"))


@pytest.fixture(scope="module")
def made(stored: dict[str, Path]) -> dict[str, ObjectFile]:
    return {each.name: each for each in make(prediction(), address(), stored)}


def read(each: ObjectFile) -> Dataset:
    return pydicom.dcmread(BytesIO(each.content))


def report(**changes: object) -> Dataset:
    return read(next(iter(make(prediction(**changes), address(), {}))))


def items(content: Dataset, meaning: str) -> list[Dataset]:
    """Content items of a report with this concept name, at any depth."""
    found = []
    for item in content.get("ContentSequence", []):
        if item.get("ConceptNameCodeSequence") and item.ConceptNameCodeSequence[0].CodeMeaning == meaning:
            found.append(item)
        found += items(item, meaning)
    return found


def number(item: Dataset) -> float:
    return float(item.MeasuredValueSequence[0].NumericValue)


def code(item: Dataset) -> str:
    value = item.ConceptCodeSequence[0]
    return str(value.get("CodeValue") or value.get("LongCodeValue"))


def test_every_kind_is_made(made: dict[str, ObjectFile]) -> None:
    assert {each.kind for each in made.values()} == set(ObjectKind)
    assert [name for name in made if name.startswith("segmentation")] == [f"segmentation-{n}.dcm" for n in (1, 2, 3)]


def test_a_repetition_has_the_same_bytes(made: dict[str, ObjectFile], stored: dict[str, Path]) -> None:
    again = list(make(prediction(), address(), stored))
    assert [each.content for each in again] == [each.content for each in made.values()]


@pytest.mark.parametrize("kind", list(ObjectKind))
def test_one_kind_of_objects_is_the_same_alone(
    made: dict[str, ObjectFile], stored: dict[str, Path], kind: ObjectKind
) -> None:
    alone = {each.name: each.content for each in make(prediction(), address(), stored, [kind])}
    assert alone == {name: each.content for name, each in made.items() if each.kind is kind}


def test_another_prediction_has_other_instances_and_series(
    made: dict[str, ObjectFile], stored: dict[str, Path]
) -> None:
    other = make(prediction(ID.replace("1", "2")), address(), stored)
    one = {uid for each in made.values() for uid in (each.sop_instance_uid, read(each).SeriesInstanceUID)}
    two = {uid for each in other for uid in (each.sop_instance_uid, read(each).SeriesInstanceUID)}
    assert not one & two


def test_all_objects_belong_to_the_patient_and_the_study(made: dict[str, ObjectFile]) -> None:
    for each in map(read, made.values()):
        assert (each.PatientID, each.PatientName, each.PatientBirthDate) == ("PID-4711", "Canary^Anna", "19410203")
        assert (each.StudyInstanceUID, each.AccessionNumber, each.StudyDate) == ("2.25.111", "ACC-0815", "20260101")
        assert "research use only" in each.SeriesDescription
    placed = [each for each in map(read, made.values()) if "FrameOfReferenceUID" in each]
    assert {each.FrameOfReferenceUID for each in placed} == {"2.25.222"}


def test_a_patient_without_values_and_with_unusual_ones_is_repeated_as_sent() -> None:
    for name in ("", "Müller", "Müller^Jürgen=山田^太郎", "A^B^C^D^E"):
        strange = address(patient_name=name, birth_date="", sex="", study_date="", study_time="", accession_number="")
        one = read(next(iter(make(prediction(), strange, {}))))
        assert str(one.PatientName) == name
        assert not one.PatientBirthDate


def test_the_report_names_model_numbers_and_reasons() -> None:
    content = report()
    assert [items(content, name)[0].TextValue for name in ("Algorithm Name", "Algorithm Version")] == ["tiny", "1.0.0"]
    assert "sha256:abab" in items(content, "Algorithm Parameters")[0].TextValue
    assert number(items(content, "Probability of a refractory occlusion")[0]) == 0.37
    shares = [number(each) for each in items(content, "Contribution to the log-odds")]
    assert shares == [-0.41, 0.1, 0.79, 0.62, 0.34, 0.28]
    assert number(items(content, "Log-odds of background patients without images")[0]) + sum(
        shares[:4]
    ) == pytest.approx(number(items(content, "Log-odds of the probability")[0]), abs=1e-4)
    assert [code(each) for each in items(content, "Variable")] == ["atrial_fibrillation", "nihss"]
    assert [code(each) for each in items(content, "Remark")] == ["out-of-distribution", "imputed"]
    assert code(items(content, "Intended use")[0]) == "research-use-only"
    assert [number(each) for each in items(content, "core")] == [21.0]


def test_the_report_names_an_own_variable_by_its_label() -> None:
    attribution = prediction().attribution
    assert attribution is not None
    part = {"variable": "own.ddimer", "value": 812.0, "contribution": 0.0, "label": "D-dimer"}
    added = [*attribution.model_dump()["clinical"], part]
    content = report(attribution=attribution.model_dump() | {"clinical": added})
    assert [code(each) for each in items(content, "Variable")] == ["atrial_fibrillation", "nihss", "own.ddimer"]
    assert "D-dimer: 812" in [each.TextValue for each in items(content, "Comment")]  # without a unit, as it was stored
    added[-1] = part | {"unit": "ng/mL"}
    content = report(attribution=attribution.model_dump() | {"clinical": added})
    assert "D-dimer: 812 ng/mL" in [each.TextValue for each in items(content, "Comment")]


@pytest.mark.parametrize(
    ("label", "meaning"), [("D\\dimer", "D/dimer"), ("Größe, µm", "Größe, µm"), ("A" * 60, "A" * 60)]
)
def test_a_label_is_one_code_meaning(label: str, meaning: str) -> None:
    attribution = prediction().attribution
    assert attribution is not None
    part = {"variable": "own.ddimer", "value": 812.0, "contribution": 0.0, "label": label}
    added = [*attribution.model_dump()["clinical"], part]
    last = items(report(attribution=attribution.model_dump() | {"clinical": added}), "Variable")[-1]
    assert last.ConceptCodeSequence[0].CodeMeaning == meaning


def test_the_spread_of_the_folds_has_no_level_and_a_calibrated_interval_has_one() -> None:
    spread, calibrated = report(), report(**SIGNED)
    assert number(items(spread, "Lowest probability of the folds (no level)")[0]) == 0.31
    assert not items(spread, "Level of the calibrated interval")
    assert number(items(calibrated, "Level of the calibrated interval")[0]) == 0.9
    assert number(items(calibrated, "Measured coverage of the calibrated interval")[0]) == 0.88


def test_a_withheld_decision_has_its_reasons_and_a_decision_its_threshold() -> None:
    withheld = report()
    assert code(items(withheld, "Decision")[0]) == "withheld"
    assert code(items(withheld, "Decision withheld because of")[0]) == "out-of-distribution"
    assert not items(withheld, "Threshold of the decision")
    decision = {"refractory": True, "threshold": 0.22, "rule": "r", "conformal": ["refractory"]}
    decided = report(decision=decision, withheld=[], flags=[])
    assert code(items(decided, "Decision")[0]) == "refractory"
    assert number(items(decided, "Threshold of the decision")[0]) == 0.22
    assert not items(decided, "Decision withheld because of")


def test_the_report_references_every_instance_used_and_its_own_maps(made: dict[str, ObjectFile]) -> None:
    evidence = read(made["report-1.dcm"]).CurrentRequestedProcedureEvidenceSequence
    referenced = {
        item.ReferencedSOPInstanceUID
        for study in evidence
        for series in study.ReferencedSeriesSequence
        for item in series.ReferencedSOPSequence
    }
    maps = {each.sop_instance_uid for each in made.values() if each.kind is ObjectKind.ATTRIBUTION}
    assert referenced == {each.sop_instance_uid for each in address().instances} | maps


def test_the_sums_of_the_maps_are_the_numbers_of_the_report(made: dict[str, ObjectFile]) -> None:
    content = read(made["report-1.dcm"])
    for group in items(content, "Measurement Group"):
        for image in items(group, "Source of Measurement"):
            uid = image.ReferencedSOPSequence[0].ReferencedSOPInstanceUID
            one = next(each for each in made.values() if each.sop_instance_uid == uid)
            values = np.frombuffer(read(one).FloatPixelData, "<f4").astype(np.float64)
            assert values.sum() == pytest.approx(number(items(group, "Contribution to the log-odds")[0]), abs=1e-4)
    assert len(items(content, "Source of Measurement")) == 2


def places(one: Dataset, voxels: np.ndarray) -> np.ndarray:
    """Patient coordinates (n, 3) of (frame, row, column), from the functional groups."""
    shared = one.SharedFunctionalGroupsSequence[0]
    across, down = np.array(shared.PlaneOrientationSequence[0].ImageOrientationPatient, float).reshape(2, 3)
    rows_mm, columns_mm = map(float, shared.PixelMeasuresSequence[0].PixelSpacing)
    groups = [one.PerFrameFunctionalGroupsSequence[frame] for frame in voxels[:, 0]]
    origins = np.array([each.PlanePositionSequence[0].ImagePositionPatient for each in groups], float)
    return origins + np.outer(voxels[:, 1] * rows_mm, down) + np.outer(voxels[:, 2] * columns_mm, across)


def test_a_planted_voxel_is_found_in_patient_coordinates_of_a_tilted_study(made: dict[str, ObjectFile]) -> None:
    """The centre of the planted voxel, by hand from the affine of the image; DICOM has x and y with other signs."""
    expected = (TILTED @ [*SIGN_VOXEL, 1])[:3] * [-1, -1, 1]
    for name in ("segmentation-1.dcm", "segmentation-2.dcm"):
        one = read(made[name])
        inside = np.argwhere(one.pixel_array.reshape(-1, one.Rows, one.Columns))
        np.testing.assert_allclose(places(one, inside).mean(axis=0), expected, atol=1e-3)


def test_the_peak_of_the_map_lies_where_the_sign_lies(stored: dict[str, Path], tmp_path: Path) -> None:
    planted = np.zeros((16, 16, 16), np.float32)
    planted[6, 9, 10] = 0.62
    path = tmp_path / "planted.nii.gz"
    path.write_bytes(nifti.pack(planted, MODEL_GRID))
    name = "maps/aligned-attribution-cta.nii.gz"
    made = make(prediction(), address(), {name: path, "alignment.json": stored["alignment.json"]})
    one = read(next(each for each in made if each.kind is ObjectKind.ATTRIBUTION))
    values = np.frombuffer(one.FloatPixelData, "<f4").reshape(-1, one.Rows, one.Columns)
    peak = np.array([np.unravel_index(values.argmax(), values.shape)])
    expected = (np.linalg.inv(MNI_FROM_WORLD) @ MODEL_GRID @ [6, 9, 10, 1])[:3] * [-1, -1, 1]
    measures = one.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    voxel = [measures.PixelSpacing[1], measures.PixelSpacing[0], measures.SpacingBetweenSlices]
    assert (np.abs(places(one, peak)[0] - expected) <= np.array(voxel, float)).all()


def test_key_images_have_the_notice_burnt_in() -> None:
    out = BytesIO()
    Image.new("RGB", (400, 300), (0, 0, 0)).save(out, "PNG")
    pixels = burnt_in(out.getvalue())
    assert pixels.shape == (325, 400, 3)
    band = pixels[:25].reshape(-1, 3)
    assert len(np.unique(band, axis=0)) > 2  # letters on a plain band
    assert not pixels[25:].any()


def test_the_document_is_a_pdf_with_the_notice_on_every_page(made: dict[str, ObjectFile]) -> None:
    one = read(made["document-1.dcm"])
    content = one.EncapsulatedDocument[: one.EncapsulatedDocumentLength]
    assert content.startswith(b"%PDF-")
    assert not any(word.encode() in content for word in IDENTITY)


def test_without_an_explanation_there_are_report_and_document_only() -> None:
    kinds = [each.kind for each in make(prediction(attribution=None), address(), {})]
    assert kinds == [ObjectKind.REPORT, ObjectKind.DOCUMENT]


def test_an_object_of_one_study_has_no_text_of_another(stored: dict[str, Path]) -> None:
    list(make(prediction(), address(), stored))
    other = address(
        patient_id="P2", patient_name="Other^One", birth_date="", accession_number="A2", referring_physician=""
    )
    for each in make(prediction(ID.replace("1", "2")), other, stored):
        assert not [word for word in IDENTITY if word.encode() in each.content], each.name


def test_dciodvfy_finds_no_error(made: dict[str, ObjectFile], tmp_path: Path) -> None:
    dciodvfy = needed_program("dciodvfy")
    for name, each in made.items():
        path = tmp_path / name
        path.write_bytes(each.content)
        ended = subprocess.run([dciodvfy, path], capture_output=True, text=True, check=False)
        assert not [line for line in ended.stderr.splitlines() if line.startswith("Error")], name


def test_dcmtk_reads_the_report_and_the_document(made: dict[str, ObjectFile], tmp_path: Path) -> None:
    dsrdump, dcm2pdf = needed_program("dsrdump"), needed_program("dcm2pdf")
    for name in ("report-1.dcm", "document-1.dcm"):
        (tmp_path / name).write_bytes(made[name].content)
    ended = subprocess.run([dsrdump, tmp_path / "report-1.dcm"], capture_output=True, text=True, check=True)
    assert 'NUM:(,,"Probability of a refractory occlusion")="0.37"' in ended.stdout
    assert not [line for line in ended.stderr.splitlines() if line.startswith("E:")]
    subprocess.run([dcm2pdf, tmp_path / "document-1.dcm", tmp_path / "out.pdf"], check=True, capture_output=True)
    assert (tmp_path / "out.pdf").read_bytes().startswith(b"%PDF-")


def test_highdicom_reads_the_objects_back(made: dict[str, ObjectFile]) -> None:
    sr = highdicom.sr.srread(BytesIO(made["report-1.dcm"].content))
    groups = sr.content.get_image_measurement_groups()
    assert len(groups) == 10
    seg = highdicom.seg.segread(BytesIO(made["segmentation-2.dcm"].content))
    assert seg.number_of_segments == 1
    assert highdicom.imread(BytesIO(made["attribution-1.dcm"].content)).NumberOfFrames > 1


def test_an_error_of_the_process_is_logged_without_its_message(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    missing = {"alignment.json": tmp_path / "Canary-PID-4711"}
    with pytest.raises(InternalError, match="find the cause in the log"):
        export_isolated(prediction(), address(), missing, tmp_path / "out.zip")
    assert "FileNotFoundError at" in caplog.text
    assert not [word for word in IDENTITY if word in caplog.text]


def test_different_frames_of_reference_give_no_object_that_is_placed(stored: dict[str, Path]) -> None:
    kinds = {each.kind for each in make(prediction(), address(frame_of_reference=""), stored)}
    assert kinds == {ObjectKind.REPORT, ObjectKind.KEY_IMAGES, ObjectKind.DOCUMENT}
