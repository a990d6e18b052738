"""Confidentiality: a study with unmistakable patient data passes the whole service, and the tests search for the data.

An audit hook records and refuses every connection of the service to another machine (tests/sealed).
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

from .service_process import RunningService, eventually

pytestmark = pytest.mark.xdist_group("e2e")

SEALED = Path(__file__).parents[1] / "sealed"
NAME = "CANARY^JANE-19531107"
SUBJECT = "CANARY-S-0042"
STUDY_UID = "1.2.826.0.1.4242424242.7"
ACCESSION = "CANARY-A/0042"
NUMBERS = {"glucose": 123.4567, "crp": 7.65432, "creatinine": 1.23987}
"""Clinical values that occur nowhere else."""
CANARIES = re.compile(
    "|".join(map(re.escape, [NAME, "CANARY", STUDY_UID, "JANE", "19531107", *map(str, NUMBERS.values())]))
)
NAMED = re.compile("|".join(map(re.escape, [NAME, "JANE", "19531107"])))
"""What no output may contain. The pseudonym and the clinical values may occur in the response to the sender."""


@dataclass
class ServedStudy:
    """The service after it processed the marked study, with its outputs."""

    service: RunningService
    receiver: Receiver
    prediction: Prediction
    refusals: list[str] = field(default_factory=list)
    attempts: Path = Path()


@pytest.fixture(scope="module")
def marked_volumes(patient: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Volumes with the patient's name in all texts of the NIfTI header, in an extension and in the gzip header."""
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
def served(
    tmp_path_factory: pytest.TempPathFactory, model_store: Path, study: dict[str, Any], marked_volumes: dict[str, bytes]
) -> Iterator[ServedStudy]:
    folder = tmp_path_factory.mktemp("sealed")
    service = RunningService(folder, model_store, "tiny")
    with receiving(204) as receiver:
        service.environment |= {
            "RLVO_LOG_FORMAT": "json",
            "RLVO_LOG_LEVEL": "debug",
            "RLVO_WEBHOOK_HOSTS": f"http://127.0.0.1:{receiver.port}",
            "RLVO_SEALED": str(folder / "attempts"),
            "PYTHONPATH": str(SEALED),
        }
        assert service.rlvo("webhooks", "add", receiver.url, "--tenant", "local").returncode == 0
        service.start()
        clinical = study["clinical"] | NUMBERS
        prediction = Prediction.model_validate(send(service, marked_volumes, clinical).json())
        result = ServedStudy(service, receiver, prediction, attempts=folder / "attempts")
        for volumes, document in (
            ({"cta": marked_volumes["cta"][:-4000]}, clinical),
            ({"cta": NAME.encode() * 100}, clinical),
            (marked_volumes, clinical | {NAME: NAME}),
            (marked_volumes, clinical | {"glucose": 98765.4321, "sex": NAME}),
            ({"ncct": marked_volumes["ncct"]}, clinical),
        ):
            refused = send(service, volumes, document)
            assert refused.status_code == 422, refused.text
            result.refusals.append(refused.text + str(refused.headers))
        for address in (f"/v1/predictions/{NAME}", f"/v1/predictions?subject={NAME}&{NAME}=1", f"/{NAME}"):
            result.refusals.append(httpx.get(service.url + address, timeout=60).text)
        eventually(lambda: receiver.bodies, "webhook message received")
        yield result
        assert service.stop() == 0


def send(service: RunningService, volumes: dict[str, bytes], clinical: dict[str, Any]) -> httpx.Response:
    return httpx.post(
        f"{service.url}/v1/predictions",
        files={name: (f"{NAME}.nii.gz", content) for name, content in volumes.items()},
        data={
            "clinical": json.dumps(clinical),
            "subject": SUBJECT,
            "study_instance_uid": STUDY_UID,
            "accession_number": ACCESSION,
        },
        headers={
            "Prefer": "wait=90",
            "Idempotency-Key": "study-1" if len(volumes) == 2 else "study-2",
            "User-Agent": NAME,
            "X-Patient": NAME,
        },
        timeout=120,
    )


def test_study_succeeds(served: ServedStudy) -> None:
    assert served.prediction.status is Status.SUCCEEDED, served.prediction.error
    assert served.prediction.subject == SUBJECT
    assert (served.prediction.study_instance_uid, served.prediction.accession_number) == (STUDY_UID, ACCESSION)


def test_service_connects_to_no_other_machine(served: ServedStudy) -> None:
    assert not served.attempts.exists(), served.attempts.read_text()


def test_audit_hook_refuses_and_records_a_connection(tmp_path: Path) -> None:
    code = (
        "import socket\ntry: socket.create_connection(('192.0.2.1', 80), 1)\nexcept PermissionError: print('refused')"
    )
    environment = os.environ | {"PYTHONPATH": str(SEALED), "RLVO_SEALED": str(tmp_path / "attempts")}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
    assert done.stdout == "refused\n", done.stderr
    assert "192.0.2.1" in (tmp_path / "attempts").read_text()


