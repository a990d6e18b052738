"""A site trains a version with own variables, and serves it: values are sent, refused and shown."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pandas as pd
import pytest
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import Select, WebDriverWait
from typer.testing import CliRunner

import rlvo.evaluation as ev
from app.cli.training import commands
from app.inference import defaults, preprocess_cache
from app.registry.model_store import ModelStore
from app.sdk import Client, ClinicalRecord, InvalidClinical, Prediction

from .service_process import RunningService

pytestmark = pytest.mark.xdist_group("own-variables")

STORE = Path(__file__).resolve().parents[2] / "model_store"
PATIENTS = 80
DECLARED = """
[variables.ddimer]
label = "D-dimer"
kind = "number"
unit = "ng/mL"
range = [0, 100000]
log = true
group = "laboratory"

[variables.pacemaker]
label = "Pacemaker"
kind = "boolean"
group = "history"

[variables.leukoaraiosis]
label = "White matter disease"
kind = "category"
values = ["none", "mild", "severe"]
"""


def write_cohort(folder: Path) -> Path:
    """A prepared cohort whose outcome follows the D-dimer; the images have a few voxels of noise."""
    folder.mkdir()
    chance = np.random.default_rng(5)
    positive = np.arange(PATIENTS) % 2 == 0
    images = np.zeros((PATIENTS, len(defaults.CHANNELS), *defaults.GRID.shape), np.float16)
    images[:, :, 3:7, 3, 3] = chance.random((PATIENTS, len(defaults.CHANNELS), 4))
    np.save(folder / "images.npy", images)
    (folder / "images.json").write_text(json.dumps(preprocess_cache.layout()))
    frame = pd.DataFrame(
        {
            "patient": [f"p{n}" for n in range(PATIENTS)],
            "prepared": np.arange(PATIENTS),
            "final_stenosis_percent": np.where(positive, 80, 10),
            "etici": "2b",
            "rescue_treatment": 0,
            "age": chance.integers(50, 90, PATIENTS),
            "nihss": chance.integers(4, 25, PATIENTS),
            "D dimer": np.exp(chance.normal(6 + positive, 0.7)).round(1),
            "pacemaker": np.where(chance.random(PATIENTS) < 0.3, "yes", "no"),
            "leukoaraiosis": chance.choice(["none", "mild", "severe"], PATIENTS),
        }
    )
    frame.loc[::7, "D dimer"] = None
    frame.to_csv(folder / "cohort.csv", index=False)
    (folder / "columns.toml").write_text('[columns."D dimer"]\nfield = "ddimer"\n')
    (folder / "variables.toml").write_text(DECLARED)
    return folder


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model store with the trained version ``mine@1.0.0`` and one of the release, which has no own variables."""
    folder = tmp_path_factory.mktemp("own")
    out = folder / "store" / "mine" / "1.0.0"
    cohort = write_cohort(folder / "cohort")
    arguments = ["train", cohort, "--out", out, "--model", "logistic", "--quick", "--epochs", 1, "--publish-anyway"]
    result = CliRunner().invoke(commands, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    shutil.copytree(STORE / "rlvo-synthetic-lr" / "1.0.0", folder / "store" / "rlvo-synthetic-lr" / "1.0.0")
    return folder / "store"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, store: Path) -> Iterator[RunningService]:
    service = RunningService(tmp_path_factory.mktemp("service"), store, "mine")
    service.start()
    yield service
    assert service.stop() == 0, service.log()


@pytest.fixture(scope="module")
def client(service: RunningService) -> Iterator[Client]:
    with service.client() as client:
        yield client


def own(**values: Any) -> dict[str, Any]:
    return {"age": 74, "nihss": 15, "own": values}


@pytest.fixture(scope="module")
def answer(client: Client, patient: dict[str, Path]) -> Prediction:
    return client.predict(ncct=patient["ncct"], clinical=own(ddimer=2400.5, pacemaker=True))


