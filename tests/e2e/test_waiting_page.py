"""Pages of predictions without a result: each names its state, and none has an empty panel or a missing file."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait
from sqlalchemy.orm import Session

from app.api.routers.results import SHORT_WAIT
from app.database import figure_state, job_state, predictions
from app.database.job_state import JobStudy
from app.database.predictions import Artifact
from app.sdk.types import Failure, FiguresState
from app.storage.local import Storage
from app.worker.drawing_process import drawn_files
from tests.api.server import Server, started
from tests.database.results import result
from tests.factory import tiny_version
from tests.study import volume_bytes
from tests.worker.test_drawing import ATTRIBUTION, stored_data

from .accessibility import serious_findings

pytestmark = pytest.mark.xdist_group("e2e")


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A service without a worker; the fixture `browser` checks that the pages call no other one."""
    folder = tmp_path_factory.mktemp("waiting")
    tiny_version(folder / "models")
    (folder / "data").mkdir()
    with started(folder / "data", folder / "models") as server:
        yield server


def submitted(service: Server) -> str:
    sent = httpx.post(
        f"{service.url}/v1/predictions",
        files={"cta": ("cta.nii.gz", volume_bytes())},
        headers={"Prefer": "respond-async"},
        timeout=60,
    )
    return str(sent.json()["id"])


def start(session: Session, prediction_id: str) -> JobStudy:
    study = job_state.start(session, prediction_id)  # as a worker does
    assert study
    return study


def fail(session: Session, prediction_id: str) -> None:
    failure = Failure(code="modality-implausible", title="The volume does not match its field", detail="no head in it")
    assert job_state.fail(session, start(session, prediction_id), failure)


def wait(session: Session, prediction_id: str) -> None:
    study = start(session, prediction_id)
    assert job_state.wait(session, study, "The storage is full; the operator can free disk space", step=1)


STATES: dict[str, tuple[Callable[[Session, str], object], str]] = {
    "queued": (lambda session, prediction_id: None, "Waiting for a worker"),
    "running": (start, "Running:"),
    "waiting for storage": (wait, "The storage is full; the operator can free disk space. Waiting since"),
    "failed": (fail, "Failed: The volume does not match its field. no head in it"),
    "cancelled": (lambda session, each: predictions.cancel(session, each, None), "This prediction has no result."),
    "erased": (lambda session, each: predictions.erase(session, each, None), "Erased prediction"),
}
"""By the name of the state: what makes it, and what its page says."""


@pytest.mark.parametrize("state", STATES)
def test_page_names_the_state_and_the_reason(service: Server, browser: Chrome, state: str) -> None:
    make, text = STATES[state]
    prediction_id = submitted(service)
    database = service.database()
    with database.session() as session:
        make(session, prediction_id)
    database.close()
    browser.get(f"{service.url}/predictions/{prediction_id}")
    WebDriverWait(browser, 60).until(lambda page: text in page.find_element(By.TAG_NAME, "body").text)
    body = browser.find_element(By.TAG_NAME, "body").text
    assert "Loading" not in body
    if state != "erased":
        assert browser.find_element(By.ID, "state").text == state
    assert not browser.find_element(By.ID, "answer").is_displayed()
    assert browser.find_element(By.ID, "running").is_displayed() == (
        state in ("queued", "running", "waiting for storage")
    )
    assert serious_findings(browser) == []
    failed = [entry["message"] for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
    assert len(failed) == (1 if state == "erased" else 0), failed  # 410: erased
    if state in ("failed", "waiting for storage"):
        browser.get(service.url)
        listed = "The volume does not match its field" if state == "failed" else state
        WebDriverWait(browser, 60).until(lambda page: listed in page.find_element(By.ID, "recent").text)
    browser.get("about:blank")  # the page asks its service again and again, also during the next test


def test_figures_drawn_after_the_page_was_opened_are_shown_and_saved(
    service: Server, browser: Chrome, tmp_path: Path
) -> None:
    """The page says that they follow. A file that is saved meanwhile is waited for, and so are the still figures."""
    prediction_id, database, storage = submitted(service), service.database(), Storage(service.folder / "blobs")
    with database.session() as session:
        answer = replace(result(), perfusion=None, attribution=ATTRIBUTION, figures=FiguresState.PENDING)
        assert job_state.succeed(session, start(session, prediction_id), answer)
        stored = stored_data(predictions.find(session, prediction_id, None))
    browser.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path)})
    browser.get(f"{service.url}/predictions/{prediction_id}")
    said = "The figures are drawn now. The answer above is complete."
    WebDriverWait(browser, 60).until(lambda page: page.find_element(By.ID, "position").text == said)
    browser.execute_script("document.getElementById('stills').open = true")
    next(each for each in browser.find_elements(By.CSS_SELECTOR, "#files button") if each.text == "report.html").click()
    time.sleep(2 * SHORT_WAIT)  # longer than a program waits that asks for no time
    assert browser.find_element(By.ID, "files-problem").text == "Waiting for report.html …"
    assert not browser.find_elements(By.CSS_SELECTOR, "#stills-pictures p")
    with database.session() as session:
        drawn = drawn_files(stored)
        kinds = {"svg": "image/svg+xml", "png": "image/png", "html": "text/html"}
        figures = [
            Artifact(name, storage.put(data), len(data), kinds[name[-4:].lstrip(".")]) for name, data in drawn.items()
        ]
        assert figure_state.drawn(session, prediction_id, figures)
    database.close()
    WebDriverWait(browser, 60).until(lambda _: (tmp_path / f"{prediction_id}-report.html").is_file())
    assert browser.find_element(By.ID, "files-problem").text == ""
    for place in ("#position img", "#stills-pictures img"):
        image = WebDriverWait(browser, 60).until(lambda page, at=place: page.find_element(By.CSS_SELECTOR, at))
        WebDriverWait(browser, 60).until(
            lambda page, at=image: page.execute_script("return arguments[0].naturalWidth", at)
        )
    assert said not in browser.find_element(By.TAG_NAME, "body").text


def test_page_of_an_unknown_prediction_says_so(service: Server, browser: Chrome) -> None:
    browser.get(f"{service.url}/predictions/0192f0c4-0000-7000-8000-000000000001")
    WebDriverWait(browser, 60).until(lambda page: page.find_element(By.ID, "title").text == "No prediction to show")
    assert browser.find_element(By.CSS_SELECTOR, "#problem .problem").is_displayed()
