"""Several studies are submitted at once; the form tells which values the chosen version does not read."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import Select, WebDriverWait

from .service_process import RunningService
from .test_page import visible
from .test_page_texts import call

pytestmark = pytest.mark.xdist_group("e2e")


def cells(browser: Chrome) -> list[list[str]]:
    return [
        [cell.text for cell in row.find_elements(By.TAG_NAME, "td")]
        for row in browser.find_elements(By.CSS_SELECTOR, "#batch-rows tr")
    ]


def test_several_studies_are_sent_with_a_row_each(
    service: RunningService, browser: Chrome, study: dict[str, Any], tmp_path: Path
) -> None:
    for subject in ("batch-1", "batch-2"):
        shutil.copy(study["cta"], tmp_path / f"{subject}_cta.nii.gz")
    (tmp_path / "batch-1_clinical.json").write_text('{"age": 71}')
    (tmp_path / "batch-2_clinical.json").write_text('{"age": "old"}')
    (tmp_path / "batch-3_tmax.nii.gz").write_bytes(b"")
    (tmp_path / "notes.json").write_text("{}")
    browser.get(service.url)
    visible(browser, "[data-field=age]")
    Select(visible(browser, "[name=explain]")).select_by_value("false")
    visible(browser, "#batch-files").send_keys("\n".join(sorted(str(path) for path in tmp_path.iterdir())))
    assert [row[:3] for row in cells(browser)] == [
        ["batch-1", "clinical, cta", "ready to send"],
        ["batch-2", "clinical, cta", "ready to send"],
        ["batch-3", "tmax", "not sent"],
    ]
    assert "neither an NCCT nor a CTA" in cells(browser)[2][4]
    assert "notes.json" in visible(browser, "#batch-others").text
    assert visible(browser, "#batch-send").text == "Predict 2 studies"
    visible(browser, "#batch-send").click()
    wait = WebDriverWait(browser, 90, ignored_exceptions=[StaleElementReferenceException, IndexError])
    wait.until(lambda page: cells(page)[0][2] == "succeeded" and cells(page)[1][4])
    first, second, _ = cells(browser)
    assert "clinical.age" in second[4] or "age" in second[4]
    assert second[2] == "not sent"
    assert visible(browser, "#batch-send").text == "Predict one study"  # the refused one, once its files are corrected
    with service.client() as client:
        (sent,) = client.list(subject="batch-1")
        alone = client.predict(cta=study["cta"], clinical={"age": 71}, explain=False)
    assert sent.probability == alone.probability
    assert first[3] == f"{100 * (alone.probability or 0):.0f} %"
    assert sent.attribution is None  # the choice of the form above
    visible(browser, f"#batch-rows a[href='/predictions/{sent.id}']")


def test_files_are_sorted_into_studies_by_folder_or_by_name(service: RunningService, browser: Chrome) -> None:
    browser.get(service.url)
    paths = {
        "cohort/P01/ncct.nii.gz": ("P01", "ncct"),
        "cohort/P01/series 4 cta.nii": ("P01", "cta"),
        "cohort/P01/clinical.json": ("P01", "clinical"),
        "cohort/P02/P02_CTA.nii.gz": ("P02", "cta"),
        "cohort/P03-ncct.nii": ("P03", "ncct"),
        "cohort/cta.nii.gz": ("cohort", "cta"),
        "cohort/Jane Doe/cta.nii.gz": ("Jane Doe", "cta"),
        "cohort/P01/cta.json": None,
        "cohort/P01/clinical.nii.gz": None,
        "cohort/P01/contacts.nii": None,
        "cohort/P01/cta.dcm": None,
    }
    found = call(
        browser,
        "batch",
        "(({ studies, others }) => "
        "({ studies: studies.map((each) => [each.subject, Object.keys(each.files), each.faults]), others }))"
        "(m.sorted(args[0].map((path) => Object.defineProperty(new File([], path.split('/').pop()),"
        " 'webkitRelativePath', { value: path }))))",
        list(paths),
    )
    expected: dict[str, set[str]] = {}
    for place in paths.values():
        if place:
            expected.setdefault(place[0], set()).add(place[1])
    assert {subject: set(inputs) for subject, inputs, _ in found["studies"]} == expected
    assert [subject for subject, _, faults in found["studies"] if faults] == ["Jane Doe"]  # no pseudonym
    assert found["others"] == [path.rpartition("/")[2] for path, place in paths.items() if place is None]


def test_form_marks_what_the_version_does_not_read(service: RunningService, browser: Chrome) -> None:
    """The version reads CTA, NCCT, the core of perfusion maps, and few fields of the record."""
    browser.get(service.url)
    visible(browser, ".unread[data-field=inr]")
    assert "not read" in browser.execute_script(
        "return getComputedStyle(document.querySelector('[data-field=inr] > span'), '::after').content"
    )
    volumes = browser.execute_script(
        "return [...document.querySelectorAll('#volumes > label')]"
        ".map((label) => [label.dataset.field, label.classList.contains('unread')])"
    )
    assert [name for name, unread in volumes if not unread] == ["study", "ncct", "cta", "tmax", "cbf", "ctp"]
    assert [name for name, unread in volumes[6:] if unread] == ["vessels", "cbv", "mtt"]  # at the end
    assert not browser.find_elements(By.CSS_SELECTOR, ".unread[data-field=age], .unread[data-field=occlusion_side]")
    visible(browser, "[data-name=inr]").send_keys("1,2")
    visible(browser, "[data-name=age]").send_keys("71")
    lines = visible(browser, "#review-values").text.splitlines()
    assert [line.endswith("not read by this model") for line in lines[1:]] == [False, True]
