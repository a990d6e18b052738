"""Kills of listener, API and worker while studies arrive and results leave: nothing is lost, and nothing is doubled.

Design notes:
- The number of kills is ``SOAK_KILLS``, 500 by default. A kill counts if its process was running and ready.
- A worker takes seconds to start, a listener less. So the next process to be killed is one that is ready: while a
  worker starts, that is the listener.
- A study is sent, and sent again, until its share of the kills has been made. So each kill meets a transfer.
- A prediction of a part of a study may fail, for instance because parts of two volumes do not match. Then a later
  revision must have succeeded.
- The expected objects are made in this process: the service starts a new process for each prediction, which takes four
  times as long. One prediction is also asked from the service.
"""

from __future__ import annotations

import base64
import io
import json
import os
import random
import signal
import socket
import sqlite3
import tempfile
import threading
import time
import zipfile
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest

from app.core.sealing import seal_text
from app.database import destinations, predictions
from app.database.destinations import DestinationKind
from app.database.session import Database
from app.database.study_tables import ReturnAddressRow
from app.database.tables import ArtifactRow
from app.dicom.head import read_head
from app.dicom.objects.export import make
from app.dicom.return_address import open_sealed
from app.imaging.io import nifti
from app.phantoms.dicom_series import SeriesPlan, files, planned_slices
from app.sdk import RlvoError
from app.sdk.types import Input
from app.storage.local import Storage
from tests import orthanc
from tests.conftest import needed_program
from tests.deployment import free_port
from tests.dicom.test_listener_kills import send
from tests.orthanc import PASSWORD, USER, Orthanc

from .service_process import RunningService

pytestmark = pytest.mark.xdist_group("e2e")

KEY = bytes(range(32))
KILLS_OF_A_STUDY = 20
WEIGHTS = {"listener": 6, "worker": 3, "API": 1}  # an API ends its worker and its listener, too
SETTLE_S = 120.0  # for each study
CHECK_S = 20.0  # for the objects of each prediction
PROGRESS_S = 10.0
BASIC = "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()


@dataclass(frozen=True)
class Revision:
    """A prediction of a study; ``error`` is the code of its failure."""

    number: int
    id: str
    status: str
    error: str | None = None


