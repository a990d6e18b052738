"""An archive is away while a result waits for it: the service says so, and the result arrives once when it is back.

The seconds without the archive are ``SOAK_AWAY``, an hour by default.
"""

from __future__ import annotations

import base64
import json
import os
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.core.sealing import seal_text
from app.database import destinations
from app.database.destinations import DestinationKind
from app.database.session import Database
from app.sdk.types import Prediction
from app.worker.dicom_delivery import LONGEST_PAUSE
from tests import orthanc
from tests.conftest import needed_program
from tests.deployment import free_port
from tests.dicom.test_listener_kills import send
from tests.orthanc import Orthanc

from .service_process import RunningService, eventually
from .test_dicom_kills import BASIC, KEY, write_study

pytestmark = pytest.mark.xdist_group("e2e")

BACKOFF_S = 10.0
PATIENCE_S = 1.2 * LONGEST_PAUSE + 120  # the longest pause between two tries, and time to make the objects


def add_destinations(service: RunningService, archive: Orthanc) -> None:
    """One archive by both ways."""
    database = Database(f"sqlite:///{service.folder}/rlvo.sqlite")
    with database.session() as session:
        stow, c_store = DestinationKind.STOW, DestinationKind.C_STORE
        destinations.create(session, "local", "Web", stow, archive.studies_url, secret=seal_text(BASIC, KEY))
        place = f"127.0.0.1:{archive.dicom_port}"
        destinations.create(session, "local", "Dimse", c_store, place, called="ARCHIVE", calling="RLVO")
    database.close()


def metric(service: RunningService, state: str) -> float:
    text = httpx.get(f"{service.url}/metrics", timeout=30).text
    (line,) = (each for each in text.splitlines() if each.startswith(f'rlvo_dicom_deliveries{{state="{state}"}}'))
    return float(line.rpartition(" ")[2])


def told(prediction: Prediction) -> list[tuple[str, str, int, str | None]]:
    return [(each.destination, each.state.value, each.tries, each.reason) for each in prediction.deliveries or []]


@pytest.mark.soak
@pytest.mark.timeout(0)
def test_result_arrives_once_after_an_archive_was_away(
    tmp_path: Path, model_store: Path, patient: dict[str, Path]
) -> None:
    needed_program("storescu")
    seconds = float(os.environ.get("SOAK_AWAY", "3600"))
    (tmp_path / "service").mkdir()
    archive, port = Orthanc(free_port(), free_port()), free_port()
    service = RunningService(tmp_path / "service", model_store, "tiny", patience=600.0)
    service.environment |= {
        "RLVO_DICOM_PORT": str(port),
        "RLVO_DICOM_QUIET": "5",
        "RLVO_DICOM_RETURN_KEY": base64.b64encode(KEY).decode(),
        "RLVO_DICOM_HOSTS": f"http://127.0.0.1:{archive.http_port}, 127.0.0.1:{archive.dicom_port}",
        "RLVO_DICOM_BACKOFF": str(BACKOFF_S),
    }
    service.start()
    try:
        add_destinations(service, archive)
        uid, written = write_study(tmp_path / "sent", patient, 0)
        record: dict[str, Any] = json.loads(patient["clinical"].read_text())
        with service.client() as client:
            client.studies.set_clinical(uid, record)
            acknowledged: set[str] = set()
            send(port, list(written.values()), acknowledged)
            assert acknowledged == set(written)
            made = eventually(lambda: client.studies.get(uid).predictions, "a prediction", within=600)[0].id
            print(f"\nprediction {made} of {service.url}", flush=True)

            def waiting() -> bool:
                found = client.get(made).deliveries or []
                return len(found) == 2 and all(each.reason == "unreachable" and each.tries >= 2 for each in found)

            eventually(waiting, "two tries of both destinations", within=600)
            began, seen = time.monotonic(), []
            while (gone := time.monotonic() - began) < seconds:
                state = told(client.get(made))
                if not seen or seen[-1] != state:
                    seen.append(state)
                    print(f"{gone:6.0f} s away: {state}", flush=True)
                assert {each[1] for each in state} == {"waiting"}
                assert metric(service, "waiting") == 2
                time.sleep(min(5.0, seconds / 20))
            with orthanc.running(
                tmp_path / "orthanc", http_port=archive.http_port, dicom_port=archive.dicom_port
            ) as back:
                began = time.monotonic()

                def delivered() -> bool:
                    return {each.state.value for each in client.get(made).deliveries or []} == {"delivered"}

                eventually(delivered, "both deliveries", within=PATIENCE_S)
                print(f"{time.monotonic() - began:6.0f} s after its return: {told(client.get(made))}", flush=True)
                stored = back.instances()
                in_log = [each for each in service.query("SELECT action FROM audit") if each == ("dicom.delivered",)]
                print(f"{len(stored)} objects in the archive, {len(set(stored))} different", flush=True)
                assert len(stored) == len(set(stored)) > 0
                assert len(in_log) == 2
                assert metric(service, "delivered") == 2
    finally:
        service.stop()
