"""A real Orthanc, with DICOMweb and C-STORE, that one test or module starts and stops."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from tests.conftest import needed_program
from tests.deployment import free_port

USER, PASSWORD = "rlvo", "secret"
PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")


@dataclass
class Orthanc:
    """A running Orthanc."""

    http_port: int
    dicom_port: int

    @property
    def studies_url(self) -> str:
        return f"http://127.0.0.1:{self.http_port}/dicom-web/studies"

    def get(self, path: str) -> Any:
        """The JSON document at a path of its REST API."""
        answer = httpx.get(f"http://127.0.0.1:{self.http_port}{path}", auth=(USER, PASSWORD), timeout=30)
        answer.raise_for_status()
        return answer.json()

    def upload(self, content: bytes) -> None:
        """Store an instance."""
        url = f"http://127.0.0.1:{self.http_port}/instances"
        answer = httpx.post(url, content=content, auth=(USER, PASSWORD), timeout=30)
        answer.raise_for_status()

    def knows(self, title: str, port: int) -> None:
        """Let it send to an application of this machine."""
        url = f"http://127.0.0.1:{self.http_port}/modalities/{title}"
        httpx.put(url, json=[title, "127.0.0.1", port], auth=(USER, PASSWORD), timeout=30).raise_for_status()

    def instances(self) -> list[str]:
        """SOP Instance UIDs of all stored instances, in order."""
        return sorted(each["MainDicomTags"]["SOPInstanceUID"] for each in self.get("/instances?expand"))


@contextmanager
def running(folder: Path, *, http_port: int = 0, dicom_port: int = 0) -> Iterator[Orthanc]:
    """Run Orthanc on these ports, or on free ones; its storage is the folder."""
    program = needed_program("Orthanc")
    made = Orthanc(http_port or free_port(), dicom_port or free_port())
    folder.mkdir(exist_ok=True)
    settings = {
        "Name": "test",
        "StorageDirectory": str(folder / "storage"),
        "IndexDirectory": str(folder / "storage"),
        "HttpPort": made.http_port,
        "DicomPort": made.dicom_port,
        "DicomAet": "ARCHIVE",
        "DicomAlwaysAllowStore": True,
        "DicomAlwaysAllowEcho": True,
        "DicomAlwaysAllowFind": True,
        "DicomAlwaysAllowMove": True,
        "RemoteAccessAllowed": True,
        "AuthenticationEnabled": True,
        "RegisteredUsers": {USER: PASSWORD},
        "Plugins": [str(PLUGIN)],
        "DicomWeb": {"Enable": True},
        "OverwriteInstances": False,
    }
    path = folder / "orthanc.json"
    path.write_text(json.dumps(settings))
    process = subprocess.Popen([program, str(path)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                made.get("/system")
                break
            except httpx.HTTPError:
                assert process.poll() is None, "Orthanc has ended"
                assert time.monotonic() < deadline, "Orthanc does not answer"
                time.sleep(0.1)
        yield made
    finally:
        process.terminate()
        process.wait(30)
