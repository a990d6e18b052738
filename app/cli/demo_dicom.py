"""`rlvo demo --dicom`: a synthetic patient goes as DICOM through Orthanc to rlvo, and the results come back to Orthanc.

Design notes:
- Orthanc plays the archive of a hospital: a Lua script forwards each CT image to the listener by C-STORE.
- Both programs run on free ports of this machine, as long as the command.
"""

from __future__ import annotations

import base64
import io
import json
import os
import secrets
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from app.cli.common import open_database, settings, temporary_service
from app.cli.predict import show
from app.cli.studies import print_study
from app.dicom.callers import LOCAL_TENANT

if TYPE_CHECKING:
    from rich.console import Console

    from app.sdk.client import Client
    from app.sdk.studies import ReceivedStudy

SEED = 1
TILT_DEGREES = 18.5
SPACING = {"ncct": (1.0, 1.0, 2.0), "cta": (1.0, 1.0, 1.5)}
SCHEME = "en-siemens"
LONGEST_WAIT = 600.0
_ROUTE = """function OnStoredInstance(instanceId, tags, metadata)
  if tags['Modality'] == 'CT' then
    SendToModality(instanceId, 'rlvo')
  end
end
"""
_PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")


@dataclass(frozen=True)
class Archive:
    """A running Orthanc."""

    url: str
    dicom_port: int


def run(console: Console, *, once: bool) -> None:
    """Run the demonstration; keep both pages open at its end, unless ``once``."""
    program = shutil.which("Orthanc") or shutil.which("Orthanc", path="/usr/sbin")  # where Debian has it
    if program is None:
        typer.echo("Orthanc is not installed. On Debian: apt-get install orthanc orthanc-dicomweb", err=True)
        raise typer.Exit(1)
    archive_ports, listener_port = (_free_port(), _free_port()), _free_port()
    os.environ |= {
        "RLVO_DICOM_PORT": str(listener_port),
        "RLVO_DICOM_QUIET": "10",
        "RLVO_DICOM_HOSTS": f"127.0.0.1:{archive_ports[1]}",
        "RLVO_DICOM_RETURN_KEY": base64.b64encode(secrets.token_bytes(32)).decode(),
    }
    folder = settings().data_dir / "demo" / "dicom"
    shutil.rmtree(folder, ignore_errors=True)
    with (
        _archive(program, folder / "orthanc", archive_ports, listener_port) as archive,
        _destination(archive),
        temporary_service() as client,
    ):
        console.print(f"Orthanc is at {archive.url}, and rlvo at {client.url}; DICOM on port {listener_port}.")
        with console.status("Making a synthetic patient as a DICOM study"):
            count, uid, clinical = _write(folder)
        client.studies.set_clinical(uid, clinical)
        with console.status(f"Sending {count} files to Orthanc, which forwards the CT images to rlvo"):
            _send(archive, folder / "study")
        study = _follow(client, uid, console)
        print_study(study)
        prediction = client.wait(study.predictions[-1].id, seconds=LONGEST_WAIT)
        show(prediction, console)
        _results(client, prediction.id, archive, console)
        page = f"http://127.0.0.1:{settings().port}" if once else client.url  # with --once, that of `make serve`
        console.print(f"Page: {page}/predictions/{prediction.id}", soft_wrap=True)
        if not once:
            console.print(f"Orthanc stays open at [bold]{archive.url}/app/explorer.html[/bold]. Press Ctrl-C to stop.")
            with suppress(KeyboardInterrupt):
                threading.Event().wait()


@contextmanager
def _archive(program: str, folder: Path, ports: tuple[int, int], listener_port: int) -> Iterator[Archive]:
    """Run Orthanc on an HTTP and a DICOM port, without a password, on this machine only."""
    import httpx

    folder.mkdir(parents=True)
    route = folder / "route.lua"
    route.write_text(_ROUTE)
    configuration: dict[str, Any] = {
        "Name": "rlvo demo",
        "StorageDirectory": str(folder / "storage"),
        "IndexDirectory": str(folder / "storage"),
        "HttpPort": ports[0],
        "DicomPort": ports[1],
        "DicomAet": "ARCHIVE",
        "DicomAlwaysAllowStore": True,
        "DicomModalities": {"rlvo": ["RLVO", "127.0.0.1", listener_port]},
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False,
        "LuaScripts": [str(route)],
        "Plugins": [str(_PLUGIN)] if _PLUGIN.is_file() else [],
        "DicomWeb": {"Enable": True},
    }
    file = folder / "orthanc.json"
    file.write_text(json.dumps(configuration))
    archive = Archive(f"http://127.0.0.1:{ports[0]}", ports[1])
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([program, str(file)], stdout=log, stderr=log, start_new_session=True)  # noqa: S603
        try:
            deadline = time.monotonic() + 60
            while True:
                with suppress(httpx.HTTPError):
                    if httpx.get(f"{archive.url}/system").is_success:
                        break
                if process.poll() is not None or time.monotonic() > deadline:
                    typer.echo(f"Orthanc did not start. Its log is {folder / 'log'}.", err=True)
                    raise typer.Exit(1)
                time.sleep(0.2)
            yield archive
        finally:
            process.terminate()
            process.wait(30)


