"""Local blobs are complete or absent, verified, safe against races, and leave no files."""

from __future__ import annotations

import errno
import hashlib
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest

from app.core.filesystem import locked
from app.sdk.errors import InternalError, StorageFull
from app.storage.local import Storage
from tests.disks import MIB, fill

DATA = b"a volume" * 1000


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(tmp_path / "blobs")


def files(storage: Storage) -> list[Path]:
    return [path for path in storage.folder.rglob("*") if path.is_file()]


def age(path: Path, seconds: float) -> None:
    os.utime(path, (time.time() - seconds,) * 2)


def test_blob_is_named_by_the_digest_of_its_bytes(storage: Storage) -> None:
    with storage.writer() as writer:
        for start in range(0, len(DATA), 777):
            writer.write(memoryview(DATA)[start : start + 777])
        digest, size = writer.commit()
    assert digest == hashlib.sha256(DATA).hexdigest()
    assert size == len(DATA)
    assert storage.read(digest) == DATA
    with storage.open(digest) as file:
        assert file.read() == DATA
    assert list(storage.digests()) == [digest]
    assert storage.exists(digest)
    assert storage.verify(digest)


@pytest.mark.parametrize("linked", [True, False])
@pytest.mark.parametrize("before", [None, DATA[:-1] + b"?"])
def test_adopted_file_becomes_a_blob_and_stays(
    storage: Storage, tmp_path: Path, linked: bool, before: bytes | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, digest = tmp_path / "file", hashlib.sha256(DATA).hexdigest()
    file.write_bytes(DATA)
    if before is not None:  # a damaged blob is replaced
        storage.path(digest).parent.mkdir()
        storage.path(digest).write_bytes(before)
    if not linked:

        def refused(*_: object) -> None:
            raise OSError(errno.EXDEV, "another file system")

        monkeypatch.setattr(os, "link", refused)
    for _ in range(2):  # again, as after a kill: the blob can be a name of the same file then
        assert storage.adopt(file) == (digest, len(DATA))
        assert storage.verify(digest)
    assert storage.path(digest).samefile(file) == linked
    assert files(storage) == [storage.path(digest)]
    assert time.time() - storage.path(digest).stat().st_mtime < 60
    file.unlink()
    assert storage.read(digest) == DATA


def test_uncommitted_blob_leaves_no_file(storage: Storage) -> None:
    with storage.writer() as writer:
        writer.write(DATA)
        writer.abort()
        writer.abort()

    def fail_halfway() -> None:
        with storage.writer() as writer:
            writer.write(DATA)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_halfway()
    assert files(storage) == []


def test_equal_bytes_are_stored_once(storage: Storage) -> None:
    assert storage.put(DATA) == storage.put(DATA)
    assert len(files(storage)) == 1


def test_damaged_blob_is_detected_and_not_read(storage: Storage) -> None:
    digest = storage.put(DATA)
    storage.path(digest).write_bytes(DATA[:-1] + b"!")
    assert not storage.verify(digest)
    with pytest.raises(InternalError):
        storage.read(digest)
    storage.quarantine(digest)
    assert not storage.exists(digest)
    assert not storage.verify(digest)
    with pytest.raises(InternalError):
        storage.read(digest)
    with pytest.raises(FileNotFoundError):
        storage.open(digest)
    assert len(files(storage)) == 1  # in quarantine, not deleted


@pytest.mark.parametrize("name", ["", "../secret", "a" * 63, "A" * 64, "g" * 64, "/" + "a" * 63])
def test_text_that_is_no_digest_is_refused(storage: Storage, name: str) -> None:
    with pytest.raises(ValueError, match="digest"):
        storage.path(name)


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".", "x" * 65])
def test_text_that_is_no_id_is_refused(storage: Storage, name: str) -> None:
    with pytest.raises(ValueError, match="id"):
        storage.scratch(name)


def test_young_blob_is_not_deleted(storage: Storage) -> None:
    digest = storage.put(DATA)
    assert not storage.delete(digest)
    assert storage.exists(digest)
    age(storage.path(digest), 1000)
    assert storage.delete(digest)
    assert storage.delete(digest)
    assert storage.delete("f" * 64)
    assert not storage.exists(digest)


