"""The listener takes instances from real senders, and one hostile association harms no other one."""

from __future__ import annotations

import io
import socket
import struct
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
from sqlalchemy import select

from app.core.config import Settings
from app.database.session import Database
from app.database.study_tables import InstanceRow
from app.dicom.head import read_head
from app.dicom.listener import MAX_ASSOCIATIONS, Listener
from app.dicom.reception import Reception
from app.dicom.writing import Syntax
from app.storage.local import Storage
from tests import orthanc
from tests.conftest import needed_program
from tests.deployment import wait
from tests.dicom.studies import contents, plan, voxels, write


@pytest.fixture(scope="module", autouse=True)
def dcmtk() -> None:
    needed_program("storescu")


class Running:
    """A listener with its own database and storage."""

    def __init__(self, folder: Path, **settings: object) -> None:
        self.settings = Settings(data_dir=folder, dicom_max_instance_bytes=1 << 20, **settings)
        self.database = Database(self.settings.database)
        self.database.upgrade()
        self.storage = Storage(folder / "blobs")
        self.reception = Reception(self.settings.received, self.database, self.storage)
        self.listener = Listener(self.settings, self.reception)
        self.port = self.listener.start()

    def send(self, folder: Path, *options: str, tool: str = "storescu", title: str = "RLVO") -> int:
        command = [tool, *options, "-aec", title, "127.0.0.1", str(self.port)]
        more = [] if tool == "echoscu" else ["+sd", "+r", str(folder)]
        return subprocess.run([*command, *more], capture_output=True, timeout=60).returncode

    def is_indexed(self) -> bool:
        try:
            return not any(path.is_file() for path in self.settings.received.glob("*/*/*"))
        except FileNotFoundError:  # the folder of a study, which goes when it is empty
            return False

    def stored(self) -> list[bytes]:
        """The stored data sets, without file meta information."""
        wait(self.is_indexed)
        with self.database.reading() as session:
            digests = list(session.scalars(select(InstanceRow.digest)))
        return [data_set(self.storage.read(digest)) for digest in digests]


def data_set(data: bytes) -> bytes:
    return data[read_head(io.BytesIO(data)).start :]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    running = Running(tmp_path_factory.mktemp("listener"))
    yield running
    running.listener.stop()


def test_temporary_files_go_to_the_usual_folder_after_the_stop(tmp_path: Path) -> None:
    before = tempfile.gettempdir()
    Running(tmp_path).listener.stop()
    assert tempfile.gettempdir() == before


def raw(running: Running, data: bytes = b"") -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", running.port), timeout=30)
    connection.sendall(data)
    return connection


def associate(running: Running, title: bytes = b"HOSTILE", pdu_bytes: int = 16384) -> socket.socket:
    """A connection with an accepted association for CT images in context 1."""

    def item(kind: int, body: bytes) -> bytes:
        return struct.pack(">BBH", kind, 0, len(body)) + body

    context = b"\x01\0\0\0" + item(0x30, b"1.2.840.10008.5.1.4.1.1.2") + item(0x40, b"1.2.840.10008.1.2.1")
    user = item(0x50, item(0x51, struct.pack(">I", pdu_bytes)) + item(0x52, b"1.2.3"))
    body = struct.pack(">HH16s16s32x", 1, 0, b"RLVO".ljust(16), title.ljust(16))
    body += item(0x10, b"1.2.840.10008.3.1.1.1") + item(0x20, context) + user
    connection = raw(running, struct.pack(">BBI", 1, 0, len(body)) + body)
    kind, _, length = struct.unpack(">BBI", connection.recv(6, socket.MSG_WAITALL))
    connection.recv(length, socket.MSG_WAITALL)
    assert kind in (2, 3)
    if kind == 3:
        connection.close()
        raise ConnectionRefusedError
    return connection


