"""`rlvo erasures replay`, and what `rlvo fsck` and `rlvo audit verify` say after a restore of the database."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from app.cli.__main__ import main
from app.core.config import Settings
from app.database.session import Database
from tests.database.rows import add_prediction


class Site:
    """A data folder on SQLite with one prediction of the subject S-1, and a backup of its database."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self._monkeypatch, self._capsys = folder, monkeypatch, capsys
        monkeypatch.setenv("RLVO_DATA_DIR", str(folder / "data"))
        self.run("db", "upgrade")
        database = Database(Settings(data_dir=folder / "data").database)
        self.prediction_id = add_prediction(database, caller="local").id
        database.close()
        shutil.copyfile(folder / "data" / "rlvo.sqlite", folder / "backup.sqlite")

    def restore(self) -> None:
        shutil.copyfile(self.folder / "backup.sqlite", self.folder / "data" / "rlvo.sqlite")

    def run(self, *words: str) -> tuple[int, str]:
        self._monkeypatch.setattr(sys, "argv", ["rlvo", *words])
        with pytest.raises(SystemExit) as caught:
            main()
        said = self._capsys.readouterr()
        return int(caught.value.code or 0), said.out + said.err


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Site:
    return Site(tmp_path, monkeypatch, capsys)


def test_restored_erasure_is_reported_and_repeated(site: Site) -> None:
    assert site.run("subjects", "erase", "S-1", "--yes")[0] == 0
    assert site.run("audit", "verify")[0] == 0
    site.restore()
    for command in (("fsck",), ("audit", "verify")):
        status, text = site.run(*command)
        assert status == 1
        assert f"restored: prediction {site.prediction_id}" in text
        assert "rlvo erasures replay" in text
    status, text = site.run("erasures", "replay")
    assert (status, text.split()[0]) == (0, "1")
    assert site.run("audit", "verify")[0] == 0
    assert "is erased in the ledger" not in site.run("fsck")[1]
    status, text = site.run("subjects", "certificate", site.prediction_id)
    assert status == 0
    assert '"why":"replay"' in text


def test_mend_repeats_the_erasure(site: Site) -> None:
    site.run("subjects", "erase", "S-1", "--yes")
    site.restore()
    site.run("fsck", "--mend")
    assert site.run("erasures", "replay")[1].startswith("0 predictions erased again")


def test_ledger_that_was_lost_with_the_data_folder_is_read_from_its_copy(site: Site) -> None:
    site.run("subjects", "erase", "S-1", "--yes")
    (site.folder / "data" / "erasures").rename(site.folder / "copy")
    site.restore()
    assert site.run("audit", "verify")[0] == 0  # nothing is left that knows of the erasure
    status, text = site.run("erasures", "replay", "--from", str(site.folder / "copy"))
    assert status == 0
    assert text.splitlines()[0] == "1 entries of the copy were added to the ledger"
    assert text.splitlines()[1].startswith("1 predictions erased again")


def test_revoked_key_stays_revoked(site: Site) -> None:
    site.run("keys", "create", "pacs")
    site.folder.joinpath("backup.sqlite").write_bytes((site.folder / "data" / "rlvo.sqlite").read_bytes())
    key_id = site.run("keys", "list")[1].splitlines()[-2].split()[0]
    assert site.run("keys", "revoke", key_id)[0] == 0
    site.restore()
    status, text = site.run("fsck")
    assert status == 1
    assert f"restored: key {key_id}" in text
    assert "1 keys and webhooks ended again" in site.run("erasures", "replay")[1]
    assert site.run("keys", "revoke", key_id)[0] == 2  # it is revoked already