@dataclass
class Run:
    """A service, its archive, and what its sender was told."""

    service: RunningService
    archive: Orthanc
    listener_port: int
    sent: dict[str, dict[str, Path]] = field(default_factory=dict)  # files by name, of each study
    acknowledged: set[str] = field(default_factory=set)
    killed: dict[str, int] = field(default_factory=dict)
    faults: list[BaseException] = field(default_factory=list)

    def send_all(self, clinical: dict[str, object], kills: int) -> None:
        """Send every study until each of its instances is acknowledged, with its clinical record before it."""
        try:
            share = kills / len(self.sent)
            for number, (uid, paths) in enumerate(self.sent.items(), start=1):
                self.patiently(lambda uid=uid: self.set_clinical(uid, clinical))
                while rest := [path for name, path in paths.items() if name not in self.acknowledged]:
                    send(self.listener_port, rest, self.acknowledged)
                    time.sleep(0.1)
                while sum(self.killed.values()) < number * share:
                    send(self.listener_port, list(paths.values()), set())  # known instances
                    time.sleep(0.1)
        except BaseException as fault:  # noqa: BLE001 - raised again by the test
            self.faults.append(fault)

    def set_clinical(self, uid: str, clinical: dict[str, object]) -> None:
        with self.service.client() as client:
            client.studies.set_clinical(uid, clinical)

    def patiently(self, action: Callable[[], None]) -> None:
        """Repeat an action while the API is away."""
        while True:
            try:
                return action()
            except RlvoError:
                time.sleep(0.2)

    def kill(self, what: str) -> bool:
        """Kill one process of the service, if it is ready; an API is started again, as its operator would."""
        pid = self.pid(what)
        if pid is None:
            return False
        if what == "API":
            self.service.kill_api()
            self.service.spawn()
        else:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.killed[what] = self.killed.get(what, 0) + 1
        return True

    def pid(self, what: str) -> int | None:
        """Process id of a process that is ready; None while it starts."""
        with suppress(OSError, StopIteration, IndexError, sqlite3.Error, RlvoError):
            if what == "worker":
                pid = self.service.workers()[0]  # a worker registers when it can take jobs
                return pid if b"worker" in Path(f"/proc/{pid}/cmdline").read_bytes() else None
            if what == "listener":
                socket.create_connection(("127.0.0.1", self.listener_port), 1).close()
                return self.listener()
            with self.service.client(timeout=2, retries=0) as client:
                client.health()
            assert self.service._process is not None
            return self.service._process.pid
        return None

    def listener(self) -> int:
        """Process id of the listener, a child of the API process. Raises StopIteration while there is none."""
        assert self.service._process is not None
        parent = self.service._process.pid
        threads = Path(f"/proc/{parent}/task").glob("*/children")  # a child belongs to the thread that started it
        children = [pid for thread in threads for pid in thread.read_text().split()]
        return next(int(pid) for pid in children if b"listen" in Path(f"/proc/{pid}/cmdline").read_bytes())

    def settle(self) -> None:
        """Wait until every study is predicted, and every result delivered."""
        end = time.monotonic() + SETTLE_S * len(self.sent)
        said = 0.0
        while (state := self.state()) != Counter({("studies", "predicted"): len(self.sent)}):
            now = time.monotonic()
            assert now < end, state
            if now - said > PROGRESS_S:
                print(f"still open: {dict(state)}", flush=True)
                said = now
            time.sleep(0.5)

    def state(self) -> Counter[tuple[str, str]]:
        """Number of studies in each state, of unfinished predictions and of results that are not delivered."""
        found: Counter[tuple[str, str]] = Counter()
        for what, table, column, done in (
            ("studies", "studies", "state", ()),
            ("predictions", "predictions", "status", ("succeeded", "failed")),
            ("deliveries", "dicom_deliveries", "state", ("delivered",)),
        ):
            rows = self.service.query(f"SELECT {column}, count(*) FROM {table} GROUP BY {column}")
            found |= Counter({(what, state): count for state, count in rows if state not in done})
        return found

    def check(self) -> None:
        """Nothing acknowledged is lost, each revision exists once, and the archive has each object once."""
        known = {uid for (uid,) in self.service.query("SELECT uid FROM instances")}
        names = {name: path for paths in self.sent.values() for name, path in paths.items()}
        heads = {name: read_head(io.BytesIO(path.read_bytes())) for name, path in names.items()}
        assert self.acknowledged == set(heads)
        assert {head.sop_uid for head in heads.values()} <= known
        finished = "SELECT target, count(*) FROM audit WHERE action IN ('prediction.succeeded', 'prediction.failed')"
        once = self.service.query(f"{finished} GROUP BY target")
        assert {count for _, count in once} == {1}
        last = dict(self.service.query("SELECT uid, instances FROM studies"))
        assert last == {uid: len(paths) for uid, paths in self.sent.items()}
        made = self.revisions()
        assert {target for target, _ in once} == {each.id for each in made}
        succeeded = [each.id for each in made if each.error is None]
        assert self.archive.instances() == sorted(self.expected(succeeded))
        self.check_served(succeeded[-1])
        assert self.service.rlvo("audit", "verify").returncode == 0

    def revisions(self) -> list[Revision]:
        """The predictions of all studies, after a check that those of each study end well."""
        rows = self.service.query(
            "SELECT study_id, revision, prediction_id, status, error FROM study_predictions"
            " JOIN predictions ON predictions.id = prediction_id ORDER BY study_id, revision"
        )
        of_study: dict[str, list[Revision]] = defaultdict(list)
        for study, number, prediction_id, status, error in rows:
            of_study[study].append(
                Revision(number, prediction_id, status, json.loads(error)["code"] if error else None)
            )
        assert len(of_study) == len(self.sent)
        for each in of_study.values():
            assert_end_well(each)
        made = [each for revisions in of_study.values() for each in revisions]
        print(f"revisions that failed, and were replaced: {dict(Counter(each.error for each in made if each.error))}")
        return made

    def expected(self, succeeded: list[str]) -> list[str]:
        """SOP Instance UIDs of the objects of predictions, made again."""
        found: list[str] = []
        end = time.monotonic() + CHECK_S * len(succeeded)
        database = Database(f"sqlite:///{self.service.folder}/rlvo.sqlite")
        for number, each in enumerate(succeeded, start=1):
            found += objects(database, self.service.folder / "blobs", each)
            assert time.monotonic() < end, f"the objects of {number} of {len(succeeded)} predictions were made"
            if number % 10 == 0:
                print(f"objects of {number} of {len(succeeded)} predictions", flush=True)
        database.close()
        return found

    def check_served(self, prediction_id: str) -> None:
        """The service makes the same objects of a prediction; it starts a process for them, slow on a busy machine."""
        with self.service.client(timeout=600.0) as client:
            path = client.dicom(prediction_id, self.service.folder / "result.zip")
        with zipfile.ZipFile(path) as packed:
            served = [read_head(io.BytesIO(packed.read(name))).sop_uid for name in packed.namelist()]
        assert served == self.expected([prediction_id])


def assert_end_well(revisions: Sequence[Revision]) -> None:
    """Check that the last revision of a study succeeded, and that no earlier one met a fault of the service."""
    assert [each.number for each in revisions] == list(range(1, len(revisions) + 1))
    assert {each.status for each in revisions} <= {"succeeded", "failed"}
    assert revisions[-1].status == "succeeded", revisions[-1]
    assert "internal-error" not in {each.error for each in revisions}


