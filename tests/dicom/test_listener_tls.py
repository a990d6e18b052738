"""The listener with TLS, and a real sender of DCMTK."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from tests.certificates import certified
from tests.conftest import needed_program
from tests.dicom.studies import contents, plan, write
from tests.dicom.test_listener import Running, data_set


@pytest.fixture(autouse=True)
def dcmtk() -> None:
    needed_program("storescu")


@pytest.mark.parametrize("mutual", [False, True])
def test_only_a_sender_with_tls_and_its_certificate_is_served(tmp_path: Path, mutual: bool) -> None:
    server, server_key = map(str, certified(tmp_path / "server", "127.0.0.1"))
    sender, sender_key = map(str, certified(tmp_path / "sender", "ct1"))
    stranger, stranger_key = map(str, certified(tmp_path / "stranger", "ct1"))
    callers = {"dicom_tls_callers": sender} if mutual else {}
    running = Running(tmp_path / "data", dicom_tls_certificate=server, dicom_tls_key=server_key, **callers)
    sent = contents(plan())[:3]
    folder = write(tmp_path / "study", sent)
    try:
        with socket.create_connection(("127.0.0.1", running.port)):  # its handshake never begins
            assert running.send(folder, "+tls", sender_key, sender, "+cf", server) == 0
            assert sorted(running.stored()) == sorted(map(data_set, sent))
            assert running.send(folder) != 0  # without TLS
            assert running.send(folder, "+tla", "+cf", stranger) != 0  # it does not know our certificate
            assert (running.send(folder, "+tla", "+cf", server) == 0) is not mutual
            assert (running.send(folder, "+tls", stranger_key, stranger, "+cf", server) == 0) is not mutual
    finally:
        running.listener.stop()
