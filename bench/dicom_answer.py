"""Seconds to a recorded answer: the same phantoms sent as NIfTI, and received as DICOM, by one running service.

``python -m bench dicom_answer [--patients 8] [--model rlvo-synthetic] [--pause 0]``. Printed:

- NIfTI: from the start of the request to the recorded answer, which is when its result is stored.
- DICOM: from the call that says that the study is complete, to the recorded answer. Its instances lie in the service by
  then, as after C-STORE; they still have no roles and no volumes.
- the ratio of the medians, and that of the median from acceptance to answer, without the checks of the files.

NCCT and CTA of each patient are sent once in each way, without an explanation drawn ahead of time. The ways are first
in turn, because the first is slower: an even number of patients treats them alike.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path

import httpx
import numpy as np

from app.dicom.head import read_head
from app.imaging.io import nifti
from app.phantoms.cohort import write_patient
from app.phantoms.dicom_series import SeriesPlan, files, planned_slices
from app.sdk import Client
from app.sdk.types import Input, Prediction
from bench.dicom_speed import BOUNDARY, RELATED
from bench.model_stores import DEMO, MODEL_STORE
from bench.server_process import running_service

NAMED = {"ncct": "", "cta": "Iomeprol"}
RECEIVED_S = 300.0


def instances(patient: Mapping[str, Path], number: int) -> list[bytes]:
    """The NCCT and the CTA of a patient as a DICOM study."""
    written: list[bytes] = []
    seed = f"answer {number} {time.time_ns()}"  # one study, and another one at each run
    for series, (name, agent) in enumerate(NAMED.items(), start=2):
        volume = nifti.read(patient[name], field=Input(name))
        data = np.rint(volume.data * volume.slope + volume.inter).astype(np.int16)
        thickness = float(np.linalg.norm(volume.affine[:3, 2]))
        plan = SeriesPlan(name, series, f"{name} head", kernel="H30s", contrast=agent, thickness=thickness)
        plan = replace(plan, **planned_slices(data, volume.affine))
        written += files(plan, seed)
    return written


def wait(client: Client, prediction_id: str) -> Prediction:
    while not (found := client.get(prediction_id)).status.finished:
        time.sleep(0.01)
    if found.finished is None or found.error is not None:
        raise SystemExit(f"a prediction failed: {found.error}")
    return found


def by_nifti(client: Client, patient: Mapping[str, Path]) -> tuple[float, float]:
    """Seconds from the request to the answer, and from its acceptance."""
    began = datetime.now(UTC)
    record = json.loads(patient["clinical"].read_text())
    made = wait(client, client.submit(ncct=patient["ncct"], cta=patient["cta"], clinical=record).id)
    assert made.finished is not None
    return (made.finished - began).total_seconds(), (made.finished - made.created).total_seconds()


def by_dicom(client: Client, url: str, written: list[bytes], clinical: Path, pause: float) -> tuple[float, float]:
    """Seconds from the completeness to the answer, and from its acceptance."""
    uid = read_head(BytesIO(written[0])).study_uid
    client.studies.set_clinical(uid, json.loads(clinical.read_text()))
    start = f"--{BOUNDARY}\r\nContent-Type: application/dicom\r\n\r\n".encode()
    body = b"".join(start + each + b"\r\n" for each in written) + f"--{BOUNDARY}--\r\n".encode()
    sent = httpx.post(f"{url}/dicomweb/studies", content=body, headers={"Content-Type": RELATED}, timeout=300)
    end = time.monotonic() + RECEIVED_S
    while (received := client.studies.get(uid).instances) < len(written):
        if sent.status_code != httpx.codes.OK or time.monotonic() > end:
            raise SystemExit(f"HTTP {sent.status_code}; {received} of {len(written)} instances were received")
        time.sleep(0.05)
    time.sleep(pause)
    began = datetime.now(UTC)
    client.studies.complete(uid)
    while not (study := client.studies.get(uid)).predictions:
        if study.error is not None:
            raise SystemExit(f"a study was refused: {study.error}")
        time.sleep(0.01)
    made = wait(client, study.predictions[0].id)
    assert made.finished is not None
    return (made.finished - began).total_seconds(), (made.finished - made.created).total_seconds()


def measure(url: str, folder: Path, patients: int, pause: float) -> None:
    taken: dict[str, list[tuple[float, float]]] = {"NIfTI": [], "DICOM": []}
    with Client(url, timeout=600) as client:
        for number in range(-1, patients):  # the first one warms up
            patient = write_patient(folder / str(number), seed=2122, index=number + 1)
            written = instances(patient, number)
            for way in ("NIfTI", "DICOM") if number % 2 else ("DICOM", "NIfTI"):
                if way == "NIfTI":
                    seconds = by_nifti(client, patient)
                else:
                    seconds = by_dicom(client, url, written, patient["clinical"], pause)
                if number >= 0:
                    taken[way].append(seconds)
            print(f"{number:3} {taken['NIfTI'][-1:]} {taken['DICOM'][-1:]}", file=sys.stderr, flush=True)
    whole, accepted = (
        {way: statistics.median(each[k] for each in found) for way, found in taken.items()} for k in (0, 1)
    )
    for way in taken:
        print(f"{way}: p50 {whole[way]:.2f} s; from acceptance {accepted[way]:.2f} s")
    print(f"DICOM / NIfTI: {whole['DICOM'] / whole['NIfTI']:.2f}; {accepted['DICOM'] / accepted['NIfTI']:.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patients", type=int, default=8)
    parser.add_argument("--model", default=DEMO)
    parser.add_argument("--pause", type=float, default=0.0, help="seconds from the last instance to the completeness")
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as name,
        running_service(MODEL_STORE, Path(name) / "data", options.model, dicom_quiet="36000") as service,
    ):
        measure(service.url, Path(name), options.patients, options.pause)


if __name__ == "__main__":
    main()
