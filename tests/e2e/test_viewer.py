"""The viewer of the page: series of the patient, linked images, windows, slabs, ruler, maps, and the dark page."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
import pytest
from PIL import Image
from scipy import ndimage
from selenium.webdriver import ActionChains, Chrome, Keys
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import Select, WebDriverWait

from app.sdk import Prediction
from app.storage.local import Storage

from .service_process import RunningService
from .test_page import visible
from .test_page_texts import call

pytestmark = pytest.mark.xdist_group("e2e")

AXIAL = 0
COLOURED = 40
"""A pixel with a larger difference between red, green and blue levels has a colour."""


def move_slider(browser: Chrome, name: str, value: float) -> None:
    browser.execute_script(
        "const slider = document.getElementById(arguments[0]); slider.value = arguments[1];"
        "slider.dispatchEvent(new Event('input'));",
        name,
        value,
    )


def canvas_pixels(browser: Chrome, modality: str) -> np.ndarray:
    """Return the canvas as it is on the screen: levels (rows, columns, 3)."""
    png = browser.find_element(By.ID, f"canvas-{modality}").screenshot_as_png
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


def coloured(pixels: np.ndarray) -> np.ndarray:
    spread: np.ndarray = pixels.max(axis=-1) - pixels.min(axis=-1)
    return spread > COLOURED


class Axial(NamedTuple):
    """Position of the axial plane on the screen, in pixels of the canvas."""

    left: float
    top: float
    width: float
    height: float

    def pixel(self, across: float, up: float) -> tuple[int, int]:
        """Return row and column of a position, given as shares of width and height from the lower left corner."""
        return round(self.top + (1 - up) * self.height), round(self.left + across * self.width)


def open_viewer(browser: Chrome, service: RunningService, prediction: Prediction) -> None:
    """Open the page of a prediction and wait for its series."""
    browser.get(f"{service.url}/predictions/{prediction.id}")
    for modality in ("ncct", "cta"):
        visible(browser, f"#canvas-{modality}[data-loaded^={modality}]")


def open_mni_view(browser: Chrome, service: RunningService, prediction: Prediction, modality: str) -> Axial:
    """Show three planes in MNI space with the map of one modality, without crosshair and texts, which hide pixels."""
    if not browser.current_url.endswith(prediction.id):
        open_viewer(browser, service, prediction)
    Select(visible(browser, "#plane")).select_by_value("three")
    Select(visible(browser, "#space")).select_by_value("mni")
    visible(browser, f"#canvas-{modality}[data-loaded^=aligned]")
    show_overlay(browser, modality, f"attribution-{modality}")
    tiles = browser.execute_script(
        "for (const each of document.querySelectorAll('.corner')) each.hidden = true;"
        "const viewer = document.getElementById(`canvas-${arguments[0]}`).viewer; viewer.setCrosshairWidth(0);"
        "viewer.opts.crosshairGap = 0; viewer.opts.isOrientationTextVisible = false; viewer.drawScene();"
        "const ratio = viewer.gl.canvas.width / viewer.gl.canvas.clientWidth;"
        "return viewer.screenSlices.map(s => [s.axCorSag, ...Array.from(s.leftTopWidthHeight).map(x => x / ratio)]);",
        modality,
    )
    return Axial(*next(tile[1:] for tile in tiles if tile[0] == AXIAL))


def show_overlay(browser: Chrome, modality: str, kind: str) -> None:
    """Choose a map and wait until it lies on the image of the modality."""
    Select(visible(browser, "#overlay")).select_by_value(kind)
    name = f"aligned-{kind}" if kind else ""
    visible(browser, f"#canvas-{modality}[data-loaded$=' {name}']")


def attribution(service: RunningService, prediction: Prediction, modality: str, folder: Path) -> nib.Nifti1Image:
    with service.client() as client:
        path = client.map(prediction.id, f"aligned-attribution-{modality}", to=folder)
    return nib.Nifti1Image.from_filename(path)


@pytest.mark.parametrize("modality", ["ncct", "cta"])
def test_overlay_is_drawn_where_the_map_has_high_values(
    service: RunningService, browser: Chrome, prediction: Prediction, modality: str, tmp_path: Path
) -> None:
    axial = open_mni_view(browser, service, prediction, modality)
    image = attribution(service, prediction, modality, tmp_path)
    values = np.asarray(image.dataobj)
    peak = np.unravel_index(int(np.abs(values).argmax()), values.shape)

    def on_screen(i: int, j: int) -> tuple[int, int]:
        # The plane shows the field of view of the image: the 2 mm grid from -91 to 91 and -127 to 91 mm.
        # The patient's right is on the left (radiological view).
        x, y, _, _ = image.affine @ (i, j, peak[2], 1)
        return axial.pixel((91 - x) / 182, (y + 127) / 218)

    peak_pixel, share = on_screen(*peak[:2]), np.abs(values) / np.abs(values[peak])
    move_slider(browser, "threshold", 0.3)
    move_slider(browser, "opacity", 1)
    shown = canvas_pixels(browser, modality)
    move_slider(browser, "opacity", 0)
    grey = canvas_pixels(browser, modality)
    assert not coloured(grey).any()  # no colour without the overlay
    above = np.argwhere(share[..., peak[2]] > 0.6)
    assert len(above)
    assert all(coloured(shown)[on_screen(i, j)] for i, j in above)
    # The viewer interpolates, so a voxel has no colour only if its neighbours are below the threshold too.
    below = np.argwhere(ndimage.maximum_filter(share, 3)[1:-1, 1:-1, peak[2]] < 0.3) + 1
    assert len(below) > 10
    assert all(np.abs(shown - grey)[on_screen(i, j)].max() <= 2 for i, j in below)
    red, _, blue = shown[peak_pixel]
    assert (red > blue + COLOURED) if values[peak] > 0 else (blue > red + COLOURED)
    assert np.ptp(grey[peak_pixel]) <= 3

    move_slider(browser, "opacity", 0.5)
    half = canvas_pixels(browser, modality)
    between = np.abs(half[peak_pixel] - (shown[peak_pixel] + grey[peak_pixel]) / 2)
    assert between.max() <= 12  # the mean of image and overlay

    move_slider(browser, "opacity", 1)
    areas = []
    for share in (0.1, 0.5, 0.9):
        move_slider(browser, "threshold", share)
        areas.append(int(coloured(canvas_pixels(browser, modality)).sum()))
    assert areas[0] > areas[1] > areas[2] >= 0


def test_overlay_can_be_changed_and_removed(service: RunningService, browser: Chrome, prediction: Prediction) -> None:
    open_mni_view(browser, service, prediction, "cta")
    move_slider(browser, "opacity", 1)
    cta_overlay = canvas_pixels(browser, "cta")
    show_overlay(browser, "cta", "attribution-ncct")
    assert (coloured(canvas_pixels(browser, "cta")) != coloured(cta_overlay)).sum() > 30
    show_overlay(browser, "cta", "")
    assert not coloured(canvas_pixels(browser, "cta")).any()


def in_viewer(browser: Chrome, modality: str, expression: str, *arguments: object) -> Any:
    """Value of an expression in which ``nv`` is the NiiVue of an image and ``args`` are the arguments."""
    return browser.execute_script(
        f"const [modality, args] = arguments; const nv = document.getElementById(`canvas-${{modality}}`).viewer;"
        f"return {expression};",
        modality,
        list(arguments),
    )


def crosshair_mm(browser: Chrome, modality: str) -> np.ndarray:
    """Position of the crosshair in the RAS+ mm of the image."""
    return np.asarray(in_viewer(browser, modality, "[...nv.frac2mm(nv.scene.crosshairPos, 0, true)].slice(0, 3)"))


def corner(browser: Chrome, modality: str, place: str) -> str:
    return visible(browser, f"[data-image={modality}] .corner.{place}").text


def test_series_have_full_resolution_and_are_linked(
    service: RunningService, browser: Chrome, prediction: Prediction, tmp_path: Path
) -> None:
    open_viewer(browser, service, prediction)
    with service.client() as client:
        place = {name: np.asarray(each["mni_from_world"]) for name, each in client.alignment(prediction.id).items()}
        files = {
            name: nib.Nifti1Image.from_filename(client.series(prediction.id, name, tmp_path))
            for name in ("ncct", "cta")
        }
    for name, file in files.items():
        assert in_viewer(browser, name, "[...nv.volumes[0].hdr.dims].slice(1, 4)") == list(file.shape)
        assert in_viewer(browser, name, "nv.volumes.length") == 2  # the map lies on the anatomy
    visible(browser, "#canvas-cta").send_keys(Keys.PAGE_DOWN, Keys.PAGE_DOWN, Keys.ARROW_LEFT)
    here, there = crosshair_mm(browser, "cta"), crosshair_mm(browser, "ncct")
    expected = np.linalg.inv(place["ncct"]) @ place["cta"] @ [*here, 1]
    assert np.abs(there - expected[:3]).max() < 0.01
    assert np.abs(there - here).max() > 1  # the two series differ in position, so equal coordinates would be wrong
    for name, mm in (("cta", here), ("ncct", there)):
        voxel = np.rint(np.linalg.inv(files[name].affine) @ [*mm, 1])[:3].astype(int)
        value = round(float(files[name].dataobj[tuple(voxel)]))
        assert corner(browser, name, "bottom.right") == f"{value} HU"
        assert f"{name.upper()} {value} HU" in visible(browser, "#location").text
    wheel = "arguments[0].dispatchEvent(new WheelEvent('wheel', {deltaY: 100, bubbles: true, cancelable: true, clientX:"
    wheel += " arguments[0].getBoundingClientRect().x + 150, clientY: arguments[0].getBoundingClientRect().y + 150}))"
    browser.execute_script(wheel, visible(browser, "#canvas-ncct"))
    assert abs(crosshair_mm(browser, "ncct")[2] - there[2]) > 1
    assert abs(crosshair_mm(browser, "cta")[2] - here[2]) > 1
    browser.execute_script(
        "const slider = document.querySelector('[data-image=ncct] .slice input'); slider.value = 3;"
        "slider.dispatchEvent(new Event('input'));"
    )
    assert visible(browser, "[data-image=ncct] output").text == f"slice 3 of {files['ncct'].shape[2]}"
    assert "full resolution" in visible(browser, "#viewer-note").text


@pytest.fixture(scope="module")
def page(service: RunningService, chromium: Chrome, prediction: Prediction) -> Chrome:
    """The browser with the viewer of a prediction, for tests that leave the page as it was."""
    open_viewer(chromium, service, prediction)
    return chromium


def test_windows_have_values_and_a_reset(page: Chrome) -> None:

    def ends() -> list[float]:
        levels: list[float] = in_viewer(page, "ncct", "[nv.volumes[0].cal_min, nv.volumes[0].cal_max]")
        return levels

    canvas, width, level = (
        visible(page, "#canvas-ncct"),
        *(visible(page, f"[data-image=ncct] label:nth-of-type({number}) input") for number in (1, 2)),
    )
    for key, window, expected in (
        ("2", "W 40 L 40", [20, 60]),
        ("3", "W 700 L 250", [-100, 600]),
        ("4", "W 2500 L 480", [-770, 1730]),
        ("1", "W 80 L 40", [0, 80]),
    ):
        canvas.send_keys(key)
        assert (ends(), corner(page, "ncct", "top.right")) == (expected, window)
    preset = Select(visible(page, "[data-image=ncct] figcaption select"))
    width.clear()
    width.send_keys("60", Keys.TAB)
    assert (ends(), preset.first_selected_option.get_attribute("value")) == ([10, 70], "custom")
    visible(page, "[data-image=ncct] figcaption button").click()
    assert (ends(), width.get_attribute("value"), level.get_attribute("value")) == ([0, 80], "80", "40")
    ActionChains(page).double_click(canvas).perform()  # NiiVue would set the extremes of the volume
    assert ends() == [0, 80]
    assert preset.first_selected_option.text == "Brain 80/40"


def test_slab_shows_the_largest_values(
    service: RunningService, page: Chrome, prediction: Prediction, tmp_path: Path
) -> None:
    with service.client() as client:
        file = nib.Nifti1Image.from_filename(client.series(prediction.id, "cta", tmp_path))
    Select(visible(page, "#slab")).select_by_value("20")
    mm = crosshair_mm(page, "cta")
    i, j, k = np.rint(np.linalg.inv(file.affine) @ [*mm, 1])[:3].astype(int)
    count = round(20 / float(file.header.get_zooms()[2]))
    first = min(max(k - (count - 1) // 2, 0), file.shape[2] - count)
    largest = round(float(np.asarray(file.dataobj[i, j, first : first + count]).max()))
    assert corner(page, "cta", "bottom.right") == f"{largest} HU"
    assert corner(page, "cta", "top.left") == "CTA · MIP 20 mm"
    visible(page, "#canvas-cta").send_keys("m")
    assert corner(page, "cta", "bottom.right") == f"{round(float(file.dataobj[i, j, k]))} HU"


def test_slabs_of_each_axis_and_thickness_are_right(page: Chrome) -> None:
    values = np.random.default_rng(0).integers(-1000, 3000, (4, 5, 7), dtype=np.int16)
    for axis in range(3):
        for size in (1, 2, 3, 4, 9):
            found = call(
                page,
                "projection",
                "[...m.slabs(Int16Array.from(args[0]), args[1], args[2], args[3])]",
                values.ravel(order="F").tolist(),
                list(values.shape),
                axis,
                size,
            )
            thick = min(size, values.shape[axis])
            windows = np.lib.stride_tricks.sliding_window_view(values, thick, axis).max(-1)
            starts = np.clip(np.arange(values.shape[axis]) - (thick - 1) // 2, 0, values.shape[axis] - thick)
            assert found == np.take(windows, starts, axis).ravel(order="F").tolist()


def test_ruler_measures_in_millimetres(page: Chrome) -> None:
    Select(visible(page, "#tool")).select_by_value("ruler")
    canvas = visible(page, "#canvas-ncct")
    ActionChains(page).move_to_element(canvas).click_and_hold().move_by_offset(100, 0).release().perform()
    (line,) = in_viewer(page, "ncct", "nv.document.completedMeasurements.map(m => m.distance)")
    pixels_per_mm = in_viewer(
        page, "ncct", "nv.screenSlices[0].leftTopWidthHeight[2] / Math.abs(nv.screenSlices[0].fovMM[0])"
    )
    assert line == pytest.approx(100 / pixels_per_mm, rel=0.02)
    assert visible(page, "#measured").text == f"Distance {line:.1f} mm."
    canvas.send_keys(Keys.ESCAPE)
    assert in_viewer(page, "ncct", "nv.document.completedMeasurements.length") == 0


def test_convention_is_written_on_each_picture_and_kept(page: Chrome) -> None:
    texts = {"radiological": "radiological: right is left", "neurological": "neurological: left is left"}
    try:
        for convention in ("neurological", "radiological"):
            visible(page, "#canvas-ncct").send_keys("v")
            assert page.execute_script("return localStorage.getItem('rlvo-convention')") == convention
            for image in ("ncct", "cta"):
                assert corner(page, image, "bottom.left") == texts[convention]
                assert in_viewer(page, image, "nv.opts.isRadiologicalConvention") == (convention == "radiological")
    finally:
        page.execute_script("localStorage.removeItem('rlvo-convention')")


@pytest.fixture
def narrow_and_dark(browser: Chrome) -> Iterator[Chrome]:
    """A telephone with touch, on which the reader prefers dark pages."""
    size = {"width": 400, "height": 800, "deviceScaleFactor": 1, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": True, "maxTouchPoints": 2})
    dark = {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", dark)
    yield browser
    browser.execute_script("localStorage.removeItem('rlvo-theme'); localStorage.removeItem('rlvo-convention')")
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    browser.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": False})
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_dark_page_and_touch_at_400_pixels(
    service: RunningService, narrow_and_dark: Chrome, prediction: Prediction
) -> None:
    browser = narrow_and_dark
    browser.get(service.url)
    browser.execute_script("localStorage.setItem('rlvo-convention', 'neurological')")
    open_viewer(browser, service, prediction)
    assert corner(browser, "cta", "bottom.left") == "neurological: left is left"  # as chosen before

    def background() -> int:
        style: str = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
        return sum(int(part) for part in style.removeprefix("rgb(").removesuffix(")").split(","))

    assert background() < 100  # as the system prefers
    assert browser.execute_script("return document.documentElement.scrollWidth") <= 400
    before = crosshair_mm(browser, "cta")
    box = browser.execute_script(
        "const canvas = document.getElementById('canvas-cta'); canvas.scrollIntoView({block: 'center'});"
        "const {x, y, width, height} = canvas.getBoundingClientRect(); return {x, y, width, height};"
    )
    assert box["width"] <= 400
    point = {"x": box["x"] + 0.4 * box["width"], "y": box["y"] + 0.4 * box["height"]}
    browser.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": "touchStart", "touchPoints": [point]})
    WebDriverWait(browser, 60).until(lambda page: np.abs(crosshair_mm(page, "cta") - before).max() > 1)
    browser.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    Select(visible(browser, "#theme")).select_by_value("light")
    assert background() > 600
    browser.get(service.url)
    assert background() > 600  # remembered, on each page


def test_series_that_cannot_be_read_is_named(service: RunningService, browser: Chrome, prediction: Prediction) -> None:
    digest = next(each.sha256 for name, each in prediction.inputs.items() if name == "cta")
    blob = Storage(service.folder / "blobs").path(digest)
    kept = blob.rename(blob.with_suffix(".kept"))
    try:
        browser.get(f"{service.url}/predictions/{prediction.id}")
        said = visible(browser, "#viewer-problem .problem").text
        assert "The series of the patient cannot be shown." in said
        assert "The images in MNI space are shown." in said
        assert visible(browser, "#space").get_attribute("value") == "mni"
    finally:
        kept.rename(blob)
        browser.get_log("browser")