def ends(connection: socket.socket) -> bool:
    """Whether the listener ends the connection, before the minute that it waits for a PDU is over."""
    connection.settimeout(30)
    try:
        while connection.recv(4096):
            pass
    except ConnectionError:
        return True
    return True


def command(uid: bytes = b"1.2.3.4\0") -> bytes:
    """The PDV of a C-STORE request in context 1."""

    def element(number: int, value: bytes) -> bytes:
        return struct.pack("<HHI", 0, number, len(value)) + value

    ct = b"1.2.840.10008.5.1.4.1.1.2\0"
    body = element(0x0002, ct) + element(0x0100, b"\x01\0") + element(0x0110, b"\x01\0") + element(0x0700, b"\0\0")
    body += element(0x0800, b"\x01\0") + element(0x1000, uid)
    return pdv(3, element(0, struct.pack("<I", len(body))) + body)


def pdv(control: int, data: bytes) -> bytes:
    return struct.pack(">BBIIBB", 4, 0, len(data) + 6, len(data) + 2, 1, control) + data


def test_real_senders_are_answered_and_every_data_set_is_bit_for_bit(running: Running, tmp_path: Path) -> None:
    sent = contents(plan())
    folder = write(tmp_path / "study", sent)
    assert running.send(folder, tool="echoscu") == 0
    assert running.send(folder) == 0
    assert running.send(folder) == 0  # again
    assert sorted(running.stored()) == sorted(map(data_set, sent))


@pytest.mark.parametrize("syntax", ["rle", "jpeg-ls", "deflated"])
def test_compressed_data_sets_stay_compressed(running: Running, tmp_path: Path, syntax: str) -> None:
    sent = contents(plan(number=len(syntax) + 20, description=syntax, data=voxels(len(syntax))), syntax=Syntax(syntax))[
        :2
    ]
    before = len(running.stored())
    assert running.send(write(tmp_path / "study", sent), "-xf", *proposal(tmp_path, syntax)) == 0
    assert len(running.stored()) == before + 2


def proposal(folder: Path, syntax: str) -> list[str]:
    text = f"""[[TransferSyntaxes]]\n[T]\nTransferSyntax1 = {Syntax(syntax).uid}\n[[PresentationContexts]]\n[P]
PresentationContext1 = CTImageStorage\\T\n[[Profiles]]\n[Default]\nPresentationContexts = P\n"""
    (folder / "profile").write_text(text)
    return [str(folder / "profile"), "Default"]


def test_an_orthanc_forwards_what_it_stores(running: Running, tmp_path: Path) -> None:
    login = (orthanc.USER, orthanc.PASSWORD)
    with orthanc.running(tmp_path / "orthanc") as archive, httpx.Client(auth=login, timeout=30) as http:
        url = f"http://127.0.0.1:{archive.http_port}"
        sent = contents(plan(number=40, description="Orthanc"))[:3]
        ids = [http.post(f"{url}/instances", content=each).json()["ID"] for each in sent]
        http.put(f"{url}/modalities/rlvo", json=["RLVO", "127.0.0.1", running.port]).raise_for_status()
        answer = http.post(f"{url}/modalities/rlvo/store", json=ids).raise_for_status()
    assert answer.json()["FailedInstancesCount"] == 0
    assert set(map(data_set, sent)) <= set(running.stored())


def test_another_ae_title_is_rejected(running: Running, tmp_path: Path) -> None:
    folder = write(tmp_path / "study", contents(plan())[:1])
    assert running.send(folder, title="OTHER") != 0


def test_a_known_uid_with_other_bytes_is_not_accepted(running: Running, tmp_path: Path) -> None:
    assert running.send(write(tmp_path / "a", contents(plan(number=9))[:1])) == 0
    before = len(running.stored())
    running.send(write(tmp_path / "b", contents(plan(number=9, data=voxels(5)))[:1]))
    assert len(running.stored()) == before


