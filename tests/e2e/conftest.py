"""One synthetic patient and one running service, for all journeys of a test process."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from selenium.webdriver import Chrome, ChromeOptions, ChromeService

from app.phantoms.cohort import write_patient
from tests.factory import tiny_version

from .house import House

COARSE = {"ncct": (3.0, 3.0, 4.0), "cta": (3.0, 3.0, 3.0), "perfusion": (4.0, 4.0, 6.0)}


@pytest.fixture(scope="session")
def patient(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Files by upload name: ncct, cta, tmax, cbf and clinical."""
    return write_patient(tmp_path_factory.mktemp("patient"), seed=1, spacing_mm=COARSE)


@pytest.fixture(scope="session")
def study(patient: dict[str, Path]) -> dict[str, Any]:
    """The study that the journeys send: two volumes and the clinical document."""
    return {"ncct": patient["ncct"], "cta": patient["cta"], "clinical": json.loads(patient["clinical"].read_text())}


@pytest.fixture(scope="session")
def model_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model_store")
    tiny_version(folder)
    return folder


@pytest.fixture(scope="session")
def house(tmp_path_factory: pytest.TempPathFactory, model_store: Path) -> Iterator[House]:
    """The running service. A test that stops or kills it leaves it running again."""
    house = House(tmp_path_factory.mktemp("house"), model_store, "tiny")
    house.start()
    yield house
    assert house.stop() == 0, house.log()


@pytest.fixture(scope="session")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    """Headless Chromium that reaches this machine only: whatever a page loads from elsewhere fails."""
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
        "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",
        f"--user-data-dir={tmp_path_factory.mktemp('chromium')}",
    ):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    with Chrome(options=options, service=ChromeService(driver)) as chrome:
        yield chrome


@pytest.fixture
def browser(chromium: Chrome, house: House) -> Iterator[Chrome]:
    """The browser; afterwards, that every request of the test went to the service and to nobody else."""
    chromium.get_log("performance")
    chromium.get_log("browser")
    yield chromium
    events = [json.loads(entry["message"])["message"] for entry in chromium.get_log("performance")]
    sent = [event["params"] for event in events if event["method"] == "Network.requestWillBeSent"]
    failed = [event["params"] for event in events if event["method"] == "Network.loadingFailed"]
    held_back = {event["requestId"] for event in failed if event.get("blockedReason") == "csp"}
    asked = [event["request"]["url"] for event in sent if event["requestId"] not in held_back]
    assert asked
    elsewhere = [url for url in asked if not url.startswith((f"{house.url}/", "data:", f"blob:{house.url}/"))]
    assert not elsewhere, elsewhere