def test_version_declares_its_variables_and_its_card_lists_them(store: Path, client: Client) -> None:
    entry = ModelStore(store).resolve("mine@1.0.0")
    assert entry.manifest.schema_version == 4  # its channels have parts
    assert ModelStore(store).resolve("rlvo-synthetic-lr@1.0.0").manifest.schema_version < 3
    for line in ("| `own.ddimer` | D-dimer | a number within 0 to 100000 ng/mL |", "| D-dimer, ng/mL |"):
        assert line in entry.card()
    schema = client.clinical_schema("mine", "1.0.0")["properties"]["own"]["properties"]
    assert schema["ddimer"] == {
        "type": "number",
        "minimum": 0,
        "maximum": 100_000,
        "unit": "ng/mL",
        "label": "D-dimer",
        "group": "laboratory",
    }
    assert schema["leukoaraiosis"]["enum"] == ["none", "mild", "severe"]
    assert "own" not in client.clinical_schema("rlvo-synthetic-lr", "1.0.0")["properties"]
    assert "own" in client.clinical_schema()["properties"]


def test_notebook_reads_the_variables_that_the_manifest_declares(store: Path) -> None:
    cohort = store.parent / "cohort"
    copy = store.parent / "without-declarations"
    shutil.copytree(cohort, copy, ignore=shutil.ignore_patterns("variables.toml", "columns.toml", ".*", "reports"))
    table = pd.read_csv(copy / "cohort.csv").rename(columns={"D dimer": "ddimer"})
    table = table.drop(columns=["final_stenosis_percent", "etici", "rescue_treatment"])
    table.to_csv(copy / "cohort.csv", index=False)
    frame = ev.predict_cohort(store / "mine" / "1.0.0", copy, i_know=True)
    assert frame["outcome"].isna().all()
    known = table["ddimer"].notna()
    assert frame["log_odds"][known].corr(np.log(table["ddimer"][known])) > 0.8


def test_explanation_names_the_variables_and_the_missing_one_is_imputed(answer: Prediction) -> None:
    assert answer.attribution is not None
    found = {item.variable: item for item in answer.attribution.clinical}
    assert (found["own.ddimer"].label, found["own.ddimer"].value) == ("D-dimer", 2400.5)
    assert found["own.pacemaker"].value is True
    assert found["own.leukoaraiosis"].imputed
    assert found["own.ddimer"].contribution > 0.1  # the outcome of the cohort follows it
    assert found["age"].label is None
    (imputed,) = [flag.detail for flag in answer.flags if flag.code == "imputed"]
    assert "own.leukoaraiosis" in imputed
    assert "own.ddimer" not in imputed


def test_value_changes_the_answer_and_a_replay_repeats_it(
    service: RunningService, client: Client, answer: Prediction, patient: dict[str, Path]
) -> None:
    other = client.predict(ncct=patient["ncct"], clinical=ClinicalRecord.model_validate(own(ddimer=90, pacemaker=True)))
    assert other.probability is not None
    assert answer.probability is not None
    assert other.probability < answer.probability - 0.02
    replayed = service.rlvo("replay", answer.id)
    assert replayed.returncode == 0, replayed.stderr


def test_one_idempotency_key_is_not_reused_for_another_value(service: RunningService, patient: dict[str, Path]) -> None:
    def send(value: float) -> int:
        files = {"ncct": patient["ncct"].read_bytes(), "clinical": (None, json.dumps(own(ddimer=value)))}
        headers = {"Idempotency-Key": "own-1", "Prefer": "respond-async"}
        return httpx.post(f"{service.url}/v1/predictions", files=files, headers=headers, timeout=60).status_code

    assert [send(1.0), send(1.0), send(2.0)] == [202, 202, 422]  # the second is the first one again


@pytest.mark.parametrize(
    ("values", "field", "detail"),
    [
        ({"ddimer": 100_001}, "own.ddimer", "must be a number within 0 to 100000 ng/mL"),
        ({"pacemaker": "yes"}, "own.pacemaker", "must be true or false"),
        ({"leukoaraiosis": "huge"}, "own.leukoaraiosis", "must be one of none, mild, severe"),
        ({"d_dimer": 5}, "own.d_dimer", "is no own variable of this model"),
        ({"ddimer": "Jane Doe"}, "own.ddimer", "must be a number, true or false, or a word"),
        ({"Jane Doe": 5}, "own.(a field)", "the name has small letters"),
    ],
)
def test_wrong_value_is_refused_by_name(
    client: Client, patient: dict[str, Path], values: dict[str, Any], field: str, detail: str
) -> None:
    with pytest.raises(InvalidClinical) as refusal:
        client.predict(ncct=patient["ncct"], clinical=own(**values))
    (error,) = refusal.value.errors
    assert error.field == field
    assert error.detail.startswith(detail)
    assert "Jane" not in str(refusal.value)


