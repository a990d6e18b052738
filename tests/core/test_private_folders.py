"""Folders of records are open to their owner only, new ones and existing ones."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.core.config import Settings
from app.core.filesystem import is_exposed, private_file, private_folder
from app.storage.factory import secure


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture(autouse=True)
def usual_mask() -> Iterator[None]:
    before = os.umask(0o022)
    yield
    os.umask(before)


def test_new_folder_is_private(tmp_path: Path) -> None:
    private_folder(tmp_path / "a" / "b")
    assert mode(tmp_path / "a" / "b") == 0o700


def test_file_is_private_and_replaces_an_earlier_one_only_when_it_is_complete(tmp_path: Path) -> None:
    target = tmp_path / "file"
    target.write_text("earlier")

    def write_half() -> None:
        with private_file(target) as file:
            file.write(b"new")
            raise ValueError("half")

    with pytest.raises(ValueError, match="half"):
        write_half()
    assert target.read_text() == "earlier"
    with private_file(target) as file:
        file.write(b"new")
    assert target.read_text() == "new"
    assert mode(target) == 0o600
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize(("before", "after"), [(0o755, 0o700), (0o777, 0o700), (0o2770, 0o2700), (0o700, 0o700)])
def test_existing_folder_becomes_private(tmp_path: Path, before: int, after: int) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    folder.chmod(before)
    (folder / "file").write_text("x")
    private_folder(folder)
    assert mode(folder) == after
    assert (folder / "file").read_text() == "x"


def test_folders_of_all_settings_become_private(tmp_path: Path) -> None:
    for name in ("data", "blobs"):
        (tmp_path / name).mkdir()
    database = tmp_path / "rlvo.sqlite"
    database.write_bytes(b"")
    settings = Settings(
        data_dir=tmp_path / "data", storage_url=str(tmp_path / "blobs"), database_url=f"sqlite:///{database}"
    )
    assert settings.sqlite_file == database
    secure(settings)
    paths = ("data", "blobs", "blobs/.erasures", "rlvo.sqlite")
    assert [mode(tmp_path / name) for name in paths] == [0o700, 0o700, 0o700, 0o600]


def test_parents_of_the_data_folder_keep_their_permissions(tmp_path: Path) -> None:
    (tmp_path / "srv").mkdir()
    secure(Settings(data_dir=tmp_path / "srv" / "rlvo"))
    assert (mode(tmp_path / "srv"), mode(tmp_path / "srv" / "rlvo")) == (0o755, 0o700)


def test_file_is_exposed_only_if_its_folders_are_open(tmp_path: Path) -> None:
    outer = tmp_path / "outer"
    outer.mkdir()
    file = outer / "rlvo.sqlite"
    file.write_bytes(b"")
    closed_above = any(not parent.stat().st_mode & 0o011 for parent in outer.resolve().parents)
    assert is_exposed(file) is not closed_above
    outer.chmod(0o700)
    assert not is_exposed(file)
    assert not is_exposed(outer)
    assert not is_exposed(tmp_path / "missing")


@pytest.mark.parametrize(
    ("url", "file"),
    [
        ("sqlite:////srv/rlvo.sqlite", Path("/srv/rlvo.sqlite")),
        ("sqlite:///rlvo.sqlite", Path("rlvo.sqlite")),
        ("postgresql://user@host/rlvo", None),
    ],
)
def test_file_of_the_database_is_known(url: str, file: Path | None) -> None:
    assert Settings(database_url=url).sqlite_file == file
