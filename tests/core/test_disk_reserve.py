"""The reserve for erasures: filled when there is space, and released step by step on a full disk."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.core import disk_reserve
from app.core.config import Settings
from app.core.disk_reserve import FILE, DiskReserve
from app.sdk.errors import StorageFull
from app.storage.factory import reserve_of
from tests.disks import MIB, fill, mounted


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 4 MiB."""
    with mounted(tmp_path / "disk", 4) as disk:
        yield disk


def write(path: Path, size: int) -> None:
    """Write as the storage does: a full disk raises StorageFull and leaves nothing."""
    try:
        path.write_bytes(b"x" * size)
    except OSError as error:
        path.unlink()
        raise StorageFull from error


def test_disk_that_cannot_hold_the_reserve_keeps_what_it_has(disk: Path) -> None:
    DiskReserve([disk], MIB).fill()
    with pytest.raises(OSError, match="No space left"):
        disk_reserve._allocate(disk / FILE, 100 * MIB)
    assert (disk / FILE).stat().st_size == MIB


def test_reserve_is_only_on_the_disks_that_an_erasure_writes_to(disk: Path, tmp_path: Path) -> None:
    database, ledger = tmp_path / "database", tmp_path / "ledger"
    for folder in (database, ledger):
        folder.mkdir()
    for url in (f"sqlite:///{database / 'rlvo.sqlite'}", "postgresql://localhost/rlvo"):
        settings = Settings(data_dir=disk, database_url=url, erasure_ledger=str(ledger), reserve_bytes=MIB)
        reserve_of(settings).fill()
    assert not (disk / FILE).exists()
    assert (database / FILE).exists()
    assert (ledger / FILE).exists()


def test_erasure_on_a_full_disk_uses_the_reserve(disk: Path) -> None:
    reserve = DiskReserve([disk], MIB)
    reserve.fill()
    assert (disk / FILE).stat().st_size == MIB
    fill(disk)
    with pytest.raises(StorageFull):
        write(disk / "row", 100_000)
    reserve.run(lambda: write(disk / "row", 100_000))
    assert (disk / "row").stat().st_size == 100_000
    assert (disk / FILE).stat().st_size == MIB * 3 // 4


def test_other_writers_that_take_the_space_do_not_stop_the_erasure(disk: Path) -> None:
    reserve = DiskReserve([disk], MIB)
    reserve.fill()
    fill(disk)
    tries = []

    def work() -> None:
        if len(tries) < 3:  # another process fills what was released
            fill(disk)
        tries.append(None)
        write(disk / "row", 100_000)

    reserve.run(work)
    assert len(tries) == 4
    assert (disk / "row").exists()


def test_empty_reserve_raises(disk: Path) -> None:
    reserve = DiskReserve([disk], MIB)
    reserve.fill()
    fill(disk)
    with pytest.raises(StorageFull):
        reserve.run(lambda: write(disk / "row", 2 * MIB))
    assert (disk / FILE).stat().st_size == 0
    reserve.fill()  # there is no space yet
    assert (disk / FILE).stat().st_size == 0
    (disk / "filler").unlink()
    reserve.fill()
    assert (disk / FILE).stat().st_size == MIB


def test_disk_without_space_for_a_reserve_is_left_as_it_is(disk: Path) -> None:
    reserve = DiskReserve([disk], 3 * MIB)
    reserve.fill()
    assert not (disk / FILE).exists()
    assert reserve.run(lambda: 1) == 1


def test_folders_on_one_disk_share_one_reserve(tmp_path: Path) -> None:
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        folder.mkdir()
    DiskReserve([*folders, tmp_path / "missing"], 4096).fill()
    assert [(folder / FILE).exists() for folder in folders] == [True, False]
    assert (folders[0] / FILE).stat().st_mode & 0o777 == 0o600
    assert shutil.disk_usage(tmp_path).free


def test_reserve_of_no_bytes_makes_no_file(tmp_path: Path) -> None:
    DiskReserve([tmp_path], 0).fill()
    assert list(tmp_path.iterdir()) == []


def test_error_that_is_no_full_disk_releases_nothing(tmp_path: Path) -> None:
    reserve = DiskReserve([tmp_path], 4096)
    reserve.fill()

    def fail() -> None:
        raise KeyError

    with pytest.raises(KeyError):
        reserve.run(fail)
    assert (tmp_path / FILE).stat().st_size == 4096
