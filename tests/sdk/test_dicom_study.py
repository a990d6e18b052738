"""The client sends a DICOM study as an archive."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import pytest

from app.sdk.errors import InvalidRequest
from tests.sdk.scripted_server import PREDICTION, Response, ScriptedServer
from tests.sdk.test_client import Connect, parts


def test_folder_of_a_study_is_sent_as_an_archive_without_its_names(
    connect: Connect, server: ScriptedServer, tmp_path: Path
) -> None:
    folder = tmp_path / "DOE_JOHN"
    folder.mkdir()
    (folder / "DOE_JOHN.dcm").write_bytes(b"an instance")
    server.respond_with(Response(PREDICTION, 202))
    connect().submit(study=folder, series_roles={"3": "ncct"})
    sent = parts(server.requests[0])
    assert sent["series_roles"] == (None, b'{"3": "ncct"}')
    name, content = sent["study"]
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        assert {each: archive.read(each) for each in archive.namelist()} == {"000000": b"an instance"}
    assert name == "study"
    assert b"DOE" not in content


def test_links_to_files_of_a_study_are_followed_once(connect: Connect, server: ScriptedServer, tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    for name in ("a", "b"):
        (tmp_path / "store" / name).write_bytes(name.encode())
    folder = tmp_path / "study"
    folder.mkdir()
    (folder / "1.dcm").symlink_to(tmp_path / "store" / "a")
    (folder / "2.dcm").symlink_to(tmp_path / "store" / "b")
    (folder / "3.dcm").symlink_to(folder / "1.dcm")
    (folder / "4.dcm").write_bytes(b"c")
    server.respond_with(Response(PREDICTION, 202))
    connect().submit(study=folder)
    with zipfile.ZipFile(io.BytesIO(parts(server.requests[0])["study"][1])) as archive:
        assert [archive.read(each) for each in archive.namelist()] == [b"a", b"b", b"c"]


@pytest.mark.parametrize("target", ["store", "nothing"])
def test_a_link_of_a_study_that_leads_to_no_file_is_refused_by_name(
    connect: Connect, server: ScriptedServer, tmp_path: Path, target: str
) -> None:
    (tmp_path / "store").mkdir()
    folder = tmp_path / "study"
    (folder / "CT").mkdir(parents=True)
    (folder / "CT" / "1.dcm").write_bytes(b"a")
    (folder / "CT" / "thin").symlink_to(tmp_path / target)
    with pytest.raises(InvalidRequest, match="CT/thin"):
        connect().submit(study=folder)
    assert not server.requests