def test_repeated_upload_makes_a_blob_young(storage: Storage) -> None:
    digest = storage.put(DATA)
    age(storage.path(digest), 1e6)
    assert list(storage.older_than(3600)) == [digest]
    storage.put(DATA)
    assert list(storage.older_than(3600)) == []
    assert not storage.delete(digest)


def _delete_repeatedly(folder: Path, digest: str, started: Event) -> None:
    storage = Storage(folder)
    while True:
        storage.delete(digest, grace=5)  # longer than a busy machine needs from an upload to its reading
        started.set()


def test_blob_survives_a_simultaneous_deletion(storage: Storage) -> None:
    """Each upload replaces an old blob that another process is deleting."""
    digest = hashlib.sha256(DATA).hexdigest()
    spawn = multiprocessing.get_context("spawn")
    started = spawn.Event()
    deleter = spawn.Process(target=_delete_repeatedly, args=(storage.folder, digest, started))
    deleter.start()
    try:
        assert started.wait(30)
        for _ in range(500):
            storage.put(DATA)
            assert storage.read(digest) == DATA
            age(storage.path(digest), 10)
    finally:
        deleter.kill()
        deleter.join()


def test_simultaneous_writers_of_one_blob_leave_one_intact_blob(storage: Storage) -> None:
    threads = [threading.Thread(target=storage.put, args=(DATA,)) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(files(storage)) == 1
    assert storage.verify(next(storage.digests()))


def test_killed_writer_leaves_a_temporary_file_that_is_swept(storage: Storage) -> None:
    code = (
        "import sys; from pathlib import Path; from app.storage.local import Storage\n"
        "w = Storage(Path(sys.argv[1])).writer(); w.write(b'x' * 100000); print('written', flush=True)\n"
        "sys.stdin.read()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(storage.folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout
    assert process.stdout.readline() == b"written\n"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert list(storage.digests()) == []
    (temporary,) = files(storage)
    assert storage.sweep_incoming(older_than=60) == 0
    age(temporary, 61)
    assert storage.sweep_incoming(older_than=60) == 1
    assert files(storage) == []


def test_full_disk_raises_and_leaves_no_file(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    """A limit on the file size simulates a full disk: the kernel refuses the write in the same way."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    monkeypatch.setattr(errno, "EDQUOT", errno.EFBIG)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(StorageFull):
            storage.put(b"x" * 20_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)
    assert files(storage) == []
    storage.put(DATA)


def test_scratch_folder_keeps_bytes_until_it_is_cleared(storage: Storage) -> None:
    scratch_folder = storage.scratch("0192-a")
    digest = scratch_folder.put(DATA)
    assert storage.scratch("0192-a").get(digest) == DATA
    assert storage.scratch("0192-b").get(digest) is None
    assert storage.scratch_ids() == ["0192-a"]
    (storage.folder / ".work" / "0192-a" / digest).write_bytes(b"damaged")
    assert scratch_folder.get(digest) is None
    scratch_folder.clear()
    scratch_folder.clear()
    assert scratch_folder.get(digest) is None
    assert storage.scratch_ids() == []
    assert list(storage.digests()) == []


def test_suspended_upload_does_not_block_others(storage: Storage) -> None:
    digest = storage.put(DATA)
    folder = storage.path(digest).parent
    os.utime(storage.path(digest), (1, 1))
    with locked(folder, shared=True):  # as a process that is suspended while it syncs the folder
        assert storage.put(DATA) == digest
        os.utime(storage.path(digest), (1, 1))
        start = time.monotonic()
        assert not storage.delete(digest)  # a later sweep deletes it
        assert time.monotonic() - start < 5
    assert storage.delete(digest)


def test_disk_without_enough_space_for_a_study_counts_as_full(small_disk: Path) -> None:
    storage = Storage(small_disk / "blobs")
    storage.probe()
    filler = fill(small_disk, free=MIB)
    with pytest.raises(StorageFull):
        storage.probe()
    assert storage.put(DATA)  # a small study still fits
    filler.unlink()
    storage.probe()
