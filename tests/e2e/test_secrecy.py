"""One patient, recognisable in every place where a patient can stand, goes through the whole service; then we search.

The service runs sealed: whatever tries to connect beyond the machine is noted and refused (tests/sealed).
"""

from __future__ import annotations

import gzip
import json
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import nibabel
import pytest
from nibabel.nifti1 import Nifti1Extension

from app.sdk import Prediction, Status
from tests.receiver import Receiver, receiving

from .house import House, eventually

pytestmark = pytest.mark.xdist_group("journeys")

SEALED = Path(__file__).parents[1] / "sealed"
NAME = "CANARY^JANE-19531107"
SUBJECT = "CANARY-S-0042"
NUMBERS = {"glucose": 123.4567, "crp": 7.65432, "creatinine": 1.23987}
"""Clinical values that nothing else would print."""
CANARIES = re.compile("|".join(map(re.escape, [NAME, "CANARY", "JANE", "19531107", *map(str, NUMBERS.values())])))
NAMED = re.compile("|".join(map(re.escape, [NAME, "JANE", "19531107"])))
"""What may stand nowhere at all; the pseudonym and the values stand in the caller's own answer."""


@dataclass
class Passage:
    """What the service said of the patient while it worked, place by place."""

    house: House
    receiver: Receiver
    prediction: Prediction
    refusals: list[str] = field(default_factory=list)
    attempts: Path = Path()


