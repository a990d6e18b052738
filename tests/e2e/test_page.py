"""A clinician at the page: what is painted over the images, a study sent by hand, a review, and the keyboard alone."""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
import pytest
from PIL import Image
from scipy import ndimage
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver import Chrome, Keys
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import Select, WebDriverWait

from app.sdk import Prediction

from .house import House

pytestmark = pytest.mark.xdist_group("journeys")

AXIAL = 0
COLOURED = 40
"""Levels of red, green and blue between which a pixel is no grey."""


@pytest.fixture(scope="module")
def prediction(house: House, study: dict[str, Any]) -> Prediction:
    with house.client() as client:
        return client.predict(**study)


def on(browser: Chrome, what: str) -> WebElement:
    """The element once it is there to be used. The list makes its rows anew all the time: a lost one is no end."""
    found: WebElement = WebDriverWait(browser, 60, ignored_exceptions=[StaleElementReferenceException]).until(
        lambda page: next((each for each in page.find_elements(By.CSS_SELECTOR, what) if each.is_displayed()), None)
    )
    return found


def slide(browser: Chrome, name: str, value: float) -> None:
    browser.execute_script(
        "const slider = document.getElementById(arguments[0]); slider.value = arguments[1];"
        "slider.dispatchEvent(new Event('input'));",
        name,
        value,
    )


def painted(browser: Chrome) -> np.ndarray:
    """The canvas as it is on the screen: (rows, columns, 3) levels."""
    png = browser.find_element(By.ID, "canvas").screenshot_as_png
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


def coloured(pixels: np.ndarray) -> np.ndarray:
    spread: np.ndarray = pixels.max(axis=-1) - pixels.min(axis=-1)
    return spread > COLOURED


class Axial(NamedTuple):
    """Where the axial plane lies on the screen: left, top, width and height, in pixels of the canvas."""

    left: float
    top: float
    width: float
    height: float

    def at(self, across: float, up: float) -> tuple[int, int]:
        """Row and column of a place given as shares of the plane's width and height, from its lower left corner."""
        return round(self.top + (1 - up) * self.height), round(self.left + across * self.width)


def opened(browser: Chrome, house: House, prediction: Prediction, modality: str) -> Axial:
    """The viewer on one modality, the crosshair, which would hide what lies under it, put away."""
    browser.get(f"{house.url}/predictions/{prediction.id}")
    on(browser, "#canvas[data-loaded*=aligned]")
    Select(on(browser, "#base")).select_by_value(f"aligned-{modality}")
    Select(on(browser, "#overlay")).select_by_value(f"aligned-attribution-{modality}")
    on(browser, f"#canvas[data-loaded='aligned-{modality} aligned-attribution-{modality}']")
    tiles = browser.execute_script(
        "const viewer = document.getElementById('canvas').viewer; viewer.setCrosshairWidth(0);"
        "viewer.opts.crosshairGap = 0; viewer.opts.isOrientationTextVisible = false; viewer.drawScene();"
        "const ratio = viewer.gl.canvas.width / viewer.gl.canvas.clientWidth;"
        "return viewer.screenSlices.map(s => [s.axCorSag, ...Array.from(s.leftTopWidthHeight).map(x => x / ratio)]);"
    )
    return Axial(*next(tile[1:] for tile in tiles if tile[0] == AXIAL))


def attribution(house: House, prediction: Prediction, modality: str, folder: Path) -> nib.Nifti1Image:
    with house.client() as client:
        path = client.map(prediction.id, f"aligned-attribution-{modality}", to=folder)
    return nib.Nifti1Image.from_filename(path)


