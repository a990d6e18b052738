"""A decision that warnings withhold, by the client, the command line and the page; and the same study accepted."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import Select

from app.sdk import SYNTHETIC_NOTICE, Prediction
from tests.factory import tiny_version

from .accessibility import serious_findings
from .service_process import RunningService
from .test_page import visible

pytestmark = pytest.mark.xdist_group("e2e")

CODE = "out-of-distribution"
NAME = "unlike the training patients"
START = f"Decision withheld: {NAME}. {SYNTHETIC_NOTICE}"


@pytest.fixture(scope="module")
def model(service: RunningService, model_store: Path) -> str:
    """A version to which every study is unlike its training patients, added to the store of the running service."""
    tiny_version(model_store, name="unfamiliar", unfamiliar=True)
    return "unfamiliar@1.0.0"


@pytest.fixture(scope="module")
def withheld(service: RunningService, study: dict[str, Any], model: str) -> Prediction:
    with service.client() as client:
        prediction = client.predict(**study, model=model)
    service.wait_for_figures(prediction.id)
    return prediction


@pytest.fixture(params=[1280, 400])
def width(request: pytest.FixtureRequest, browser: Chrome) -> Iterator[int]:
    """Width of the window, in CSS pixels."""
    size = {"width": request.param, "height": 800, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    yield request.param
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_client_gets_no_decision_unless_it_accepts_warnings(
    service: RunningService, study: dict[str, Any], model: str, withheld: Prediction
) -> None:
    assert (withheld.decision, withheld.withheld) == (None, [CODE])
    assert withheld.probability is not None
    assert withheld.attribution is not None
    with service.client() as client:
        accepted = client.predict(**study, model=model, accept_warnings=True)
    assert accepted.probability == withheld.probability
    assert accepted.decision is not None
    assert (accepted.withheld, accepted.accept_warnings) == ([], True)
    assert [flag.code for flag in accepted.warnings] == [CODE]


def test_command_line_says_it_first_and_exits_with_3(
    service: RunningService, patient: dict[str, Path], model: str, withheld: Prediction
) -> None:
    arguments = ["predict", "--ncct", str(patient["ncct"]), "--cta", str(patient["cta"])]
    arguments += ["--clinical", str(patient["clinical"]), "--model", model, "--url", service.url]
    as_text = service.rlvo(*arguments)
    assert as_text.returncode == 3, as_text.stderr
    assert as_text.stdout.splitlines()[0] == START
    assert f"{withheld.probability:.1%}" in as_text.stdout
    as_json = service.rlvo(*arguments, "--json", "--no-explain")
    document = json.loads(as_json.stdout)
    assert (as_json.returncode, document["decision"], document["withheld"]) == (3, None, [CODE])
    accepted = service.rlvo(*arguments, "--accept-warnings", "--no-explain")
    assert accepted.returncode == 0, accepted.stderr
    assert accepted.stdout.splitlines()[0].endswith(f"There are warnings: {NAME}.")


def test_withheld_decision_is_replayed(service: RunningService, withheld: Prediction) -> None:
    run = service.rlvo("replay", withheld.id)
    assert run.returncode == 0, run.stderr


def test_page_shows_it_first_with_icon_word_and_action(
    service: RunningService, browser: Chrome, withheld: Prediction, width: int
) -> None:
    browser.get(f"{service.url}/predictions/{withheld.id}")
    visible(browser, "body[data-shown=succeeded]")
    panel = visible(browser, "#summary[role=alert]")
    assert panel.text.startswith(START)
    assert "Warning What the network sees as a whole differs from the training patients." in panel.text
    assert "What to do: Check what the flag names, and look at the images." in panel.text
    assert len(panel.find_elements(By.CSS_SELECTOR, "svg.icon")) == 2
    assert panel.rect["y"] + panel.rect["height"] < 800  # visible without scrolling
    assert panel.rect["y"] < visible(browser, "#result").rect["y"]
    assert "Decision withheld" in visible(browser, "#result .decision.withheld").text
    assert "threshold" not in visible(browser, "#result").text
    assert "Warning" not in visible(browser, "#flags").text
    assert not browser.find_element(By.ID, "review").is_displayed()
    assert visible(browser, "#no-review")
    assert serious_findings(browser) == []
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width


def test_report_shows_it_at_the_top(service: RunningService, browser: Chrome, withheld: Prediction, width: int) -> None:
    browser.get(f"{service.url}/v1/predictions/{withheld.id}/report.html?wait=60")
    box = visible(browser, ".withheld[role=alert]")
    assert box.text.startswith(START)
    assert box.rect["y"] + box.rect["height"] < 800
    assert box.find_element(By.CSS_SELECTOR, "svg.icon").size["width"] > 10
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width


def test_list_names_it(service: RunningService, browser: Chrome, withheld: Prediction, width: int) -> None:
    browser.get(service.url)
    row = visible(browser, f"#recent tr:has(a[href='/predictions/{withheld.id}'])")
    cell = row.find_elements(By.TAG_NAME, "td")[6]
    assert cell.text.strip() == "Decision withheld"
    assert cell.find_element(By.CSS_SELECTOR, "svg.icon").is_displayed()
    assert cell.rect["x"] + cell.rect["width"] <= width


def test_form_accepts_warnings(service: RunningService, browser: Chrome, study: dict[str, Any], model: str) -> None:
    browser.get(service.url)
    for name in ("ncct", "cta"):
        visible(browser, f"input[name={name}]").send_keys(str(study[name]))
    Select(visible(browser, "#model")).select_by_value(model)
    visible(browser, "input[name=accept_warnings]").click()
    visible(browser, "#submit button[type=submit]").click()
    visible(browser, "body[data-shown=succeeded]")
    assert visible(browser, "#summary[role=alert]").text.splitlines()[0].endswith(f"There are warnings: {NAME}.")
    assert visible(browser, "#result .decision").text.startswith("Undetermined")
    assert visible(browser, "#review")
