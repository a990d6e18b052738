"""One synthetic patient, one running service and one browser for all tests of a test process."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from selenium.webdriver import Chrome, ChromeOptions, ChromeService

from app.phantoms.cohort import write_patient
from app.sdk import Prediction
from tests.factory import tiny_version

from .service_process import RunningService

COARSE = {"ncct": (3.0, 3.0, 4.0), "cta": (3.0, 3.0, 3.0), "perfusion": (4.0, 4.0, 6.0)}


@pytest.fixture(scope="session")
def patient(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Files by upload name: ncct, cta, tmax, cbf and clinical."""
    return write_patient(tmp_path_factory.mktemp("patient"), seed=1, spacing_mm=COARSE)


@pytest.fixture(scope="session")
def study(patient: dict[str, Path]) -> dict[str, Any]:
    """Two volumes and the clinical document."""
    return {"ncct": patient["ncct"], "cta": patient["cta"], "clinical": json.loads(patient["clinical"].read_text())}


@pytest.fixture(scope="session")
def model_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model_store")
    tiny_version(folder)
    return folder


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory, model_store: Path) -> Iterator[RunningService]:
    """The running service. A test that stops or kills it starts it again."""
    service = RunningService(tmp_path_factory.mktemp("service"), model_store, "tiny")
    service.start()
    yield service
    assert service.stop() == 0, service.log()


@pytest.fixture(scope="session")
def prediction(service: RunningService, study: dict[str, Any]) -> Prediction:
    """One prediction with an explanation, for the tests of its page."""
    with service.client() as client:
        return client.predict(**study)


@pytest.fixture(scope="session")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    """The browser of most tests."""
    with open_chromium(tmp_path_factory.mktemp("chromium")) as chrome:
        yield chrome


@contextmanager
def open_chromium(folder: Path, *names: str) -> Iterator[Chrome]:
    """Run headless Chromium, which can connect to this machine only; ``names`` are rules for host names."""
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip("needs Debian's chromium and chromium-driver")
    options = ChromeOptions()
    options.binary_location = chromium
    for argument in (
        "--headless=new",
        "--no-sandbox",
        "--disable-dev-shm-usage",
        "--enable-unsafe-swiftshader",  # WebGL without a graphics card, for NiiVue
        "--window-size=1400,1800",
        f"--host-resolver-rules={', '.join([*names, 'MAP * ~NOTFOUND', 'EXCLUDE 127.0.0.1'])}",
        f"--user-data-dir={folder}",
    ):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    with Chrome(options=options, service=ChromeService(driver)) as chrome:
        chrome.get("about:blank")  # ends the loads of the browser's own start page, which are no requests of a test
        yield chrome


@pytest.fixture
def browser(chromium: Chrome, service: RunningService) -> Iterator[Chrome]:
    """The browser. After the test: every request of the pages went to the service."""
    chromium.get("about:blank")  # ends the requests of the page of another service
    chromium.get_log("performance")
    chromium.get_log("browser")
    yield chromium
    events = [json.loads(entry["message"])["message"] for entry in chromium.get_log("performance")]
    sent = [event["params"] for event in events if event["method"] == "Network.requestWillBeSent"]
    failed = [event["params"] for event in events if event["method"] == "Network.loadingFailed"]
    blocked = {event["requestId"] for event in failed if event.get("blockedReason") == "csp"}
    urls = [event["request"]["url"] for event in sent if event["requestId"] not in blocked]
    assert urls
    other = [url for url in urls if not url.startswith((f"{service.url}/", "data:", f"blob:{service.url}/"))]
    assert not other, other
