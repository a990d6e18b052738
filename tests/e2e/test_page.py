"""The web page in a browser: the result, the form, review and outcome, and use with the keyboard alone."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver import Chrome, Keys
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import Select, WebDriverWait

from app.core import display_names, explanation_text
from app.sdk import SYNTHETIC_NOTICE, Prediction

from .service_process import RunningService

pytestmark = pytest.mark.xdist_group("e2e")


def visible(browser: Chrome, selector: str) -> WebElement:
    """Wait for a visible element and return it. The list replaces its rows, so a lost element is searched again."""

    def found(page: Chrome) -> WebElement | None:
        return next((each for each in page.find_elements(By.CSS_SELECTOR, selector) if each.is_displayed()), None)

    patient = WebDriverWait(browser, 60, ignored_exceptions=[StaleElementReferenceException])
    element: WebElement = patient.until(found, f"nothing visible matches {selector}")
    return element


def test_page_shows_the_recorded_result(service: RunningService, browser: Chrome, prediction: Prediction) -> None:
    browser.get(f"{service.url}/predictions/{prediction.id}")
    visible(browser, "body[data-shown=succeeded]")
    assert prediction.probability is not None
    assert prediction.attribution is not None
    assert visible(browser, "#result .probability").text == f"{100 * prediction.probability:.0f} %"
    assert "Research use only" in visible(browser, ".banner").text
    for flag in prediction.flags:
        place = "#result" if flag.code == "synthetic-training" else "#flags"
        assert display_names.flag_text(flag).partition(". ")[0] in visible(browser, place).text
    bars = browser.find_elements(By.CSS_SELECTOR, "#reasons .waterfall:not(.narrow) rect")
    assert len(bars) == len(explanation_text.grouped(explanation_text.contributions(prediction.attribution)))
    assert visible(browser, "#reasons p").text.startswith(explanation_text.outside_text(prediction.attribution))
    assert prediction.headline is not None
    assert visible(browser, "#result .decision").text.startswith(prediction.headline.text)
    assert SYNTHETIC_NOTICE in visible(browser, "#result .origin").text
    assert "spread of the two networks" in visible(browser, "#result").text.lower()
    assert "chosen for tests" in visible(browser, "#result").text
    assert len(browser.find_elements(By.CSS_SELECTOR, "#regions tbody tr")) == 10
    drawn = visible(browser, "#position img")
    WebDriverWait(browser, 60).until(lambda page: page.execute_script("return arguments[0].naturalWidth", drawn) > 100)
    visible(browser, "#card-panel > summary").click()
    assert "A tiny version for tests" in visible(browser, "#card h3").text
    failed = [entry["message"] for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
    assert all(f"{prediction.id}/outcome" in message for message in failed), failed  # 404: no outcome yet


@pytest.mark.parametrize("width", [1280, 400])
def test_page_shows_published_scores_apart_from_the_answer(
    service: RunningService, browser: Chrome, prediction: Prediction, width: int
) -> None:
    """Sum or range, what is not recorded, target and source of each score, and nothing is cut off."""
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    try:
        browser.get(f"{service.url}/predictions/{prediction.id}")
        visible(browser, "body[data-shown=succeeded]")
        panel = visible(browser, "#scores-panel")
        assert prediction.scores is not None
        assert {score.name for score in prediction.scores} == {"Score-ICAD", "ABC2D (published odds ratios)"}
        for score, block in zip(prediction.scores, panel.find_elements(By.CSS_SELECTOR, "section"), strict=True):
            assert block.find_element(By.TAG_NAME, "h3").text == score.name
            assert block.find_element(By.TAG_NAME, "strong").text == score.text
            assert "; ".join(score.missing) in block.text
            assert bool(score.missing) == ("there is no score" in block.text)
            assert f"Target: {score.target}." in block.text
            assert score.source in block.text
        assert "not the probability of a refractory occlusion" in panel.text
        assert "ICAD" not in visible(browser, "#result").text
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_page_without_a_record_has_no_published_scores(
    service: RunningService, browser: Chrome, study: dict[str, Any]
) -> None:
    with service.client() as client:
        sent = client.predict(cta=study["cta"], explain=False)
    assert sent.scores is not None
    assert {score.text for score in sent.scores} == {"no item known"}
    browser.get(f"{service.url}/predictions/{sent.id}")
    visible(browser, "body[data-shown=succeeded]")
    assert not browser.find_element(By.ID, "scores-panel").is_displayed()


@pytest.mark.parametrize(
    ("explain", "reasons"), [(True, "Of the image contributions"), (False, "without an explanation")]
)
def test_page_of_a_cta_alone_has_no_empty_panel_and_no_missing_file(
    service: RunningService, browser: Chrome, study: dict[str, Any], explain: bool, reasons: str
) -> None:
    with service.client() as client:
        sent = client.predict(cta=study["cta"], explain=explain)
    browser.get(f"{service.url}/predictions/{sent.id}")
    visible(browser, "body[data-shown=succeeded]")
    assert reasons in visible(browser, "#reasons").text
    assert "no perfusion data" in visible(browser, "#perfusion").text
    if explain:
        assert "No number of the record is known" in visible(browser, "#position").text
        assert "values not given" in visible(browser, "#reasons").text
    for panel in browser.find_elements(By.CSS_SELECTOR, "section.panel"):
        title = panel.find_element(By.TAG_NAME, "h2")
        assert not panel.is_displayed() or panel.text.removeprefix(title.text).strip(), title.text
    failed = [entry["message"] for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
    assert all(f"{sent.id}/outcome" in message for message in failed), failed  # 404: no outcome yet


@pytest.mark.parametrize("width", [320, 400, 1280])
def test_contributions_fit_the_width_of_the_page(
    service: RunningService, browser: Chrome, prediction: Prediction, width: int
) -> None:
    """Before, the figure was 38rem wide, and had to be moved sideways on a telephone."""
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        browser.get(f"{service.url}/predictions/{prediction.id}")
        visible(browser, "body[data-shown=succeeded]")
        figures = browser.find_elements(By.CSS_SELECTOR, "#reasons .waterfall")
        shown = [figure for figure in figures if figure.is_displayed()]
        assert len(shown) == 1
        overhang = "const box = arguments[0].closest('.wide'); return box.scrollWidth - box.clientWidth"
        assert browser.execute_script(overhang, shown[0]) <= 0
        assert ("narrow" in str(shown[0].get_attribute("class"))) == (width < 700)
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_report_prints_with_all_figures(service: RunningService, browser: Chrome, prediction: Prediction) -> None:
    """The report shows and prints every figure and loads nothing. It is drawn after the answer, so it is waited for."""
    browser.get(f"{service.url}/v1/predictions/{prediction.id}/report.html?wait=60")
    figures = browser.find_elements(By.TAG_NAME, "img")
    assert len(figures) >= 4  # the waterfall, two overlays, the position
    assert all(browser.execute_script("return arguments[0].naturalWidth", figure) > 100 for figure in figures)
    assert len(browser.find_elements(By.CSS_SELECTOR, "figure table")) == len(figures)
    printed = base64.b64decode(browser.execute_cdp_cmd("Page.printToPDF", {"printBackground": True})["data"])
    assert printed.startswith(b"%PDF-")
    assert len(re.findall(rb"/Type\s*/Page\b", printed)) >= 2
    loaded = browser.execute_script("return performance.getEntriesByType('resource').map(each => each.name)")
    assert [url for url in loaded if not url.startswith("data:")] == []


def test_study_is_submitted_with_the_form(service: RunningService, browser: Chrome, study: dict[str, Any]) -> None:
    browser.get(service.url)
    visible(browser, "input[name=ncct]").send_keys(str(study["ncct"]))
    visible(browser, "input[name=cta]").send_keys(str(study["cta"]))
    for name, value in {"age": "71", "nihss": "14", "perfusion.core_ml": "12.5"}.items():
        visible(browser, f"[data-name='{name}']").send_keys(value)
    Select(visible(browser, "[data-name=atrial_fibrillation]")).select_by_visible_text("yes")
    visible(browser, "input[name=subject]").send_keys("by-hand-1")
    # A slow connection makes the progress visible: the two volumes take a second or two.
    size = sum(study[name].stat().st_size for name in ("ncct", "cta"))
    network = {"offline": False, "latency": 0, "downloadThroughput": -1, "uploadThroughput": size / 2}
    browser.execute_cdp_cmd("Network.enable", {})
    browser.execute_cdp_cmd("Network.emulateNetworkConditions", network)
    browser.execute_script(
        "window.name = '[]'; new MutationObserver(() => {"  # window.name survives a page change
        "  window.name = JSON.stringify([...JSON.parse(window.name), document.getElementById('bar').value]);"
        "}).observe(document.getElementById('upload-text'), {childList: true});"
    )
    visible(browser, "#submit button[type=submit]").click()
    visible(browser, "body[data-shown=succeeded]")
    browser.execute_cdp_cmd("Network.emulateNetworkConditions", network | {"uploadThroughput": -1})
    progress = json.loads(browser.execute_script("return window.name"))
    assert progress == sorted(progress)
    assert any(0 < share < 1 for share in progress), progress
    assert progress[-1] == 1
    record = {"age": 71, "nihss": 14, "atrial_fibrillation": True, "perfusion": {"core_ml": 12.5}}
    with service.client() as client:
        sent = client.get(browser.current_url.rpartition("/")[2])
        again = client.predict(ncct=study["ncct"], cta=study["cta"], clinical=record)
    assert sent.subject == "by-hand-1"
    assert sent.probability == again.probability
    assert "by-hand-1" in visible(browser, "#title").text
    visible(browser, "nav a").click()
    assert "by-hand-1" in visible(browser, "#recent tr:nth-child(2)").text  # the prediction of the client is newer


def test_list_shows_other_studies_without_a_reload(
    service: RunningService, browser: Chrome, study: dict[str, Any]
) -> None:
    """A study sent by another client appears, changes its state and shows its probability."""
    browser.get(service.url)
    visible(browser, "#recent tr")
    states = (
        "window.states = []; new MutationObserver(() => {"
        "  const row = [...document.querySelectorAll('#recent tr')].find(r => r.textContent.includes('elsewhere-1'));"
        "  if (row) window.states.push(row.querySelector('.state').textContent);"
        "}).observe(document.getElementById('recent'), {childList: true, subtree: true});"
    )
    browser.execute_script(states)
    with service.client() as client:
        sent = client.submit(**study, subject="elsewhere-1")
        done = client.wait(sent.id)
    row = f"//tr[td[text()='elsewhere-1']][td[text()='{100 * (done.probability or 0):.0f}\u00a0%']]"
    WebDriverWait(browser, 60).until(lambda page: page.find_elements(By.XPATH, row))
    assert browser.execute_script("return window.states").pop() == "succeeded"


def test_refusal_is_shown_next_to_the_form(service: RunningService, browser: Chrome, tmp_path: Path) -> None:
    (tmp_path / "ncct.nii").write_bytes(b"no volume at all")
    browser.get(service.url)
    visible(browser, "input[name=ncct]").send_keys(str(tmp_path / "ncct.nii"))
    visible(browser, "#submit button[type=submit]").click()
    assert "NIfTI" in visible(browser, "#submit-problem .problem").text
    assert visible(browser, "#submit button[type=submit]").is_enabled()


def test_review_and_outcome_are_recorded(service: RunningService, browser: Chrome, prediction: Prediction) -> None:
    browser.get(f"{service.url}/predictions/{prediction.id}")
    visible(browser, "body[data-shown=succeeded]")
    visible(browser, "#review [value=override]").click()
    visible(browser, "#review [name=reviewer]").send_keys("reader-1")
    visible(browser, "#review button").click()  # the browser does not send a form without a reason
    assert browser.execute_script("return document.querySelector('#review :invalid').name") == "reason"
    Select(visible(browser, "#review [name=reason]")).select_by_value("image-quality")
    visible(browser, "#review [name=comment]").send_keys("<b>motion</b>")
    visible(browser, "#review button").click()
    saved = WebDriverWait(browser, 30).until(lambda page: page.find_elements(By.CSS_SELECTOR, "#reviews li strong"))
    assert saved[0].text == "Overrides: image quality"
    assert "<b>motion</b>" in visible(browser, "#reviews").text
    Select(visible(browser, "#outcome [name=etici]")).select_by_visible_text("2b67")
    visible(browser, "#outcome [name=stenosis]").send_keys("70")
    for times in range(2):  # the second one is a correction
        visible(browser, "#outcome button").click()
        expected = ["Saved: refractory.", "Saved: not refractory."][times]
        WebDriverWait(browser, 30).until(lambda _, message=expected: message in visible(browser, "#outcome-said").text)
        visible(browser, "#outcome [name=stenosis]").clear()
        visible(browser, "#outcome [name=stenosis]").send_keys("30")
    with service.client() as client:
        (review,) = client.reviews(prediction.id)
        assert (review.reviewer, review.reason) == ("reader-1", "image-quality")
        outcome = client.outcome(prediction.id)
    assert outcome is not None
    assert outcome.refractory is False


def test_page_works_with_the_keyboard_alone(service: RunningService, browser: Chrome, study: dict[str, Any]) -> None:
    """From the list, which shows the newest predictions, to the viewer and its sliders."""
    with service.client() as client:
        prediction = client.predict(**study)
    browser.get(service.url)
    visible(browser, f"#recent a[href='/predictions/{prediction.id}']")

    def tab_to(condition: Callable[[WebElement], Any], most: int = 80) -> WebElement:
        for _ in range(most):
            browser.switch_to.active_element.send_keys(Keys.TAB)
            if condition(browser.switch_to.active_element):
                return browser.switch_to.active_element
        raise AssertionError("the Tab key does not reach the element")

    tab_to(lambda element: (element.get_attribute("href") or "").endswith(prediction.id)).send_keys(Keys.ENTER)
    visible(browser, "#canvas-cta[data-loaded*=aligned]")
    visible(browser, "body[data-shown=succeeded]")
    canvas = tab_to(lambda element: element.get_attribute("id") == "canvas-cta")
    position = "return Array.from(document.getElementById('canvas-cta').viewer.scene.crosshairPos)"
    start = np.asarray(browser.execute_script(position))
    for key, axis, sign in ((Keys.ARROW_LEFT, 0, 1), (Keys.ARROW_UP, 1, 1), (Keys.PAGE_DOWN, 2, -1)):
        canvas.send_keys(key)
        moved = np.asarray(browser.execute_script(position)) - start
        assert sign * moved[axis] > 0
        canvas.send_keys(Keys.HOME)
        assert browser.execute_script(position) == pytest.approx(start)
    opacity = tab_to(lambda element: element.get_attribute("id") == "opacity")
    before = float(opacity.get_attribute("value") or 0)
    opacity.send_keys(Keys.ARROW_LEFT)
    assert float(opacity.get_attribute("value") or 0) < before
    assert browser.execute_script("return document.getElementById('canvas-cta').viewer.volumes[1].opacity") < before


def test_content_policy_blocks_other_scripts_and_hosts(
    service: RunningService, browser: Chrome, prediction: Prediction
) -> None:
    """The browser blocks an inline script and requests to other hosts."""
    browser.get(f"{service.url}/predictions/{prediction.id}")
    visible(browser, "body[data-shown=succeeded]")
    browser.execute_async_script(
        "const done = arguments[0];"
        "document.addEventListener('securitypolicyviolation', () => { window.refused = (window.refused || 0) + 1; });"
        "const inline = document.createElement('script'); inline.textContent = 'window.ran = true';"
        "const far = document.createElement('img'); far.src = 'https://example.org/pixel.png';"
        "document.body.append(inline, far);"
        "fetch('https://example.org/').catch(() => {}).finally(() => setTimeout(done, 300));"
    )
    WebDriverWait(browser, 60).until(lambda page: page.execute_script("return (window.refused || 0) >= 3"))
    assert browser.execute_script("return window.ran") is None
