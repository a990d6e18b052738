"""Received instances are durable, stored once, and refused where they contradict each other."""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path

import pytest
from sqlalchemy import select

from app.database.session import Database
from app.database.study_tables import InstanceRow, StudyRow
from app.dicom import reception as reception_module
from app.dicom.errors import Unreadable
from app.dicom.reception import Outcome, Reception
from app.dicom.writing import Syntax
from app.sdk.errors import DatabaseUnavailable
from app.storage.local import Storage
from tests.dicom.studies import contents, plan, voxels


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(tmp_path / "blobs")


@pytest.fixture(scope="module")
def blank(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("blank") / "rlvo.sqlite"
    database = Database(f"sqlite:///{path}")
    database.upgrade()
    database.close()
    return path


@pytest.fixture
def reception(tmp_path: Path, storage: Storage, blank: Path) -> Reception:
    shutil.copyfile(blank, tmp_path / "rlvo.sqlite")
    return Reception(tmp_path / "received", Database(f"sqlite:///{tmp_path / 'rlvo.sqlite'}"), storage)


def send(reception: Reception, data: bytes, caller: str = "ct") -> Outcome:
    draft = reception.draft()
    draft.write_bytes(data)
    try:
        return reception.accept(caller, draft).outcome
    finally:
        assert not draft.exists()


def rows(reception: Reception) -> tuple[list[StudyRow], list[InstanceRow]]:
    with reception.database.reading() as session:
        return list(session.scalars(select(StudyRow))), list(session.scalars(select(InstanceRow)))


def files(reception: Reception) -> list[Path]:
    return [path for path in reception._folder.rglob("*") if path.is_file()]


def test_an_instance_is_stored_bit_for_bit_under_its_sha256(reception: Reception, storage: Storage) -> None:
    data = contents(plan())[0]
    assert send(reception, data) is Outcome.STORED
    assert [path.read_bytes() for path in files(reception)] == [data]
    assert reception.index() == 1
    (study,), (instance,) = rows(reception)
    assert storage.read(instance.digest) == data
    assert (study.instances, study.state) == (1, "receiving")
    assert files(reception) == []


@pytest.mark.parametrize("indexed", [False, True])
def test_the_same_instance_again_changes_nothing(reception: Reception, indexed: bool) -> None:
    data = contents(plan())[0]
    send(reception, data)
    if indexed:
        reception.index()
    before = rows(reception)[0][0].due if indexed else None
    assert send(reception, data) is Outcome.KNOWN
    reception.index()
    (study,), instances = rows(reception)
    assert len(instances) == 1
    assert before in (None, study.due)


@pytest.mark.parametrize("indexed", [False, True])
def test_the_same_uid_with_other_bytes_is_refused(
    reception: Reception, indexed: bool, caplog: pytest.LogCaptureFixture
) -> None:
    first, other = contents(plan())[0], contents(plan(data=voxels(1)))[0]
    send(reception, first)
    if indexed:
        reception.index()
    with caplog.at_level(logging.WARNING):
        assert send(reception, other) is Outcome.CONFLICT
    reception.index()
    assert len(rows(reception)[1]) == 1
    assert "conflict" in caplog.text
    assert rows(reception)[0][0].uid not in caplog.text


def test_contradicting_files_that_meet_at_the_indexing_keep_the_first(reception: Reception, tmp_path: Path) -> None:
    data = contents(plan())
    send(reception, data[0])
    reception.index()
    send(reception, data[1])
    (path,) = files(reception)
    path.write_bytes(contents(plan(data=voxels(1)))[0])  # as another process could have accepted it
    reception.index()
    (study,), _ = rows(reception)
    assert (study.conflicts, study.instances) == (1, 1)


def test_other_file_meta_information_of_one_data_set_is_the_same_instance(reception: Reception) -> None:
    data = contents(plan())[0]
    send(reception, data)
    assert send(reception, b"x" * 128 + data[128:]) is Outcome.KNOWN


def test_tenants_do_not_share_instances(reception: Reception) -> None:
    data = contents(plan())[0]
    assert send(reception, data, "ct") is Outcome.STORED
    assert send(reception, data, "other tenant/..") is Outcome.STORED
    reception.index()
    assert sorted(study.caller for study in rows(reception)[0]) == ["ct", "other tenant/.."]


@pytest.mark.parametrize("indexed", [False, True])
def test_a_study_has_a_largest_number_of_instances(reception: Reception, indexed: bool) -> None:
    reception._max_instances = 3
    data = contents(plan(), syntax=Syntax.IMPLICIT)
    for each in data[:3]:
        send(reception, each)
    if indexed:
        reception.index()
    assert send(reception, data[3]) is Outcome.TOO_MANY
    assert send(reception, data[0]) is Outcome.KNOWN


def drafts(reception: Reception, written: list[bytes]) -> list[Path]:
    made = [reception.draft() for _ in written]
    for path, data in zip(made, written, strict=True):
        path.write_bytes(data)
    return made


def test_instances_that_are_received_together_are_judged_one_by_one(reception: Reception) -> None:
    first, second, third, fourth = contents(plan())[:4]
    other = contents(plan(data=voxels(1)))[0]
    send(reception, second)
    reception.index()
    reception._max_instances = 3
    made = drafts(reception, [first, b"no DICOM", first, other, second, third, fourth])
    found = reception.accept_all("ct", made)
    assert [isinstance(each, Unreadable) or each.outcome for each in found] == [
        *(Outcome.STORED, True, Outcome.KNOWN, Outcome.CONFLICT, Outcome.KNOWN),
        *(Outcome.STORED, Outcome.TOO_MANY),
    ]
    assert not any(path.exists() for path in made)
    assert len(files(reception)) == 2
    reception.index()
    (study,), instances = rows(reception)
    assert (study.instances, len(instances), study.conflicts) == (3, 3, 0)


def test_bytes_are_flushed_before_their_name_and_names_before_the_answer(
    reception: Reception, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a power failure, a name that exists has all its bytes, and what was answered has its name."""
    done: list[tuple[str, str]] = []
    flush, link = reception_module.sync, os.link

    def flushed(path: Path) -> None:
        flush(path)
        done.append(("flush", path.name))

    def linked(source: Path, target: Path) -> None:
        link(source, target)
        done.append(("link", source.name))

    monkeypatch.setattr(reception_module, "sync", flushed)
    monkeypatch.setattr(os, "link", linked)
    made = drafts(reception, contents(plan())[:5])
    reception.accept_all("ct", made)
    folder = next(reception._folder.glob("*/*/*")).parent
    for path in made:
        assert done.index(("flush", path.name)) < done.index(("link", path.name)) < done.index(("flush", folder.name))
    assert done[-1] == ("flush", folder.name)


def test_a_folder_that_is_indexed_between_name_and_flush_costs_nothing(
    reception: Reception, monkeypatch: pytest.MonkeyPatch
) -> None:
    flush = reception_module.sync

    def late(path: Path) -> None:
        if path.is_dir():
            reception.index()  # as another process could do now; it deletes the folder
        flush(path)

    monkeypatch.setattr(reception_module, "sync", late)
    found = reception.accept_all("ct", drafts(reception, contents(plan())[:3]))
    assert [not isinstance(each, Unreadable) and each.outcome for each in found] == [Outcome.STORED] * 3
    assert files(reception) == []
    assert len(rows(reception)[1]) == 3


@pytest.mark.parametrize("data", [b"", b"\0" * 132, b"\0" * 128 + b"DICM" + b"\xff" * 500])
def test_a_file_that_is_not_dicom_is_refused(reception: Reception, data: bytes) -> None:
    with pytest.raises(Unreadable):
        send(reception, data)
    assert files(reception) == []


def test_what_a_killed_process_has_received_is_indexed_later(reception: Reception, storage: Storage) -> None:
    for each in contents(plan()):
        send(reception, each)
    left = reception.draft()
    left.write_bytes(b"unfinished")
    later = Reception(reception._folder, reception.database, storage)
    later.clear(age=-1)
    while later.index():
        pass
    (study,), instances = rows(later)
    assert len(instances) == study.instances == 16
    assert files(later) == []


def test_a_file_stays_if_its_rows_cannot_be_written(reception: Reception, tmp_path: Path) -> None:
    send(reception, contents(plan())[0])
    shutil.move(tmp_path / "rlvo.sqlite", tmp_path / "away.sqlite")
    reception.database.close()
    (tmp_path / "rlvo.sqlite").write_bytes(b"not a database" * 100)
    with pytest.raises(DatabaseUnavailable):
        reception.index()
    assert len(files(reception)) == 1
    with pytest.raises(DatabaseUnavailable):
        send(reception, contents(plan())[1])