def objects(database: Database, blobs: Path, prediction_id: str) -> list[str]:
    """SOP Instance UIDs of the objects of a prediction, made in this process."""
    with database.reading() as session, tempfile.TemporaryDirectory() as folder:
        prediction = predictions.find(session, prediction_id, None)
        address = session.get_one(ReturnAddressRow, prediction_id)
        rows = session.query(ArtifactRow).filter_by(prediction_id=prediction_id)
        files = {row.name: Path(folder, row.name.replace("/", "-")) for row in rows}
        for row in rows:
            files[row.name].symlink_to(Storage(blobs).path(row.digest))
        return [each.sop_instance_uid for each in make(prediction, open_sealed(address.sealed, KEY), files)]


def write_study(folder: Path, patient: dict[str, Path], number: int) -> tuple[str, dict[str, Path]]:
    """UID and files of a study."""
    folder.mkdir(parents=True)
    written: dict[str, Path] = {}
    uid = ""
    for series, (name, agent) in enumerate((("ncct", ""), ("cta", "Iomeprol")), start=2):
        volume = nifti.read(patient[name], field=Input(name))
        data = np.rint(volume.data * volume.slope + volume.inter).astype(np.int16)
        one = SeriesPlan(name, series, f"{name} head", kernel="H30s", contrast=agent, thickness=4.0)
        for content in files(replace(one, **planned_slices(data, volume.affine)), f"kills {number}"):
            path = folder / f"{number}-{len(written)}"
            path.write_bytes(content)
            written[path.name] = path
            uid = uid or read_head(io.BytesIO(content)).study_uid
    return uid, written


def revisions(*errors: str | None) -> list[Revision]:
    """Revisions of a study, by the codes of their failures."""
    return [
        Revision(number, f"p{number}", "failed" if error else "succeeded", error)
        for number, error in enumerate(errors, start=1)
    ]


@pytest.mark.parametrize("errors", [(None,), (None, None), ("geometry-mismatch", None), ("quarantined", None, None)])
def test_a_study_whose_last_revision_succeeded_ends_well(errors: tuple[str | None, ...]) -> None:
    assert_end_well(revisions(*errors))


@pytest.mark.parametrize("errors", [("geometry-mismatch",), (None, "geometry-mismatch"), ("internal-error", None)])
def test_a_study_whose_last_revision_failed_or_that_met_a_fault_does_not(errors: tuple[str | None, ...]) -> None:
    with pytest.raises(AssertionError):
        assert_end_well(revisions(*errors))


def test_a_revision_that_exists_twice_does_not_end_well() -> None:
    with pytest.raises(AssertionError):
        assert_end_well(revisions(None) * 2)


@pytest.mark.soak
@pytest.mark.timeout(0)
def test_kills_lose_nothing_and_double_nothing(tmp_path: Path, model_store: Path, patient: dict[str, Path]) -> None:
    needed_program("storescu")
    kills = int(os.environ.get("SOAK_KILLS", "500"))
    rng = random.Random(kills)
    (tmp_path / "service").mkdir()
    with orthanc.running(tmp_path / "orthanc") as archive:
        service, port = RunningService(tmp_path / "service", model_store, "tiny", patience=600.0), free_port()
        service.environment |= {
            "RLVO_DICOM_PORT": str(port),
            "RLVO_DICOM_QUIET": "5",
            "RLVO_DICOM_RETURN_KEY": base64.b64encode(KEY).decode(),
            "RLVO_DICOM_HOSTS": f"http://127.0.0.1:{archive.http_port}",
            "RLVO_DICOM_BACKOFF": "0.5",
        }
        try:
            service.start()
            database = Database(f"sqlite:///{service.folder}/rlvo.sqlite")
            with database.session() as session:
                place, secret = archive.studies_url, seal_text(BASIC, KEY)
                destinations.create(session, "local", "Orthanc", DestinationKind.STOW, place, secret=secret)
            database.close()
            run = Run(service, archive, port)
            for number in range(max(kills // KILLS_OF_A_STUDY, 2)):
                uid, written = write_study(tmp_path / "sent" / str(number), patient, number)
                run.sent[uid] = written
            record = json.loads(patient["clinical"].read_text())
            sender = threading.Thread(target=run.send_all, args=(record, kills))
            sender.start()
            made, began = 0, time.monotonic()
            while made < kills and not run.faults:
                time.sleep(rng.uniform(0.1, 0.8))
                (what,) = rng.choices(list(WEIGHTS), list(WEIGHTS.values()))
                made += run.kill(what)
            print(f"\n{run.killed} killed in {time.monotonic() - began:.0f} s", flush=True)
            sender.join()
            assert not run.faults
            run.settle()
            print(f"settled after {time.monotonic() - began:.0f} s", flush=True)
            run.check()
            print(f"checked after {time.monotonic() - began:.0f} s", flush=True)
            print(f"{run.killed} killed; {len(run.acknowledged)} instances, {len(run.archive.instances())} objects")
        finally:
            service.stop()