HOSTILE = {
    "text": b"GET / HTTP/1.0\r\n\r\n",
    "unknown PDU": b"\x99\0\0\0\0\x04abcd",
    "endless PDU": b"\x01\0\xff\xff\xff\xff" + b"\0" * 100_000,
    "short request": b"\x01\0\0\0\0\x04abcd",
    "data before a request": pdv(0, b"x" * 100),
    "nothing": b"",
}


def test_hostile_connections_end_and_a_sender_beside_them_is_served(running: Running) -> None:
    connections = [raw(running, data) for data in HOSTILE.values() for _ in range(5)]
    assert running.send(Path(), tool="echoscu") == 0
    assert all(ends(each) for each in connections)
    for each in connections:
        each.close()


MESSAGES = {
    "an endless instance": command() + pdv(0, b"\0" * 16000) * 150,
    "a large PDU": struct.pack(">BBIIBB", 4, 0, 1 << 30, (1 << 30) - 4, 1, 0) + b"\0" * 1000,
    "a damaged command": pdv(3, b"\xff" * 500),
    "an unknown command": command().replace(b"\0\x01\x02\0\0\0\x01\0", b"\0\x01\x02\0\0\0\x77\x07"),
    "a wrong PDV length": struct.pack(">BBIIBB", 4, 0, 6, 1 << 20, 1, 0) + b"\0" * 100,
    "an unknown context": command().replace(b"\x01\x03", b"\x55\x03", 1),
}


def test_hostile_messages_end_their_associations_only(running: Running) -> None:
    connections = [associate(running) for _ in MESSAGES]
    for connection, message in zip(connections, MESSAGES.values(), strict=True):
        with suppress(ConnectionError):
            connection.sendall(message)
    assert running.send(Path(), tool="echoscu") == 0
    for connection in connections:
        assert ends(connection)
        connection.close()
    wait(lambda: not list(running.reception.incoming.iterdir()))


def status(running: Running, message: bytes) -> int:
    """Status of the answer to a C-STORE request."""
    with associate(running) as connection:
        connection.sendall(message)
        answer = connection.recv(6, socket.MSG_WAITALL)
        body = connection.recv(struct.unpack(">BBI", answer)[2], socket.MSG_WAITALL)
    start = struct.pack("<HHI", 0, 0x0900, 2)
    return int.from_bytes(body[body.index(start) + len(start) :][:2], "little")


def test_a_data_set_that_is_not_dicom_is_answered_with_an_error_status(running: Running) -> None:
    assert status(running, command() + pdv(2, b"\xff" * 999)) == 0xC000


def test_a_data_set_with_another_uid_than_its_command_is_answered_so(running: Running) -> None:
    content = contents(plan(number=8))[0]
    uid = read_head(io.BytesIO(content)).sop_uid.encode()
    even = uid + b"\0" * (len(uid) % 2)
    assert status(running, command() + pdv(2, data_set(content))) == 0xA900
    assert status(running, command(even) + pdv(2, data_set(content))) == 0


def test_an_association_more_than_the_limit_is_rejected_and_a_place_is_free_again(running: Running) -> None:
    open_ones = [associate(running) for _ in range(MAX_ASSOCIATIONS)]
    with pytest.raises(ConnectionRefusedError):
        associate(running)
    for each in open_ones:
        each.close()
    wait(lambda: running.send(Path(), tool="echoscu") == 0)


def test_other_machines_need_a_list_of_callers(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="RLVO_DICOM_CALLERS"):
        Listener(Settings(data_dir=tmp_path, dicom_host="0.0.0.0"), None)


def test_a_sender_that_is_not_listed_is_rejected(tmp_path: Path) -> None:
    running = Running(tmp_path, dicom_callers="CT1=stroke")
    try:
        assert running.send(Path(), "-aet", "CT1", tool="echoscu") == 0
        assert running.send(Path(), "-aet", "CT2", tool="echoscu") != 0
    finally:
        running.listener.stop()
