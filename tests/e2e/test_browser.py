"""The worked example of /docs, sent with a browser."""

from __future__ import annotations

import json
from typing import Any

import pytest
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from .service_process import RunningService

pytestmark = pytest.mark.xdist_group("e2e")


def test_swagger_page_sends_the_worked_example(service: RunningService, browser: Chrome, study: dict[str, Any]) -> None:
    wait = WebDriverWait(browser, 60)
    browser.get(f"{service.url}/docs")
    post = wait.until(lambda page: page.find_element(By.CSS_SELECTOR, ".opblock-post[id$='-submit']"))
    post.find_element(By.CSS_SELECTOR, ".opblock-summary-control").click()
    pickers = wait.until(lambda _: post.find_elements(By.CSS_SELECTOR, "input[type=file]"))
    assert len(pickers) == 9  # one file picker for each volume, and one for a DICOM study
    rows = {row.get_attribute("data-property-name"): row for row in post.find_elements(By.CSS_SELECTOR, "tr")}
    for name in ("ncct", "cta"):
        rows[name].find_element(By.CSS_SELECTOR, "input[type=file]").send_keys(str(study[name]))
    record = json.loads(rows["clinical"].find_element(By.TAG_NAME, "textarea").get_attribute("value"))
    assert record["nihss"]
    post.find_element(By.CSS_SELECTOR, "button.execute").click()
    response = wait.until(
        lambda _: post.find_element(By.CSS_SELECTOR, ".live-responses-table .response .response-col_description code")
    )
    with service.client() as client:
        sent_with_browser = client.wait(json.loads(response.text)["id"])
        sent_with_client = client.predict(ncct=study["ncct"], cta=study["cta"], clinical=record)
    assert sent_with_browser.probability is not None
    assert sent_with_browser.probability == sent_with_client.probability
    assert not [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
