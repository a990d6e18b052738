"""The listener is killed while senders send: nothing that was acknowledged is lost."""

from __future__ import annotations

import io
import os
import random
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from sqlalchemy import select

from app.core.config import Settings
from app.database.session import Database
from app.database.study_tables import InstanceRow
from app.dicom.head import read_head
from app.dicom.reception import Reception
from app.storage.local import Storage
from tests.conftest import needed_program
from tests.dicom.studies import contents, plan, voxels, write


@pytest.fixture(scope="module", autouse=True)
def dcmtk() -> None:
    needed_program("storescu")


def start(folder: Path) -> tuple[subprocess.Popen[bytes], int]:
    environment = os.environ | {"RLVO_DATA_DIR": str(folder)}
    command = [sys.executable, "-m", "app.cli", "dicom", "listen", "--port", "0"]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdout is not None
    line = process.stdout.readline().decode()
    return process, int(line.split(" as ")[0].rpartition(":")[2])


def send(port: int, files: list[Path], acknowledged: set[str]) -> None:
    """Send files until the connection ends; note the name of each that is answered with success."""
    command = ["storescu", "-v", "-aec", "RLVO", "127.0.0.1", str(port), *map(str, files)]
    output = subprocess.run(command, capture_output=True, text=True, timeout=60).stderr
    name = ""
    for line in output.splitlines():
        if "Sending file: " in line:
            name = Path(line.rpartition(": ")[2]).name
        elif "Received Store Response (Success)" in line:
            acknowledged.add(name)


def kill_and_check(folder: Path, kills: int) -> None:
    rng = random.Random(kills)
    acknowledged: set[str] = set()
    written = [each for n in range(3) for each in contents(plan(number=n, data=voxels(n)))]
    sent = write(folder / "sent", written)
    uids = {path.name: read_head(io.BytesIO(path.read_bytes())).sop_uid for path in sent.iterdir()}
    slow, done = 1.0, 0
    while done < kills or (not acknowledged and slow < 64):
        process, port = start(folder)
        done, slow = done + 1, slow if acknowledged else 1.5 * slow  # on a busy machine a sender needs longer
        rest = [name for name in uids if name not in acknowledged] or rng.sample(list(uids), 5)
        killer = threading.Timer(rng.uniform(0.1, 0.6) * slow, process.kill)
        killer.start()
        send(port, [sent / name for name in rest], acknowledged)
        killer.join()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()
    assert acknowledged
    settings = Settings(data_dir=folder)
    database, storage = Database(settings.database), Storage(settings.blobs)
    reception = Reception.of(settings, database, storage)
    while reception.index():
        pass
    with database.reading() as session:
        stored = {row.uid: row.digest for row in session.scalars(select(InstanceRow))}
    database.close()
    assert {uids[name] for name in acknowledged} <= set(stored)
    assert len(set(stored.values())) == len(stored)
    assert all(storage.verify(str(digest)) for digest in stored.values())


def test_nothing_acknowledged_is_lost_when_the_listener_is_killed(tmp_path: Path) -> None:
    kill_and_check(tmp_path, kills=2)


@pytest.mark.soak
def test_nothing_acknowledged_is_lost_in_many_kills(tmp_path: Path) -> None:
    for round_ in range(25):
        (tmp_path / str(round_)).mkdir()
        kill_and_check(tmp_path / str(round_), kills=20)
        shutil.rmtree(tmp_path / str(round_))
