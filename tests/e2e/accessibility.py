"""Findings of axe-core on a page, as it is in the browser."""

from __future__ import annotations

from pathlib import Path

from selenium.webdriver import Chrome

AXE = Path(__file__).parents[1] / "vendor" / "axe-core" / "axe.min.js"
_RUN = """
const done = arguments[0];
axe.run(document, {resultTypes: ['violations']}).then(({violations}) => done(violations
  .filter(({impact}) => impact === 'serious' || impact === 'critical')
  .flatMap(({id, nodes}) => nodes.map(({target, any}) => `${id} at ${target}: ${any.map((each) => each.message)}`))));
"""


def serious_findings(browser: Chrome) -> list[str]:
    """Return the findings of impact serious or critical, each with its element."""
    browser.execute_script(AXE.read_text(encoding="utf-8"))
    findings: list[str] = browser.execute_async_script(_RUN)
    return findings


def use_theme(browser: Chrome, theme: str) -> None:
    """Let the system of the reader prefer ``light`` or ``dark``; the open page follows at once."""
    features = [{"name": "prefers-color-scheme", "value": theme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