@pytest.mark.parametrize("modality", ["ncct", "cta"])
def test_the_overlay_is_painted_where_the_map_says(
    house: House, browser: Chrome, prediction: Prediction, modality: str, tmp_path: Path
) -> None:
    axial = opened(browser, house, prediction, modality)
    image = attribution(house, prediction, modality, tmp_path)
    values = np.asarray(image.dataobj)
    peak = np.unravel_index(int(np.abs(values).argmax()), values.shape)

    def on_screen(i: int, j: int) -> tuple[int, int]:
        # The plane shows the field of view of the image below: the 2 mm grid from -91 to 91 and -127 to 91 mm.
        x, y, _, _ = image.affine @ (i, j, peak[2], 1)
        return axial.at((x + 91) / 182, (y + 127) / 218)

    place, share = on_screen(*peak[:2]), np.abs(values) / np.abs(values[peak])
    slide(browser, "threshold", 0.3)
    slide(browser, "opacity", 1)
    shown = painted(browser)
    slide(browser, "opacity", 0)
    grey = painted(browser)
    assert not coloured(grey).any()  # without the overlay, nothing on the canvas has a colour
    loud = np.argwhere(share[..., peak[2]] > 0.6)
    assert len(loud)
    assert all(coloured(shown)[on_screen(i, j)] for i, j in loud)
    # Between voxels the viewer interpolates, so a voxel is quiet where its neighbours are too.
    quiet = np.argwhere(ndimage.maximum_filter(share, 3)[1:-1, 1:-1, peak[2]] < 0.3) + 1
    assert len(quiet) > 10
    assert all(np.abs(shown - grey)[on_screen(i, j)].max() <= 2 for i, j in quiet)
    red, _, blue = shown[place]
    assert (red > blue + COLOURED) if values[peak] > 0 else (blue > red + COLOURED)
    assert np.ptp(grey[place]) <= 3

    slide(browser, "opacity", 0.5)
    half = painted(browser)
    between = np.abs(half[place] - (shown[place] + grey[place]) / 2)
    assert between.max() <= 12  # half of the one, half of the other

    slide(browser, "opacity", 1)
    areas = []
    for share in (0.1, 0.5, 0.9):
        slide(browser, "threshold", share)
        areas.append(int(coloured(painted(browser)).sum()))
    assert areas[0] > areas[1] > areas[2] >= 0


def test_another_overlay_is_another_picture_and_none_is_grey(
    house: House, browser: Chrome, prediction: Prediction
) -> None:
    opened(browser, house, prediction, "cta")
    slide(browser, "opacity", 1)
    own = painted(browser)
    Select(on(browser, "#overlay")).select_by_value("aligned-attribution-ncct")
    on(browser, "#canvas[data-loaded='aligned-cta aligned-attribution-ncct']")
    assert (coloured(painted(browser)) != coloured(own)).sum() > 30
    Select(on(browser, "#overlay")).select_by_value("")
    on(browser, "#canvas[data-loaded='aligned-cta ']")
    assert not coloured(painted(browser)).any()