def test_logs_contain_no_patient_data(served: ServedStudy) -> None:
    log = (served.service.folder / "log").read_text()
    assert served.prediction.id in log  # the log is that of this prediction
    assert not CANARIES.search(log), [line for line in log.splitlines() if CANARIES.search(line)][:3]


def test_errors_repeat_no_patient_data(served: ServedStudy) -> None:
    for refusal in served.refusals:
        assert not CANARIES.search(refusal), refusal
        assert "98765" not in refusal


def test_metrics_contain_no_patient_data(served: ServedStudy) -> None:
    metrics = httpx.get(f"{served.service.url}/metrics", timeout=60).text
    assert "rlvo_predictions_total" in metrics
    assert not CANARIES.search(metrics)


def test_webhook_contains_only_an_id(served: ServedStudy) -> None:
    message = json.loads(served.receiver.bodies[0])
    assert message["data"] == {"id": served.prediction.id}
    assert not CANARIES.search(str((served.receiver.bodies, served.receiver.headers)))


def test_audit_and_job_engine_contain_no_patient_data(served: ServedStudy) -> None:
    tables = [name for (name,) in served.service.query("SELECT name FROM sqlite_master WHERE type = 'table'")]
    # Only these tables contain patient data (app/database/tables.py), and an erasure deletes their rows.
    with_patient_data = {"predictions", "attributions", "reviews", "outcomes"}
    assert with_patient_data <= set(tables)
    for table in set(tables) - with_patient_data:
        assert not CANARIES.search(str(served.service.query(f"SELECT * FROM {table}"))), table


def test_stored_files_do_not_contain_the_name(served: ServedStudy) -> None:
    served.service.wait_for_figures(served.prediction.id)  # they are stored files too
    files = served.service.contents()
    assert len(files) > 10
    for path, content in files.items():
        assert not NAMED.search(str(path))
        assert not NAMED.search(_with_inflated(content).decode("latin-1")), path


def test_responses_do_not_contain_the_name(served: ServedStudy) -> None:
    base = f"{served.service.url}/v1/predictions/{served.prediction.id}"
    attribution = served.prediction.attribution
    assert attribution
    served.service.wait_for_figures(served.prediction.id)
    urls = [f"{base}{part}" for part in ("", "/fhir", "/cds-hooks", "/report.html", "/figures/waterfall.svg")]
    for url in urls + [f"{base}/maps/{name}.nii.gz" for name in attribution.maps]:
        response = httpx.get(url, timeout=60)
        assert response.status_code == 200, url
        assert not NAMED.search(str(response.headers)), url
        assert not NAMED.search(_with_inflated(response.content).decode("latin-1")), url


def test_export_contains_no_name_and_no_volume(served: ServedStudy, tmp_path: Path) -> None:
    target = tmp_path / "export.zip"
    assert served.service.rlvo("subjects", "export", SUBJECT, "--to", str(target)).returncode == 0
    with zipfile.ZipFile(target) as archive:
        names = archive.namelist()
        assert f"{served.prediction.id}/report.html" in names
        assert not [name for name in names if ".nii" in name]
        for name in names:
            assert not NAMED.search(name + archive.read(name).decode("latin-1"))


def test_erasure_leaves_no_patient_data(served: ServedStudy) -> None:
    """The last test of the study. Rows are deleted at once, files when they are older than the grace period."""
    erased = served.service.rlvo("subjects", "erase", SUBJECT, "--yes")
    assert erased.returncode == 0, erased.stderr
    assert not CANARIES.search(erased.stdout)
    assert not CANARIES.search((served.service.folder / "rlvo.sqlite").read_bytes().decode("latin-1"))
    certificate = httpx.get(f"{served.service.url}/v1/predictions/{served.prediction.id}/erasure", timeout=60).json()
    assert {blob["sha256"] for blob in certificate["blobs"]} >= {
        summary.sha256 for summary in served.prediction.inputs.values()
    }
    assert httpx.get(f"{served.service.url}/v1/predictions/{served.prediction.id}", timeout=60).status_code == 410


def test_predicts_without_any_network(
    tmp_path: Path, model_store: Path, patient: dict[str, Path], study: dict[str, Any]
) -> None:
    """Predict in a network namespace with only the loopback interface, which also restricts native code."""
    up = (
        "import fcntl, os, socket, struct, sys\n"
        "s = socket.socket(); fcntl.ioctl(s, 0x8914, struct.pack('16sH14s', b'lo', 0x49, b''))\n"  # SIOCSIFFLAGS: up
        "os.execv(sys.executable, [sys.executable, '-m', 'app.cli', *sys.argv[1:]])"
    )
    command = ["predict", "--ncct", str(patient["ncct"]), "--cta", str(patient["cta"]), "--no-explain", "--json"]
    environment = RunningService(tmp_path, model_store, "tiny").environment
    done = subprocess.run(
        ["unshare", "--net", sys.executable, "-c", up, *command],
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    if "unshare" in done.stderr:
        pytest.skip("needs the permission to create a network namespace")
    assert done.returncode == 0, done.stderr
    assert 0 < json.loads(done.stdout)["probability"] < 1


def _with_inflated(content: bytes) -> bytes:
    """Return the bytes, followed by what they decompress to if they are gzip."""
    return content + gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content
