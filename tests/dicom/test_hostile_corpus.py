"""A corpus of hostile files and associations beside a healthy sender: no crash, no hang, no growth of memory."""

from __future__ import annotations

import errno
import io
import os
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from app.core.config import Settings
from app.database.session import Database
from app.database.study_tables import InstanceRow
from app.dicom.errors import DicomLimits, Unreadable
from app.dicom.head import read_head
from app.dicom.instance import read_instance
from app.dicom.pixels import decode
from app.dicom.reception import Reception
from app.storage.local import Storage
from tests.conftest import needed_program
from tests.dicom import hostile_corpus as corpus
from tests.dicom.hostile_corpus import Hostile, hostile_associations, hostile_files
from tests.dicom.studies import contents, plan, voxels, write
from tests.dicom.test_listener_kills import start

HANG_S = 5.0
BUSY_HANG_S = 30.0  # beside other tests that use all cores; a sender that waits in vain waits for 60 s
GROWTH_BYTES = 64 << 20
HOSTILE_AT_ONCE = 5  # of the eight associations; so the healthy sender always finds a place
_REQUEST_S = 5.0  # within which a connection must ask for an association; such senders wait for it
LIMITS = DicomLimits(max_file_bytes=4 << 20, max_study_bytes=64 << 20, max_voxels=4_000_000)


@dataclass
class Seen:
    """What a run has seen: seconds of the slowest answers, and what became of the senders."""

    answer_s: float = 0.0
    attack_s: float = 0.0
    healthy_s: float = 0.0
    healthy: int = 0
    failed: list[str] = field(default_factory=list)


def memory(pid: int) -> int:
    """Resident memory of a process, bytes."""
    line = next(each for each in Path(f"/proc/{pid}/status").read_text().splitlines() if each.startswith("VmRSS"))
    return int(line.split()[1]) * 1024


def data_set(content: bytes) -> tuple[bytes, bytes]:
    """The data set of a file without its file meta information, and its SOP Instance UID, if they can be read."""
    with suppress(Unreadable):
        head = read_head(io.BytesIO(content))
        return content[head.start :], head.sop_uid.encode()
    return content[132:] or b"\0", b"1.2.3.4"


def answered(port: int, content: bytes) -> bool:
    """Send one file by C-STORE; whether the listener answers or ends the association."""
    body, uid = data_set(content)
    with socket.create_connection(("127.0.0.1", port), timeout=BUSY_HANG_S) as connection:
        connection.sendall(corpus.request())
        accepted = connection.recv(6, socket.MSG_WAITALL)
        connection.recv(struct.unpack(">BBI", accepted)[2], socket.MSG_WAITALL)
        with suppress(ConnectionError):
            connection.sendall(corpus.store_command(uid))
            for at in range(0, len(body), 16_000):
                connection.sendall(corpus.pdv(2 if at + 16_000 >= len(body) else 0, body[at : at + 16_000]))
            answer = connection.recv(6, socket.MSG_WAITALL)
            return len(answer) in (0, 6)
    return True


def attack(port: int, hostile: Hostile) -> None:
    """Send what a hostile sender sends, and read until the listener ends the connection."""
    connection = socket.create_connection(("127.0.0.1", port), timeout=BUSY_HANG_S)
    with connection, suppress(ConnectionError):
        for piece in hostile.pieces:
            connection.sendall(piece)
            time.sleep(hostile.pause_s)
        if hostile.reset:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            return
        try:
            connection.shutdown(socket.SHUT_WR)
        except OSError as error:
            if error.errno != errno.ENOTCONN:
                raise
            return  # the listener has reset the connection already
        while connection.recv(4096):
            pass


@contextmanager
def healthy_sender(folder: Path, port: int, seen: Seen) -> Iterator[None]:
    """A storescu that sends studies for as long as the block."""
    stop = threading.Event()

    def send() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            sent = write(folder / str(number), contents(plan(number=number + 100, data=voxels(number)))[:3])
            began = time.monotonic()
            command = ["storescu", "-aec", "RLVO", "127.0.0.1", str(port), "+sd", str(sent)]
            status = subprocess.run(command, capture_output=True, timeout=60).returncode
            seen.healthy_s = max(seen.healthy_s, time.monotonic() - began)
            seen.healthy += 1
            if status != 0:
                seen.failed.append(f"healthy sender {number}: {status}")
            stop.wait(0.2)

    folder.mkdir()
    thread = threading.Thread(target=send)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def one(port: int, name: str, what: bytes | Hostile, seen: Seen) -> None:
    """Send one file, or what one hostile sender sends, and note the time."""
    began = time.monotonic()
    if isinstance(what, Hostile):
        attack(port, what)
        seen.attack_s = max(seen.attack_s, time.monotonic() - began - _REQUEST_S)
        return
    if not answered(port, what):
        seen.failed.append(f"{name}: half an answer")
    seen.answer_s = max(seen.answer_s, time.monotonic() - began)