def test_the_page_says_what_the_record_says(house: House, browser: Chrome, prediction: Prediction) -> None:
    browser.get(f"{house.url}/predictions/{prediction.id}")
    on(browser, "body[data-shown=succeeded]")
    assert prediction.probability is not None
    assert prediction.attribution is not None
    assert on(browser, "#result .probability").text == f"{100 * prediction.probability:.0f} %"
    assert "Research use only" in on(browser, ".banner").text
    for flag in prediction.flags:
        assert flag.detail in on(browser, "#flags").text
    bars = browser.find_elements(By.CSS_SELECTOR, "#reasons svg rect")
    assert len(bars) == len(prediction.attribution.clinical) + len(prediction.attribution.imaging)
    assert len(browser.find_elements(By.CSS_SELECTOR, "#regions tbody tr")) == 10
    drawn = on(browser, "#position img")
    WebDriverWait(browser, 60).until(lambda page: page.execute_script("return arguments[0].naturalWidth", drawn) > 100)
    on(browser, "#card-panel > summary").click()
    assert "A tiny version for tests" in on(browser, "#card h3").text
    failed = [entry["message"] for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
    assert all(f"{prediction.id}/outcome" in message for message in failed), failed  # not known yet: 404


def test_the_report_prints_whole(house: House, browser: Chrome, prediction: Prediction) -> None:
    """On paper as on the screen: every figure is drawn, and nothing is loaded for it."""
    browser.get(f"{house.url}/v1/predictions/{prediction.id}/report.html")
    figures = browser.find_elements(By.TAG_NAME, "img")
    assert len(figures) >= 4  # the waterfall, two overlays, the position
    assert all(browser.execute_script("return arguments[0].naturalWidth", figure) > 100 for figure in figures)
    assert len(browser.find_elements(By.CSS_SELECTOR, "figure table")) == len(figures)
    printed = base64.b64decode(browser.execute_cdp_cmd("Page.printToPDF", {"printBackground": True})["data"])
    assert printed.startswith(b"%PDF-")
    assert len(re.findall(rb"/Type\s*/Page\b", printed)) >= 2
    asked = browser.execute_script("return performance.getEntriesByType('resource').map(each => each.name)")
    assert [url for url in asked if not url.startswith("data:")] == []


def test_a_study_is_submitted_by_hand(house: House, browser: Chrome, study: dict[str, Any]) -> None:
    browser.get(house.url)
    on(browser, "input[name=ncct]").send_keys(str(study["ncct"]))
    on(browser, "input[name=cta]").send_keys(str(study["cta"]))
    for name, value in {"age": "71", "nihss": "14", "perfusion.core_ml": "12.5"}.items():
        on(browser, f"[data-name='{name}']").send_keys(value)
    Select(on(browser, "[data-name=atrial_fibrillation]")).select_by_visible_text("yes")
    on(browser, "input[name=subject]").send_keys("by-hand-1")
    # A slow line, so that there is progress to be seen: the two volumes take a second or two.
    size = sum(study[name].stat().st_size for name in ("ncct", "cta"))
    line = {"offline": False, "latency": 0, "downloadThroughput": -1, "uploadThroughput": size / 2}
    browser.execute_cdp_cmd("Network.enable", {})
    browser.execute_cdp_cmd("Network.emulateNetworkConditions", line)
    browser.execute_script(
        "window.name = '[]'; new MutationObserver(() => {"  # a window keeps its name from page to page
        "  window.name = JSON.stringify([...JSON.parse(window.name), document.getElementById('bar').value]);"
        "}).observe(document.getElementById('upload-text'), {childList: true});"
    )
    on(browser, "#submit button[type=submit]").click()
    on(browser, "body[data-shown=succeeded]")
    browser.execute_cdp_cmd("Network.emulateNetworkConditions", line | {"uploadThroughput": -1})
    seen = json.loads(browser.execute_script("return window.name"))
    assert seen == sorted(seen)
    assert any(0 < share < 1 for share in seen), seen
    assert seen[-1] == 1
    record = {"age": 71, "nihss": 14, "atrial_fibrillation": True, "perfusion": {"core_ml": 12.5}}
    with house.client() as client:
        sent = client.get(browser.current_url.rpartition("/")[2])
        again = client.predict(ncct=study["ncct"], cta=study["cta"], clinical=record)
    assert sent.subject == "by-hand-1"
    assert sent.probability == again.probability
    assert "by-hand-1" in on(browser, "#title").text
    on(browser, "nav a").click()
    assert "by-hand-1" in on(browser, "#recent tr:nth-child(2)").text  # the client's came after it


def test_the_list_follows_what_is_going_on(house: House, browser: Chrome, study: dict[str, Any]) -> None:
    """Without a reload: a study that somebody else sends appears, works and ends with its probability."""
    browser.get(house.url)
    on(browser, "#recent tr")
    states = (
        "window.states = []; new MutationObserver(() => {"
        "  const row = [...document.querySelectorAll('#recent tr')].find(r => r.textContent.includes('elsewhere-1'));"
        "  if (row) window.states.push(row.querySelector('.state').textContent);"
        "}).observe(document.getElementById('recent'), {childList: true, subtree: true});"
    )
    browser.execute_script(states)
    with house.client() as client:
        sent = client.submit(**study, subject="elsewhere-1")
        done = client.wait(sent.id)
    row = f"//tr[td[text()='elsewhere-1']][td[text()='{100 * (done.probability or 0):.0f} %']]"
    WebDriverWait(browser, 60).until(lambda page: page.find_elements(By.XPATH, row))
    assert browser.execute_script("return window.states").pop() == "succeeded"


def test_what_is_refused_is_said_beside_the_form(house: House, browser: Chrome, tmp_path: Path) -> None:
    (tmp_path / "ncct.nii").write_bytes(b"no volume at all")
    browser.get(house.url)
    on(browser, "input[name=ncct]").send_keys(str(tmp_path / "ncct.nii"))
    on(browser, "#submit button[type=submit]").click()
    assert "NIfTI" in on(browser, "#submit-problem .problem").text
    assert on(browser, "#submit button[type=submit]").is_enabled()


def test_a_review_and_an_outcome_are_put_on_record(house: House, browser: Chrome, prediction: Prediction) -> None:
    browser.get(f"{house.url}/predictions/{prediction.id}")
    on(browser, "body[data-shown=succeeded]")
    on(browser, "#review [value=override]").click()
    on(browser, "#review [name=reviewer]").send_keys("reader-1")
    on(browser, "#review button").click()  # a reason is missing: the browser itself holds it back
    assert browser.execute_script("return document.querySelector('#review :invalid').name") == "reason"
    Select(on(browser, "#review [name=reason]")).select_by_value("image-quality")
    on(browser, "#review [name=comment]").send_keys("<b>motion</b>")
    on(browser, "#review button").click()
    said = WebDriverWait(browser, 30).until(lambda page: page.find_elements(By.CSS_SELECTOR, "#reviews li strong"))
    assert said[0].text == "Overrides: image quality"
    assert "<b>motion</b>" in on(browser, "#reviews").text
    Select(on(browser, "#outcome [name=etici]")).select_by_visible_text("2b67")
    on(browser, "#outcome [name=stenosis]").send_keys("70")
    for times in range(2):  # once, and once more to correct it
        on(browser, "#outcome button").click()
        expected = ["On record: refractory.", "On record: not refractory."][times]
        WebDriverWait(browser, 30).until(lambda _, words=expected: words in on(browser, "#outcome-said").text)
        on(browser, "#outcome [name=stenosis]").clear()
        on(browser, "#outcome [name=stenosis]").send_keys("30")
    with house.client() as client:
        (review,) = client.reviews(prediction.id)
        assert (review.reviewer, review.reason) == ("reader-1", "image-quality")
        outcome = client.outcome(prediction.id)
    assert outcome is not None
    assert outcome.refractory is False


def test_the_keyboard_is_enough(house: House, browser: Chrome, prediction: Prediction) -> None:
    """From the list to the viewer and its sliders without a mouse."""
    browser.get(house.url)
    on(browser, f"#recent a[href='/predictions/{prediction.id}']")

    def tab_to(true: Callable[[WebElement], Any], most: int = 80) -> WebElement:
        for _ in range(most):
            browser.switch_to.active_element.send_keys(Keys.TAB)
            if true(browser.switch_to.active_element):
                return browser.switch_to.active_element
        raise AssertionError("not within reach of the Tab key")

    tab_to(lambda at: (at.get_attribute("href") or "").endswith(prediction.id)).send_keys(Keys.ENTER)
    on(browser, "#canvas[data-loaded*=aligned]")
    on(browser, "body[data-shown=succeeded]")
    canvas = tab_to(lambda at: at.get_attribute("id") == "canvas")
    where = "return Array.from(document.getElementById('canvas').viewer.scene.crosshairPos)"
    start = np.asarray(browser.execute_script(where))
    for key, axis, sign in ((Keys.ARROW_RIGHT, 0, 1), (Keys.ARROW_UP, 1, 1), (Keys.PAGE_DOWN, 2, -1)):
        canvas.send_keys(key)
        moved = np.asarray(browser.execute_script(where)) - start
        assert sign * moved[axis] > 0
        canvas.send_keys(Keys.HOME)
        assert browser.execute_script(where) == pytest.approx(start)
    opacity = tab_to(lambda at: at.get_attribute("id") == "opacity")
    before = float(opacity.get_attribute("value") or 0)
    opacity.send_keys(Keys.ARROW_LEFT)
    assert float(opacity.get_attribute("value") or 0) < before
    assert browser.execute_script("return document.getElementById('canvas').viewer.volumes[1].opacity") < before


def test_the_pages_policy_lets_nothing_else_in(house: House, browser: Chrome, prediction: Prediction) -> None:
    """Neither an inline script, nor another host, nor a frame; the browser itself says no."""
    browser.get(f"{house.url}/predictions/{prediction.id}")
    on(browser, "body[data-shown=succeeded]")
    browser.execute_async_script(
        "const done = arguments[0];"
        "document.addEventListener('securitypolicyviolation', () => { window.refused = (window.refused || 0) + 1; });"
        "const inline = document.createElement('script'); inline.textContent = 'window.ran = true';"
        "const far = document.createElement('img'); far.src = 'https://example.org/pixel.png';"
        "document.body.append(inline, far);"
        "fetch('https://example.org/').catch(() => {}).finally(() => setTimeout(done, 300));"
    )
    assert browser.execute_script("return window.ran") is None
    assert browser.execute_script("return window.refused") >= 3
