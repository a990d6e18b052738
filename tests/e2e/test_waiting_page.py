"""The page of a study that waits for the storage says so, and why."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from app.database import job_state
from tests.api.server import Server, started
from tests.factory import tiny_version
from tests.study import volume_bytes

pytestmark = pytest.mark.xdist_group("e2e")


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Server]:
    """A service without a worker; the fixture `browser` checks that the pages call no other one."""
    tiny_version(tmp_path / "models")
    (tmp_path / "data").mkdir()
    with started(tmp_path / "data", tmp_path / "models") as server:
        yield server


def test_page_says_that_a_study_waits_and_why(service: Server, browser: Chrome) -> None:
    sent = httpx.post(
        f"{service.url}/v1/predictions",
        files={"cta": ("cta.nii.gz", volume_bytes())},
        headers={"Prefer": "respond-async"},
    )
    prediction_id = sent.json()["id"]
    database = service.database()
    with database.session() as session:  # as a worker does
        study = job_state.start(session, prediction_id)
        assert study
        assert job_state.wait(session, study, "The storage is full; the operator can free disk space", step=1)
    database.close()
    browser.get(f"{service.url}/predictions/{prediction_id}")
    WebDriverWait(browser, 60).until(lambda page: page.find_element(By.ID, "state").text == "waiting-for-storage")
    assert "The storage is full; the operator can free disk space. Waiting since" in browser.page_source
    browser.get(service.url)
    WebDriverWait(browser, 60).until(lambda page: "waiting-for-storage" in page.find_element(By.ID, "recent").text)
    browser.get("about:blank")  # the page asks its service again and again, also during the next test
