"""Loading a version and predicting a cohort in rlvo.evaluation."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import rlvo.evaluation as ev
from app.imaging.io import nifti
from app.inference.model_version import ModelVersion
from app.phantoms.biology import Preset
from app.phantoms.cohort import write_patient
from app.registry import signatures
from app.sdk.clinical import ClinicalRecord
from app.sdk.errors import ModelNotFound, ModelNotReady
from app.sdk.types import NOTICE, Input
from app.training import training_overlap
from app.training.errors import CohortFault
from app.training.progress import ProgressReporter
from app.training.score import EvalConfig, predict_unlabelled
from app.training.synthesize import synthesize
from app.training.validate_version import validate_version

STORE = Path(__file__).resolve().parents[2] / "model_store"
COARSE = {"ncct": (3.0, 3.0, 4.0), "cta": (3.0, 3.0, 3.0), "perfusion": (4.0, 4.0, 6.0)}
NAME = "rlvo-synthetic-lr"  # computes without a network
VERSION = "2.3.0"


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("notebook") / "cohort"
    synthesize(folder, 24, 3, Preset.PAPER)
    return folder


@pytest.fixture(scope="module")
def version() -> ev.Version:
    return ev.load_version(f"{NAME}/{VERSION}", store=STORE)


@pytest.mark.parametrize("reference", [f"{NAME}/{VERSION}", f"{NAME}@{VERSION}", NAME, STORE / NAME / VERSION])
def test_a_version_is_found(reference: str | Path, version: ev.Version) -> None:
    found = ev.load_version(reference, store=STORE)
    assert (found.name, found.version, found.folder) == (NAME, VERSION, STORE / NAME / VERSION)
    assert found.threshold == version.manifest.threshold.value
    assert found.card().startswith(f"# {NAME}")


def test_the_notice_is_kept(version: ev.Version, cohort: Path) -> None:
    assert version.notice.startswith(NOTICE)
    assert "synthetic" in version.notice
    assert version.notice in repr(version)
    assert ev.predict_cohort(version, cohort).attrs["notice"] == version.notice


def test_an_unknown_version_names_those_of_the_store() -> None:
    for reference in ("unheard-of", f"{NAME}/9.9.9", "../secrets"):
        with pytest.raises(ModelNotFound) as caught:
            ev.load_version(reference, store=STORE)
        assert f"{NAME}/{VERSION}" in caught.value.__notes__[0]


def test_a_damaged_or_unsigned_version_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = tmp_path / NAME / VERSION
    shutil.copytree(STORE / NAME / VERSION, copy)
    public = signatures.generate(tmp_path / "key")
    monkeypatch.setenv("RLVO_TRUSTED_KEYS", public)
    with pytest.raises(ModelNotReady):
        ev.load_version(copy)
    signatures.sign(copy, tmp_path / "key")
    assert ev.load_version(copy).version == VERSION
    monkeypatch.delenv("RLVO_TRUSTED_KEYS")
    file = next(copy.glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(ModelNotReady, match="differs from its manifest"):
        ev.load_version(copy)


def test_a_cohort_is_predicted_as_rlvo_validate_does(version: ev.Version, cohort: Path, tmp_path: Path) -> None:
    frame = ev.predict_cohort(version, cohort)
    table = pd.read_csv(cohort / "cohort.csv")
    assert frame["patient"].tolist() == table["patient"].tolist()
    assert np.allclose(frame["probability"], 1 / (1 + np.exp(-frame["log_odds"])), atol=1e-12)
    assert (frame["decision"] == (frame["probability"] >= version.threshold)).all()
    assert set(" ".join(frame["conformal"]).split()) <= {"refractory", "not-refractory", "none"}
    assert frame["flags"].str.contains("unknown").all()  # the cohort came prepared
    _, validated, _ = validate_version(EvalConfig([version.folder], cohort), tmp_path / "report", rounds=100)
    assert frame["probability"].tolist() == validated.probabilities.tolist()
    assert frame["outcome"].tolist() == validated.outcomes.tolist()
    assert validated.kept is not None
    assert [("refractory" in text.split()) for text in frame["conformal"]] == validated.kept[:, 1].tolist()
    found = ev.validate(frame, conformal="conformal", threshold=version.threshold, level=version.level, rounds=100)
    assert len(found.coverage) == 4


@pytest.mark.parametrize("kept", [0, 3])
def test_outcomes_may_be_missing(kept: int, version: ev.Version, cohort: Path, tmp_path: Path) -> None:
    copy = tmp_path / "cohort"
    shutil.copytree(cohort, copy)
    table = pd.read_csv(copy / "cohort.csv").head(4)
    components = ["final_stenosis_percent", "etici", "rescue_treatment"]
    if kept:
        table.loc[kept:, components] = None
    else:
        table = table.drop(columns=components)
    table.to_csv(copy / "cohort.csv", index=False)
    frame = ev.predict_cohort(version, copy / "cohort.csv")
    whole = ev.predict_cohort(version, cohort)
    assert frame["probability"].tolist() == whole["probability"].tolist()[:4]
    assert frame["outcome"].isna().tolist() == [n >= kept for n in range(4)]


def test_volumes_of_one_patient_are_prepared_and_predicted(version: ev.Version, tmp_path: Path) -> None:
    paths = write_patient(tmp_path / "p1", 5, spacing_mm=COARSE)
    (tmp_path / "cohort.csv").write_text("patient,ncct,cta,age,nihss\np1,p1/ncct.nii.gz,p1/cta.nii.gz,71,14\n")
    frame = ev.predict_cohort(version, tmp_path, accept_flags=True)
    manifest = ModelVersion.load(version.folder, version.manifest, "cpu")
    given = {Input(name): nifti.read(paths[name], field=Input(name)) for name in ("ncct", "cta")}
    expected = manifest.predict(manifest.prepare(given, ClinicalRecord(age=71, nihss=14)))
    assert frame["patient"].tolist() == ["p1"]
    assert frame["log_odds"].tolist() == pytest.approx([expected.log_odds], abs=1e-3)  # images are kept as float16
    assert "unknown" not in frame["flags"][0]
    assert len(list((tmp_path / ".prepared").glob("*.safetensors"))) == 1
    assert ev.predict_cohort(version, tmp_path, accept_flags=True).equals(frame)


def test_faults_of_a_cohort_are_all_named(version: ev.Version, tmp_path: Path) -> None:
    table = tmp_path / "cohort.csv"
    table.write_text("patient,ncct,age\np1,none.nii.gz,70\np2,,-3\n")
    with pytest.raises(CohortFault) as caught:
        ev.predict_cohort(version, table)
    text = "\n".join(caught.value.faults)
    assert "row 2, column ncct: there is no such file" in text
    assert "row 3" in text
    table.write_text("patient,ncct,age\n")
    with pytest.raises(CohortFault, match="no row"):
        ev.predict_cohort(version, table)


def test_patients_of_the_training_stop_the_call(version: ev.Version, cohort: Path, tmp_path: Path) -> None:
    scored = predict_unlabelled(EvalConfig([version.folder], cohort), ProgressReporter())
    block = training_overlap.hashes(scored.patients, scored.data)
    manifest = version.manifest.model_copy(update={"extra": version.manifest.extra | {training_overlap.EXTRA: [block]}})
    copy = tmp_path / NAME / VERSION
    shutil.copytree(version.folder, copy)
    (copy / "manifest.json").write_text(manifest.model_dump_json())
    with pytest.raises(CohortFault, match="leave them out, or --i-know"):
        ev.predict_cohort(copy, cohort)
    frame = ev.predict_cohort(copy, cohort, i_know=True)
    assert any("too good" in remark for remark in frame.attrs["remarks"])
