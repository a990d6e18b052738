"""Rules and words of the page, run in the browser: those of the service, in every language of the reader."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from app.core import display_names, explanation_text
from app.sdk import SYNTHETIC_NOTICE, Attribution, Channel, FoldSpread, Headline, published_scores
from app.sdk.clinical import ClinicalRecord, ImagingSigns
from app.sdk.published_scores import SCORES
from app.sdk.types import ModalityContribution, PerfusionSummary, RegionContribution

from .service_process import RunningService
from .test_page import visible

pytestmark = pytest.mark.xdist_group("e2e")

WEB = Path(__file__).resolve().parents[2] / "app" / "web"

NUMBERS: dict[str, float | str | None] = {
    "3,5": 3.5,
    "3.5": 3.5,
    " 22,9 ": 22.9,
    "0,123": 0.123,
    ",5": 0.5,
    "12": 12,
    "-3,5": -3.5,
    "−3,5": -3.5,
    "1234": 1234,
    "1,2345": 1.2345,
    "1234,567": 1234.567,
    "": None,
    "1,234": "ambiguous",
    "1.234": "ambiguous",
    "250.000": "ambiguous",
    "1.234,5": "grouped",
    "1,234.5": "grouped",
    "1.234.567": "grouped",
    "1 234": "grouped",
    "1'234": "grouped",
    "3,5,": "grouped",
    "3,": "grouped",
    "high": "no-number",
    "3,5 mg": "no-number",
    "1e3": "no-number",
    "<5": "no-number",
}
"""What is typed, and the number, the fault, or nothing."""


def call(browser: Chrome, module: str, expression: str, *arguments: object) -> Any:
    """Value of an expression in which ``m`` is a module of the page and ``args`` are the arguments."""
    script = (
        "const [module, args, done] = arguments;"
        f"import(module).then((m) => done({expression})).catch((problem) => done(`failed: ${{problem}}`));"
    )
    return browser.execute_async_script(script, f"/static/js/{module}.js", list(arguments))


@pytest.fixture
def localized(browser: Chrome, request: pytest.FixtureRequest) -> Iterator[Chrome]:
    """The browser with the locale of the parameter."""
    agent = browser.execute_script("return navigator.userAgent")
    browser.execute_cdp_cmd("Emulation.setLocaleOverride", {"locale": request.param})
    browser.execute_cdp_cmd("Emulation.setUserAgentOverride", {"userAgent": agent, "acceptLanguage": request.param})
    yield browser
    browser.execute_cdp_cmd("Emulation.setLocaleOverride", {})
    browser.execute_cdp_cmd("Emulation.setUserAgentOverride", {"userAgent": agent, "acceptLanguage": "en-US"})


@pytest.mark.parametrize("localized", ["en-US", "es-ES", "de-DE"], indirect=True)
def test_decimal_comma_is_read_and_shown_back(service: RunningService, localized: Chrome) -> None:
    localized.get(service.url)
    fields = {"age": "71,5", "nihss": "14", "perfusion.core_ml": "22.9"}
    for name, typed in fields.items():
        visible(localized, f"[data-name='{name}']").send_keys(typed)
    document = json.loads(localized.find_element(By.ID, "json").get_property("value"))
    assert document == {"age": 71.5, "nihss": 14, "perfusion": {"core_ml": 22.9}}
    sign = "," if localized.execute_script("return document.documentElement.lang") == "es" else "."
    echo = localized.find_element(By.CSS_SELECTOR, "[data-field='perfusion.core_ml'] .echo").text
    assert echo == f"= 22{sign}9 mL"
    assert f"71{sign}5 years" in visible(localized, "#review-values").text

    glucose = visible(localized, "[data-name=glucose]")
    glucose.send_keys("1.234,5")
    fault = localized.find_element(By.CSS_SELECTOR, "[data-field=glucose] .echo.fault").text
    assert "1234" in fault
    assert not localized.execute_script("return arguments[0].validity.valid", glucose)
    assert "glucose" not in localized.find_element(By.ID, "json").get_property("value")
    results = call(localized, "numbers", "args[0].map((text) => m.readNumber(text))", list(NUMBERS))
    assert dict(zip(NUMBERS, (r.get("value", r.get("fault")) for r in results), strict=True)) == NUMBERS
    again = call(
        localized, "numbers", "args[0].map((n) => m.readNumber(m.writeNumber(n)).value)", [12.345, 1.234, 5e-7]
    )
    assert again == [12.345, 1.234, 5e-7]


def _fields(model: type[BaseModel], prefix: str = "") -> list[str]:
    return [prefix + name for name in model.model_fields]


def test_page_has_the_words_and_rules_of_the_service(service: RunningService, browser: Chrome) -> None:
    browser.get(service.url)
    names = call(browser, "explanation", "m.headlines")
    assert names == {headline.value: headline.text for headline in Headline}
    assert call(browser, "explanation", "m.syntheticNotice") == SYNTHETIC_NOTICE
    channels = [channel.value for channel in Channel]
    assert call(browser, "explanation", "args[0].map(m.channelName)", channels) == [
        display_names.channel_label(name) for name in channels
    ]
    fields = [
        *_fields(ClinicalRecord),
        *_fields(PerfusionSummary, "perfusion."),
        *_fields(ImagingSigns, "imaging_signs."),
    ]
    assert call(browser, "dom", "args[0].map(m.words)", fields) == [display_names.label(name) for name in fields]
    text = "perfusion: core 22.9 mL, Tmax > 6 s 106 mL"
    limits = list(range(12, len(text) - 1))
    said = call(browser, "dom", "args[1].map((limit) => m.shortened(args[0], limit))", text, limits)
    assert [each.replace("…", "..") for each in said] == [display_names.truncated(text, limit + 1) for limit in limits]
    rule = "max-f1-out-of-fold"
    assert call(browser, "explanation", "m.ruleText(args[0])", rule) == display_names.rule_text(rule)
    records = (
        ClinicalRecord(),
        ClinicalRecord(nihss=5),
        ClinicalRecord(nihss=5, atrial_fibrillation=False, diabetes=True),
    )
    scores = [score for record in records for score in published_scores.of_record(record)]
    sent = [score.model_dump(mode="json") for score in scores]
    assert call(browser, "scores", "args[0].map(m.sumText)", sent) == [score.text for score in scores]
    spread = FoldSpread(low=0.1, high=0.2)
    for folds in ([0.1, 0.2, 0.3, 0.4], [0.1], [0.1] * 12, None):
        said = call(browser, "explanation", "m.intervalName(args[0], args[1])", spread.model_dump(mode="json"), folds)
        assert said == display_names.interval_name(spread, folds)
    for total, part in ((-0.5, 0.9), (2.0, -0.4), (0.0, 0.0)):
        points = call(browser, "explanation", "m.points(args[0], args[1])", total, part)
        assert points == pytest.approx(explanation_text.points(total, part))
    regions = [("other", "cta", -0.3), ("left MCA M1", "cta", 0.6), ("left insula", "ncct", 0.3)]
    attribution = Attribution(
        base=0,
        total=0.9,
        clinical=[],
        imaging=[ModalityContribution(modality=Channel(name), contribution=0.3) for name in ("ncct", "cta")],
        regions=[RegionContribution(region=r, modality=Channel(m), contribution=c) for r, m, c in regions],
    )
    said = call(browser, "explanation", "m.outsideText(args[0])", attribution.model_dump(mode="json"))
    assert said.replace("\u00a0", " ") == explanation_text.outside_text(attribution)
    for flags in ([{"code": "side-from-images"}], []):
        said = call(browser, "explanation", "m.sideText('left', args[0])", flags)
        expected = "taken to be left (from the images)" if flags else "on the left (from the record)"
        assert said == f"The occlusion is {expected}."


def test_spanish_page_is_spanish_and_can_be_changed(service: RunningService, browser: Chrome) -> None:
    browser.get(service.url)
    assert visible(browser, "#submit-title").text == "Submit a study"
    try:
        browser.execute_script("localStorage.setItem('rlvo-language', 'es')")
        browser.get(service.url)
        WebDriverWait(browser, 30).until(
            lambda page: page.find_element(By.ID, "submit-title").text == "Enviar un estudio"
        )
        assert browser.execute_script("return document.documentElement.lang") == "es"
        assert "Solo para investigación" in visible(browser, ".banner").text
    finally:
        browser.execute_script("localStorage.removeItem('rlvo-language')")


def page_texts() -> set[str]:
    """Every text of the scripts that goes through the catalogue, and every text of the HTML files."""
    texts = set()
    for script in (WEB / "js").glob("*.js"):
        source = script.read_text(encoding="utf-8")
        texts |= set(re.findall(r'\bt\("((?:[^"\\]|\\.)*)"', source))
    for name in ("index.html", "prediction.html"):
        body = (WEB / name).read_text(encoding="utf-8").partition("<body>")[2]
        texts |= {" ".join(text.split()) for text in re.findall(r">([^<]+)<", body)}
    return {text for text in texts if re.search(r"[A-Za-z]{2}", text)}


NOT_TRANSLATED = {"rlvo", "API", "2a", "2b50", "2b67", "2c"}


def test_spanish_catalogue_has_every_text_of_the_pages() -> None:
    spanish = json.loads((WEB / "texts" / "es.json").read_text(encoding="utf-8"))
    scores = {score.name for score in SCORES} | {score.unit for score in SCORES} | {published_scores.TARGET}
    assert page_texts() - NOT_TRANSLATED - set(spanish) == set()
    assert (scores | {item.text for score in SCORES for item in score.items}) - set(spanish) == set()
    for english, text in spanish.items():
        assert set(re.findall(r"\{\w+\}", english)) == set(re.findall(r"\{\w+\}", text)), english