@contextmanager
def _destination(archive: Archive) -> Iterator[None]:
    """Send results to the archive during the block."""
    from app.database import destinations
    from app.database.destinations import DestinationKind

    database = open_database()
    with database.session() as session:
        address = f"127.0.0.1:{archive.dicom_port}"
        made = destinations.create(
            session,
            LOCAL_TENANT,
            "Orthanc of the demo",
            DestinationKind.C_STORE,
            address,
            called="ARCHIVE",
            calling="RLVO",
        )
    try:
        yield
    finally:
        with database.session() as session:
            destinations.end(session, made.id)
        database.close()


def _write(folder: Path) -> tuple[int, str, dict[str, Any]]:
    """Write the patient as DICOM files; return their number, the Study Instance UID, and the clinical document."""
    import numpy as np

    from app.dicom.head import read_head
    from app.dicom.writing import Syntax
    from app.imaging.io import nifti
    from app.phantoms import dicom_study
    from app.phantoms.cohort import write_patient
    from app.phantoms.dicom_study import Protocol
    from app.sdk.types import Input

    paths = write_patient(folder / "volumes", seed=SEED, spacing_mm=SPACING)
    read = {name: nifti.read(paths[name.value], field=name) for name in (Input.NCCT, Input.CTA)}
    volumes = {name.value: (volume.data * volume.slope + volume.inter, volume.affine) for name, volume in read.items()}
    volumes["ncct"] = dicom_study.tilted(*volumes["ncct"], TILT_DEGREES)
    names = dicom_study.naming_schemes()[SCHEME]
    protocol = Protocol(tilt_degrees=TILT_DEGREES, perfusion=False)
    plans = dicom_study.plan_study(names, protocol, volumes, np.random.default_rng(SEED))
    packed = {"ncct": Syntax.JPEG_LS, "cta": Syntax.RLE}
    syntaxes = {plan.number: packed[plan.truth] for plan in plans if plan.truth in packed}
    study = secrets.token_hex(8)
    count = dicom_study.write_study(folder / "study", plans, study, syntaxes=syntaxes)
    first = next(iter(sorted((folder / "study").iterdir())))
    uid = read_head(io.BytesIO(first.read_bytes())).study_uid
    return count, uid, json.loads(paths["clinical"].read_text())


def _send(archive: Archive, folder: Path) -> None:
    import httpx

    with httpx.Client(base_url=archive.url, timeout=60) as http:
        for path in sorted(folder.iterdir()):
            http.post("/instances", content=path.read_bytes()).raise_for_status()


def _follow(client: Client, uid: str, console: Console) -> ReceivedStudy:
    """Wait for the prediction of a study, and print its states; exit with 1 if it is refused."""
    deadline, last = time.monotonic() + LONGEST_WAIT, ""
    while time.monotonic() < deadline:
        study = client.studies.get(uid)
        said = f"{study.state}, {study.instances} instances"
        if said != last:
            console.print(said)
            last = said
        if study.predictions:
            return study
        if study.error is not None:
            break
        time.sleep(1)
    print_study(client.studies.get(uid))
    raise typer.Exit(1)


def _results(client: Client, prediction_id: str, archive: Archive, console: Console) -> None:
    """Wait until the results are in the archive, and print the series that it has of the study now."""
    import httpx

    deadline = time.monotonic() + LONGEST_WAIT
    with console.status("Sending the results to Orthanc"):
        while time.monotonic() < deadline:
            deliveries = client.get(prediction_id).deliveries or []
            if deliveries and all(each.state != "waiting" for each in deliveries):
                break
            time.sleep(1)
    series = httpx.get(f"{archive.url}/series?expand", timeout=60).json()
    found = [each["MainDicomTags"].get("Modality", "?") for each in series if "MainDicomTags" in each]
    shown = ", ".join(f"{found.count(name)} {name}" for name in sorted(set(found)))
    console.print(f"Orthanc has these series of the study now: {shown}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
