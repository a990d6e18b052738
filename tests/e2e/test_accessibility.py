"""axe-core has no serious finding on any page, light and dark, wide and narrow."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium.webdriver import Chrome

from app.sdk import Prediction

from .accessibility import serious_findings, use_theme
from .service_process import RunningService
from .test_page import visible

pytestmark = pytest.mark.xdist_group("e2e")


@pytest.fixture(params=["light", "dark"])
def themed(browser: Chrome, request: pytest.FixtureRequest) -> Iterator[Chrome]:
    use_theme(browser, request.param)
    yield browser
    browser.get("about:blank")  # the list asks its service again and again
    use_theme(browser, "light")
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def narrow(browser: Chrome) -> None:
    metrics = {"width": 400, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)


def test_start_page_has_no_serious_finding(service: RunningService, themed: Chrome, tmp_path: Path) -> None:
    """With a list, marked fields, an error at a field, and an error of the service."""
    themed.get(service.url)
    visible(themed, ".unread")
    visible(themed, "[data-name=glucose]").send_keys("1.234,5")
    (tmp_path / "ncct.nii").write_bytes(b"no volume at all")
    visible(themed, "input[name=ncct]").send_keys(str(tmp_path / "ncct.nii"))
    visible(themed, "#batch-files").send_keys(str(tmp_path / "ncct.nii"))
    themed.execute_script("document.getElementById('submit').noValidate = true")
    visible(themed, "#submit button[type=submit]").click()
    visible(themed, "#submit-problem .problem")
    assert serious_findings(themed) == []
    narrow(themed)
    assert serious_findings(themed) == []


def test_page_of_a_prediction_has_no_serious_finding(
    service: RunningService, themed: Chrome, prediction: Prediction
) -> None:
    themed.get(f"{service.url}/predictions/{prediction.id}")
    visible(themed, "body[data-shown=succeeded]")
    visible(themed, "#card-panel > summary").click()
    visible(themed, "#card h3")
    assert serious_findings(themed) == []
    narrow(themed)
    assert serious_findings(themed) == []
