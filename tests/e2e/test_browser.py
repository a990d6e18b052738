"""A person with a browser: the worked example of /docs, sent by hand."""

from __future__ import annotations

import json
from typing import Any

import pytest
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from .house import House

pytestmark = pytest.mark.xdist_group("journeys")


def test_swagger_sends_the_worked_example(house: House, browser: Chrome, study: dict[str, Any]) -> None:
    wait = WebDriverWait(browser, 60)
    browser.get(f"{house.url}/docs")
    post = wait.until(lambda page: page.find_element(By.CSS_SELECTOR, ".opblock-post[id$='-submit']"))
    post.find_element(By.CSS_SELECTOR, ".opblock-summary-control").click()
    pickers = wait.until(lambda _: post.find_elements(By.CSS_SELECTOR, "input[type=file]"))
    assert len(pickers) == 8  # every volume is a file picker
    rows = {row.get_attribute("data-property-name"): row for row in post.find_elements(By.CSS_SELECTOR, "tr")}
    for name in ("ncct", "cta"):
        rows[name].find_element(By.CSS_SELECTOR, "input[type=file]").send_keys(str(study[name]))
    record = json.loads(rows["clinical"].find_element(By.TAG_NAME, "textarea").get_attribute("value"))
    assert record["nihss"]  # the worked example is there to be sent
    post.find_element(By.CSS_SELECTOR, "button.execute").click()
    answered = wait.until(
        lambda _: post.find_element(By.CSS_SELECTOR, ".live-responses-table .response .response-col_description code")
    )
    with house.client() as client:
        sent_by_hand = client.wait(json.loads(answered.text)["id"])
        sent_by_client = client.predict(ncct=study["ncct"], cta=study["cta"], clinical=record)
    assert sent_by_hand.probability is not None
    assert sent_by_hand.probability == sent_by_client.probability
    assert not [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