def test_record_of_a_study_is_checked_when_it_is_stored(client: Client) -> None:
    with pytest.raises(InvalidClinical, match="ddimer, pacemaker, leukoaraiosis"):
        client.studies.set_clinical("1.2.3.4", own(dimer=5))
    assert client.studies.set_clinical("1.2.3.4", own(ddimer=5)).clinical


def test_version_without_the_variable_says_that_it_is_not_used(client: Client, patient: dict[str, Path]) -> None:
    sent = {"ncct": patient["ncct"], "clinical": own(ddimer=2400.5), "model": "rlvo-synthetic-lr@1.0.0"}
    found = client.predict(**sent)  # type: ignore[arg-type]
    (unused,) = [flag.detail for flag in found.flags if flag.code == "not-used"]
    assert "own.ddimer" in unused
    with pytest.raises(InvalidClinical, match="own variables: none"):
        client.predict(ncct=patient["ncct"], clinical=own(dimer=5), model="rlvo-synthetic-lr@1.0.0")


def test_report_names_the_variables_and_the_command_sends_them(
    service: RunningService, client: Client, answer: Prediction, patient: dict[str, Path], tmp_path: Path
) -> None:
    service.wait_for_figures(answer.id)
    assert "D-dimer" in client.report(answer.id, tmp_path / "report.html").read_text()
    document = tmp_path / "clinical.json"
    document.write_text(json.dumps(own(ddimer=2400.5, pacemaker=True)))
    command = ["predict", "--ncct", str(patient["ncct"]), "--clinical", str(document), "--url", service.url]
    said = service.rlvo(*command)
    assert said.returncode == 0, said.stderr
    assert "D-dimer" in said.stdout


def test_form_shows_the_variables_of_the_chosen_version(service: RunningService, browser: Chrome) -> None:
    browser.get(service.url)
    wait = WebDriverWait(browser, 60)
    field = wait.until(lambda page: page.find_element(By.CSS_SELECTOR, "[data-name='own.ddimer']"))
    section = browser.find_element(By.CSS_SELECTOR, "[data-part='Laboratory']")
    assert "D-dimer (ng/mL)" in section.text
    assert "White matter disease" in browser.find_element(By.CSS_SELECTOR, "[data-part='Other']").text
    field.send_keys("2400.5")
    Select(browser.find_element(By.CSS_SELECTOR, "[data-name='own.pacemaker']")).select_by_value("true")
    written = json.loads(browser.find_element(By.ID, "json").get_attribute("value"))
    assert written == {"own": {"ddimer": 2400.5, "pacemaker": True}}
    assert "D-dimer: 2400.5 ng/mL" in browser.find_element(By.ID, "review-values").text
    model = Select(browser.find_element(By.ID, "model"))
    model.select_by_value("rlvo-synthetic-lr@1.0.0")
    wait.until(lambda page: not page.find_elements(By.CSS_SELECTOR, "[data-field^='own.']"))
    assert not browser.find_elements(By.CSS_SELECTOR, "[data-part='Other']")
    assert "not read by this model" in browser.find_element(By.ID, "review-values").text
    browser.find_element(By.CSS_SELECTOR, "[data-name='age']").send_keys("74")
    written = json.loads(browser.find_element(By.ID, "json").get_attribute("value"))
    assert written == {"age": 74, "own": {"ddimer": 2400.5, "pacemaker": True}}
    model.select_by_value("mine@1.0.0")
    again = wait.until(lambda page: page.find_element(By.CSS_SELECTOR, "[data-name='own.ddimer']"))
    assert again.get_attribute("value") == "2400.5"
    again.clear()
    again.send_keys("100001")
    assert "The largest possible value is 100000 ng/mL." in section.text


def test_page_of_the_answer_shows_label_and_unit(service: RunningService, browser: Chrome, answer: Prediction) -> None:
    browser.get(f"{service.url}/predictions/{answer.id}")
    WebDriverWait(browser, 60).until(lambda page: "D-dimer: 2401 ng/mL" in page.find_element(By.ID, "reasons").text)
