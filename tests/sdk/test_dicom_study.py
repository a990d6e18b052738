"""The client sends a DICOM study as an archive."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

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
