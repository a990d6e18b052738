"""Export of a subject's data without volumes, and erasure with certificates."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest
from typer.testing import CliRunner

from app.cli.__main__ import app
from app.database import audit, job_state
from app.database.predictions import Artifact
from app.database.session import Database
from app.operations.subject_export import export
from app.sdk.errors import NotFound
from app.sdk.types import ErasureCertificate, Input
from app.storage.local import Storage
from app.worker.queue import Queue
from tests import study
from tests.database.results import result

FILES = {
    "maps/attribution-cta.nii.gz": b"a map",
    "maps/aligned-cta.nii.gz": b"a head",
    "figures/waterfall.png": b"a figure",
    "report.html": b"<!doctype html>",
}


@pytest.fixture
def database(tmp_path: Path) -> Database:
    database = Database(f"sqlite:///{tmp_path / 'rlvo.sqlite'}")
    database.upgrade()
    Queue(database).upgrade()
    return database


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(tmp_path / "blobs")


def answered(database: Database, storage: Storage, folder: Path, subject: str = "S-1", seed: int = 0) -> str:
    """Store a finished prediction with its files; return its id."""
    new = study.new_prediction("local", subject=subject, inputs={Input.CTA: study.store_volume(storage, folder, seed)})
    with database.session() as session:
        study.add_and_queue(session, Queue(database), new)
        started = job_state.start(session, new.id)
        assert started
        artifacts = [Artifact(name, storage.put(data), len(data), "text/plain") for name, data in FILES.items()]
        assert job_state.succeed(session, started, result(artifacts))
    return new.id


def names(path: Path) -> set[str]:
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        return set(archive.namelist())


def test_export_contains_volumes_only_on_request(database: Database, storage: Storage, tmp_path: Path) -> None:
    first, second = (answered(database, storage, tmp_path, seed=seed) for seed in range(2))
    answered(database, storage, tmp_path, subject="S-2", seed=2)
    report = export(database, storage, "local", "S-1", tmp_path / "plain.zip")
    documents = {"prediction", "clinical", "reviews", "outcome", "audit"}
    expected = {f"{one}/{name}.json" for one in (first, second) for name in documents} | {"subject.json"}
    expected |= {f"{one}/{name}" for one in (first, second) for name in ("figures/waterfall.png", "report.html")}
    assert names(tmp_path / "plain.zip") == expected
    assert not [name for name in expected if ".nii" in name]
    assert len(report.left_out) == 6
    assert (tmp_path / "plain.zip").stat().st_mode & 0o077 == 0
    complete = export(database, storage, "local", "S-1", tmp_path / "complete.zip", volumes=True)
    assert complete.left_out == []
    assert {f"{first}/inputs/cta.nii", f"{first}/maps/aligned-cta.nii.gz"} <= names(tmp_path / "complete.zip")
    with zipfile.ZipFile(tmp_path / "plain.zip") as archive:
        about = json.loads(archive.read("subject.json"))
        assert json.loads(archive.read(f"{first}/clinical.json")) == {"age": 71, "nihss": 14}
    assert about["predictions"] == [first, second]
    assert about["left_out"] == report.left_out


def test_damaged_file_is_reported_and_not_exported(database: Database, storage: Storage, tmp_path: Path) -> None:
    prediction_id = answered(database, storage, tmp_path)
    (digest,) = (digest for digest in storage.digests() if storage.read(digest) == FILES["report.html"])
    storage.path(digest).write_bytes(b"other bytes")
    report = export(database, storage, "local", "S-1", tmp_path / "export.zip")
    assert report.missing == [f"{prediction_id}/report.html"]
    assert f"{prediction_id}/report.html" not in names(tmp_path / "export.zip")


def test_unknown_subject_leaves_no_file(database: Database, storage: Storage, tmp_path: Path) -> None:
    answered(database, storage, tmp_path)
    for tenant, subject in (("local", "S-9"), ("another", "S-1")):
        with pytest.raises(NotFound):
            export(database, storage, tenant, subject, tmp_path / "export.zip")
    assert not list(tmp_path.glob("export*"))


def test_subject_commands(
    database: Database, storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RLVO_DATA_DIR", str(tmp_path))
    prediction_id = answered(database, storage, tmp_path)
    command = CliRunner()
    target = str(tmp_path / "S-1.zip")
    exported = command.invoke(app, ["subjects", "export", "S-1", "--to", target])
    assert exported.stdout == "1 predictions, 2 files; 3 volumes left out\n"
    assert command.invoke(app, ["subjects", "export", "S-1", "--to", target]).exit_code == 2
    assert command.invoke(app, ["subjects", "erase", "S-1"], input="n\n").exit_code == 1
    erased = command.invoke(app, ["subjects", "erase", "S-1", "--yes"])
    certificate = ErasureCertificate.model_validate_json(erased.stdout)
    assert certificate.id == prediction_id
    assert len(certificate.blobs) == 5
    assert not certificate.complete  # the blobs are too young to be deleted
    assert command.invoke(app, ["subjects", "certificate", prediction_id]).stdout == erased.stdout
    assert isinstance(command.invoke(app, ["subjects", "erase", "S-1", "--yes"]).exception, NotFound)
    with database.reading() as session:
        assert audit.verify(session).intact