def run(folder: Path, port: int, files: int, associations: int) -> Seen:
    """Send all of the corpus, with a healthy sender beside it."""
    seen = Seen()
    work: list[tuple[str, bytes | Hostile]] = [*hostile_files(files)]
    work += [(each.name, each) for each in hostile_associations(associations)]
    lock, rest = threading.Lock(), iter(work)

    def many() -> None:
        while True:
            with lock:
                name, what = next(rest, ("", None))
            if what is None:
                return
            try:
                one(port, name, what, seen)
            except Exception as error:  # noqa: BLE001 - all failures are reported together
                seen.failed.append(f"{name}: {type(error).__name__}")

    with healthy_sender(folder / "healthy", port, seen):
        threads = [threading.Thread(target=many) for _ in range(HOSTILE_AT_ONCE)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return seen


def check(folder: Path, monkeypatch: pytest.MonkeyPatch, files: int, associations: int, hang_s: float) -> None:
    monkeypatch.setenv("RLVO_DICOM_MAX_INSTANCE_BYTES", str(1 << 20))
    process, port = start(folder / "data")
    try:
        run(folder, port, 20, 0)  # imports and caches are there then
        before = memory(process.pid)
        (folder / "healthy").rename(folder / "first")
        began = time.monotonic()
        seen = run(folder, port, files, associations)
        taken, growth = time.monotonic() - began, memory(process.pid) - before
        assert process.poll() is None
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()
    parts = [
        f"{files} files and {associations} associations in {taken:.0f} s: {len(seen.failed)} failures",
        f"slowest answer {seen.answer_s:.1f} s, slowest end {seen.attack_s:.1f} s",
        f"{seen.healthy} healthy studies, slowest {seen.healthy_s:.1f} s",
        f"memory {growth / (1 << 20):+.1f} MiB",
    ]
    print("; ".join(parts))
    assert not seen.failed
    assert seen.healthy > 2
    assert max(seen.answer_s, seen.attack_s, seen.healthy_s) < hang_s
    assert growth < GROWTH_BYTES
    assert_healthy_studies_are_stored(folder, seen.healthy)


def assert_healthy_studies_are_stored(folder: Path, count: int) -> None:
    settings = Settings(data_dir=folder / "data")
    database, storage = Database(settings.database), Storage(settings.blobs)
    reception = Reception.of(settings, database, storage)
    while reception.index():
        pass
    sent = [path.read_bytes() for path in (folder / "healthy").rglob("*") if path.is_file()]
    assert len(sent) >= 3 * count
    with database.reading() as session:
        for content in sent:
            assert session.get(InstanceRow, ("local", read_head(io.BytesIO(content)).sop_uid)) is not None
    database.close()


def read_all(count: int) -> None:
    """Every file is read, or refused, within the time; the memory of this process does not grow."""
    read = kept_out = 0
    for number, (name, content) in enumerate(hostile_files(count)):
        if number == 64:
            before = memory(os.getpid())
        began = time.process_time()  # other tests run beside this one
        try:
            read_instance(content, 0, LIMITS)
            for frame in decode(content, LIMITS):
                assert frame.ndim == 2
            read += 1
        except Unreadable:
            kept_out += 1
        assert time.process_time() - began < HANG_S, name
    growth = memory(os.getpid()) - before
    print(f"{count} files: {read} read, {kept_out} kept out; memory {growth / (1 << 20):+.1f} MiB")
    assert read
    assert kept_out > count // 4
    assert growth < GROWTH_BYTES


@pytest.fixture(scope="module", autouse=True)
def dcmtk() -> None:
    needed_program("storescu")


def test_a_part_of_the_corpus_harms_no_healthy_sender(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check(tmp_path, monkeypatch, files=32, associations=25, hang_s=BUSY_HANG_S)


def test_a_part_of_the_files_is_read_or_kept_out() -> None:
    read_all(80)


@pytest.mark.soak
def test_the_corpus_harms_no_healthy_sender(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check(tmp_path, monkeypatch, files=500, associations=200, hang_s=HANG_S)


@pytest.mark.soak
def test_all_files_are_read_or_kept_out() -> None:
    read_all(500)