@pytest.fixture(scope="module")
def marked(patient: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The volumes with the patient's name in each text that a NIfTI file can hold, and in the gzip header."""
    volumes = {}
    for name in ("ncct", "cta"):
        image = nibabel.load(patient[name])
        header = image.header
        header["descrip"] = NAME.encode()
        header["aux_file"] = NAME.encode()
        header["intent_name"] = NAME[:16].encode()
        header["db_name"] = NAME[:18].encode()
        header.extensions.append(Nifti1Extension("comment", NAME.encode()))
        plain = tmp_path_factory.mktemp("marked") / "volume.nii"
        nibabel.save(image, plain)
        with (
            (plain.parent / "volume.nii.gz").open("wb") as file,
            gzip.GzipFile(f"{NAME}.nii", "wb", fileobj=file) as packed,
        ):
            packed.write(plain.read_bytes())
        volumes[name] = (plain.parent / "volume.nii.gz").read_bytes()
        assert NAME.encode() in plain.read_bytes()
    return volumes


@pytest.fixture(scope="module")
def passage(
    tmp_path_factory: pytest.TempPathFactory, model_store: Path, study: dict[str, Any], marked: dict[str, bytes]
) -> Iterator[Passage]:
    folder = tmp_path_factory.mktemp("sealed")
    house = House(folder, model_store, "tiny")
    with receiving(204) as receiver:
        house.environment |= {
            "RLVO_LOG_FORMAT": "json",
            "RLVO_LOG_LEVEL": "debug",
            "RLVO_WEBHOOK_HOSTS": f"http://127.0.0.1:{receiver.port}",
            "RLVO_SEALED": str(folder / "attempts"),
            "PYTHONPATH": str(SEALED),
        }
        assert house.rlvo("webhooks", "add", receiver.url, "--tenant", "local").returncode == 0
        house.start()
        clinical = study["clinical"] | NUMBERS
        prediction = Prediction.model_validate(send(house, marked, clinical).json())
        found = Passage(house, receiver, prediction, attempts=folder / "attempts")
        for volumes, document in (
            ({"cta": marked["cta"][:-4000]}, clinical),
            ({"cta": NAME.encode() * 100}, clinical),
            (marked, clinical | {NAME: NAME}),
            (marked, clinical | {"glucose": 98765.4321, "sex": NAME}),
            ({"ncct": marked["ncct"]}, clinical),
        ):
            refused = send(house, volumes, document)
            assert refused.status_code == 422, refused.text
            found.refusals.append(refused.text + str(refused.headers))
        for address in (f"/v1/predictions/{NAME}", f"/v1/predictions?subject={NAME}&{NAME}=1", f"/{NAME}"):
            found.refusals.append(httpx.get(house.url + address).text)
        eventually(lambda: receiver.bodies, "the webhook called")
        yield found
        assert house.stop() == 0


def send(house: House, volumes: dict[str, bytes], clinical: dict[str, Any]) -> httpx.Response:
    return httpx.post(
        f"{house.url}/v1/predictions",
        files={name: (f"{NAME}.nii.gz", content) for name, content in volumes.items()},
        data={"clinical": json.dumps(clinical), "subject": SUBJECT},
        headers={
            "Prefer": "wait=90",
            "Idempotency-Key": "study-1" if len(volumes) == 2 else "study-2",
            "User-Agent": NAME,
            "X-Patient": NAME,
        },
        timeout=120,
    )


def test_the_study_is_answered(passage: Passage) -> None:
    assert passage.prediction.status is Status.SUCCEEDED, passage.prediction.error
    assert passage.prediction.subject == SUBJECT


def test_nothing_connected_beyond_the_machine(passage: Passage) -> None:
    assert not passage.attempts.exists(), passage.attempts.read_text()


def test_the_seal_would_have_seen_it(tmp_path: Path) -> None:
    code = (
        "import socket\ntry: socket.create_connection(('192.0.2.1', 80), 1)\nexcept PermissionError: print('refused')"
    )
    environment = os.environ | {"PYTHONPATH": str(SEALED), "RLVO_SEALED": str(tmp_path / "attempts")}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
    assert done.stdout == "refused\n", done.stderr
    assert "192.0.2.1" in (tmp_path / "attempts").read_text()


def test_the_logs_do_not_know_the_patient(passage: Passage) -> None:
    log = (passage.house.folder / "log").read_text()
    assert passage.prediction.id in log  # it is the right log, and it tells of this very prediction
    assert not CANARIES.search(log), [line for line in log.splitlines() if CANARIES.search(line)][:3]


def test_no_error_repeats_anything(passage: Passage) -> None:
    for refusal in passage.refusals:
        assert not CANARIES.search(refusal), refusal
        assert "98765" not in refusal


def test_the_metrics_do_not_know_the_patient(passage: Passage) -> None:
    metrics = httpx.get(f"{passage.house.url}/metrics").text
    assert "rlvo_predictions_total" in metrics
    assert not CANARIES.search(metrics)


def test_the_webhook_tells_an_id(passage: Passage) -> None:
    told = json.loads(passage.receiver.bodies[0])
    assert told["data"] == {"id": passage.prediction.id}
    assert not CANARIES.search(str((passage.receiver.bodies, passage.receiver.headers)))


def test_audit_and_engine_do_not_know_the_patient(passage: Passage) -> None:
    tables = [name for (name,) in passage.house.ask("SELECT name FROM sqlite_master WHERE type = 'table'")]
    # What is known of a patient lies in these alone (app/database/tables.py), and goes with an erasure.
    own = {"predictions", "attributions", "reviews", "outcomes"}
    assert own <= set(tables)
    for table in set(tables) - own:
        assert not CANARIES.search(str(passage.house.ask(f"SELECT * FROM {table}"))), table


def test_no_file_names_the_patient(passage: Passage) -> None:
    files = [path for path in passage.house.folder.rglob("*") if path.is_file()]
    assert len(files) > 10
    for path in files:
        assert not NAMED.search(str(path))
        content = path.read_bytes()
        assert not NAMED.search(_inflated(content).decode("latin-1")), path


def test_answers_name_nobody(passage: Passage) -> None:
    base = f"{passage.house.url}/v1/predictions/{passage.prediction.id}"
    attribution = passage.prediction.attribution
    assert attribution
    answers = [f"{base}{part}" for part in ("", "/fhir", "/cds-hooks", "/report.html", "/figures/waterfall.svg")]
    for address in answers + [f"{base}/maps/{name}.nii.gz" for name in attribution.maps]:
        answer = httpx.get(address)
        assert answer.status_code == 200, address
        assert not NAMED.search(str(answer.headers)), address
        assert not NAMED.search(_inflated(answer.content).decode("latin-1")), address


def test_the_export_names_nobody_and_shows_no_face(passage: Passage, tmp_path: Path) -> None:
    target = tmp_path / "export.zip"
    assert passage.house.rlvo("subjects", "export", SUBJECT, "--to", str(target)).returncode == 0
    with zipfile.ZipFile(target) as archive:
        names = archive.namelist()
        assert f"{passage.prediction.id}/report.html" in names
        assert not [name for name in names if ".nii" in name]
        for name in names:
            assert not NAMED.search(name + archive.read(name).decode("latin-1"))


def test_after_an_erasure_nothing_of_the_patient_is_left(passage: Passage) -> None:
    """Last, since it erases: the rows at once, the bytes of a study that is younger than the sweep's grace later."""
    erased = passage.house.rlvo("subjects", "erase", SUBJECT, "--yes")
    assert erased.returncode == 0, erased.stderr
    assert not CANARIES.search(erased.stdout)
    assert not CANARIES.search((passage.house.folder / "rlvo.sqlite").read_bytes().decode("latin-1"))
    certificate = httpx.get(f"{passage.house.url}/v1/predictions/{passage.prediction.id}/erasure").json()
    assert {blob["sha256"] for blob in certificate["blobs"]} >= {
        summary.sha256 for summary in passage.prediction.inputs.values()
    }
    assert httpx.get(f"{passage.house.url}/v1/predictions/{passage.prediction.id}").status_code == 410


def test_with_no_network_at_all_it_predicts(
    tmp_path: Path, model_store: Path, patient: dict[str, Path], study: dict[str, Any]
) -> None:
    """In a network namespace that has nothing but loopback, native code included."""
    up = (
        "import fcntl, os, socket, struct, sys\n"
        "s = socket.socket(); fcntl.ioctl(s, 0x8914, struct.pack('16sH14s', b'lo', 0x49, b''))\n"  # SIOCSIFFLAGS: up
        "os.execv(sys.executable, [sys.executable, '-m', 'app.cli.__main__', *sys.argv[1:]])"
    )
    command = ["predict", "--ncct", str(patient["ncct"]), "--cta", str(patient["cta"]), "--no-explain", "--json"]
    environment = House(tmp_path, model_store, "tiny").environment
    done = subprocess.run(
        ["unshare", "--net", sys.executable, "-c", up, *command],
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    if "unshare" in done.stderr:
        pytest.skip("needs the right to make a network namespace")
    assert done.returncode == 0, done.stderr
    assert 0 < json.loads(done.stdout)["probability"] < 1


def _inflated(content: bytes) -> bytes:
    return content + gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content
