"""Canary test of a silent trial: a sealed number appears nowhere, while an open one is found everywhere it belongs.

The service answers one study openly, then a trial starts and seals another one. Every way out is searched for both
numbers: routes of the OpenAPI document, pages, log, metrics, messages, events, command line, files and tables.
"""

from __future__ import annotations

import gzip
import json
import math
import re
import sqlite3
import struct
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from selenium.webdriver import Chrome

from app.core import two_key_sealing
from app.registry.model_store import ModelStore
from app.sdk import Prediction, RlvoError, Status
from tests.evaluation.test_trial_protocol import EXAMPLE
from tests.factory import tiny_version
from tests.receiver import Receiver, receiving

from .service_process import RunningService, eventually

pytestmark = [pytest.mark.xdist_group("e2e"), pytest.mark.timeout(1200)]

TRIAL = "silent-test"
VALUES = {"name": "{model}", "version": "2.0.0", "alias": "champion", "uid": "1.2.3", "kind": "png"}
"""Values of path parameters; ``id`` is the prediction, and ``name`` depends on the route."""
NAMES = {"inputs": "cta", "maps": "attribution-cta", "figures": "waterfall", "models": "tiny"}
SEALED_PARTS = ("alignment.json", "maps", "figures", "report.html", "fhir", "cds-hooks", "dicom")


@dataclass
class Silent:
    """The service with an open and a sealed prediction, and what the two key holders read."""

    service: RunningService
    receiver: Receiver
    open: Prediction
    sealed: Prediction
    folder: Path
    answer: dict[str, Any] = field(default_factory=dict)
    events: str = ""


def needles(values: list[float]) -> tuple[re.Pattern[str], list[bytes]]:
    """The first digits of each number, as fraction and percent, and its bytes as binary floats."""
    texts = [text for value in values for text in (f"{value:.12f}"[:8], f"{100 * value:.12f}"[:7])]
    raw = [struct.pack(code, value) for value in values for code in ("<d", ">d", "<f", ">f")]
    return re.compile("|".join(re.escape(text) for text in texts)), raw


def of_answer(answer: dict[str, Any]) -> tuple[re.Pattern[str], list[bytes]]:
    """Needles of all numbers of an answer: probability, its log-odds, interval and folds."""
    probability = answer["probability"]
    ends = [answer["interval"][end] for end in ("low", "high")]
    return needles([probability, math.log(probability / (1 - probability)), *ends, *answer["folds"]])


def found(content: bytes, text: re.Pattern[str], raw: list[bytes]) -> bool:
    """Whether any number occurs in the bytes, or in what they decompress to."""
    if content[:2] == b"\x1f\x8b":
        content += gzip.decompress(content)
    return bool(text.search(content.decode("latin-1"))) or any(each in content for each in raw)


@pytest.fixture(scope="module")
def silent(tmp_path_factory: pytest.TempPathFactory, study: dict[str, Any]) -> Iterator[Silent]:
    folder, store = tmp_path_factory.mktemp("silent"), tmp_path_factory.mktemp("store")
    for version, seed in (("2.0.0", 5), ("1.0.0", 0)):  # the last one is the champion
        tiny_version(store, version=version, seed=seed)
    ModelStore(store).set_alias("tiny", "shadow", "2.0.0")
    service = RunningService(folder, store, "tiny", patience=400)  # a busy machine
    with receiving(204) as receiver:
        service.environment |= {
            "RLVO_LOG_FORMAT": "json",
            "RLVO_LOG_LEVEL": "debug",
            "RLVO_WEBHOOK_HOSTS": f"http://127.0.0.1:{receiver.port}",
        }
        assert service.rlvo("webhooks", "add", receiver.url, "--tenant", "local").returncode == 0
        try:
            service.start()
            yield run_trial(service, receiver, folder, study)
        finally:
            assert service.stop() == 0


def run_trial(service: RunningService, receiver: Receiver, folder: Path, study: dict[str, Any]) -> Silent:
    """Answer one study openly, start the trial, and seal another study."""
    with service.client() as client:
        opened = client.predict(**study, subject="S-open", model="tiny@2.0.0")
        service.wait_for_figures(opened.id)
        opened = client.get(opened.id)
        begin_trial(service, folder)
        clinical = study["clinical"] | {"age": 41, "nihss": 5}
        sealed = client.predict(**(study | {"clinical": clinical}), subject="S-sealed")
    result = Silent(service, receiver, opened, sealed, folder)
    result.answer = open_answer(result)
    eventually(lambda: len(receiver.bodies) >= 2, "messages of both predictions")
    return result


def begin_trial(service: RunningService, folder: Path) -> None:
    """Make two keys outside of the data folder, and start the trial."""
    keys = folder.parent / f"{folder.name}-keys"
    keys.mkdir()
    document = tomllib.loads(EXAMPLE.read_text(encoding="utf-8"))
    text = EXAMPLE.read_text(encoding="utf-8").replace("silent-2027", TRIAL).replace("rlvo-synthetic", "tiny")
    text = text.replace('["stroke-a", "stroke-b"]', '["local"]')
    for holder in document["holders"]:
        made = service.rlvo("trial", "key", str(keys / f"{holder['name']}.key"))
        assert made.returncode == 0, made.stderr
        text = text.replace(holder["public_key"], made.stdout.strip())
    (keys / "protocol.toml").write_text(text, encoding="utf-8")
    for options in (["--check"], []):
        created = service.rlvo("trial", "create", str(keys / "protocol.toml"), *options)
        assert created.returncode == 0, created.stderr
    assert not created.stderr, created.stderr


def open_answer(silent: Silent) -> dict[str, Any]:
    """What the two holders read: the output of `predict`."""
    folder = silent.folder.parent / f"{silent.folder.name}-keys"
    keys = [two_key_sealing.read_private(path) for path in sorted(folder.glob("*.key"))]
    ((sealed, hash_, document),) = silent.service.query(
        "SELECT e.sealed, t.hash, t.protocol FROM trial_entries e JOIN trials t ON t.name = e.trial "
        "WHERE e.prediction_id = ?",
        silent.sealed.id,
    )
    holders = [holder["public_key"] for holder in json.loads(document)["holders"]]
    context = f"{TRIAL}:{hash_}:{silent.sealed.id}"
    return dict(json.loads(two_key_sealing.open_sealed(sealed, holders, keys, context)))


def addresses(silent: Silent, prediction: Prediction) -> Iterator[str]:
    """Every GET route of the OpenAPI document, and what the document does not list."""
    document = httpx.get(f"{silent.service.url}/openapi.json", timeout=60).json()
    for path, methods in document["paths"].items():
        if "get" in methods:
            parts = path.split("/")
            name = next((NAMES[part] for part in parts if part in NAMES), "tiny")
            values = VALUES | {"id": prediction.id, "name": name}
            yield re.sub(r"\{(\w+)\}", lambda match, values=values: values[match[1]], path)  # a new parameter: KeyError
    base = f"/v1/predictions/{prediction.id}"
    subject = prediction.subject
    yield from (
        *(
            "/",
            "/docs",
            "/openapi.json",
            f"/predictions/{prediction.id}",
            f"{base}?wait=1",
            f"{base}/fhir?fhirVersion=5.0",
        ),
        *(f"{base}/figures/{name}.svg" for name in ("waterfall", "position", "overlay-cta", "overlay-ncct")),
        *(f"{base}/maps/{name}.nii.gz" for name in ("attribution-ncct", "aligned-cta", "aligned-attribution-cta")),
        *(f"{base}/dicom?kind={kind}" for kind in ("report", "document")),
        *(f"/v1/predictions?subject={subject}", f"/v1/predictions?sort=-probability&subject={subject}"),
        *("/v2/models/tiny", "/v2/models/tiny/versions/2.0.0"),
    )


def hits(silent: Silent, prediction: Prediction, answer: dict[str, Any]) -> tuple[dict[str, int], set[str]]:
    """Status of every address, and the addresses whose response has a number of the answer."""
    text, raw = of_answer(answer)
    statuses, containing = {}, set()
    with httpx.Client(base_url=silent.service.url, timeout=60) as client:
        for address in addresses(silent, prediction):
            for accept in ("*/*", "application/fhir+json"):
                response = client.get(address, headers={"Accept": accept})
                statuses.setdefault(address, response.status_code)
                if found(response.content, text, raw) or found(str(response.headers).encode(), text, raw):
                    containing.add(address)
    return statuses, containing


def test_sealed_prediction_says_so_and_nothing_else(silent: Silent) -> None:
    sealed = silent.sealed
    assert (sealed.status, sealed.sealed, sealed.model.version) == (Status.SUCCEEDED, TRIAL, "2.0.0")
    assert sealed.summary == f"Sealed: silent trial {TRIAL}."
    empty = (sealed.probability, sealed.interval, sealed.folds, sealed.decision, sealed.attribution, sealed.perfusion)
    assert empty == (None,) * 6
    assert (sealed.figures, sealed.headline, sealed.deliveries, sealed.withheld) == (None, None, None, [])
    assert silent.answer["probability"] not in (None, silent.open.probability)
    assert {flag.code for flag in sealed.flags} <= {flag["code"] for flag in silent.answer["flags"]}


def test_no_route_and_no_page_has_a_sealed_number(silent: Silent) -> None:
    opened = silent.open.model_dump(mode="json")
    base = f"/v1/predictions/{silent.open.id}"
    statuses, containing = hits(silent, silent.open, opened)
    belongs = {base, f"{base}/fhir", f"{base}/cds-hooks", f"{base}/report.html", "/v1/predictions"}
    assert belongs - {f"{base}/cds-hooks", f"{base}/report.html"} <= containing  # the search finds what is there
    base = f"/v1/predictions/{silent.sealed.id}"
    statuses, containing = hits(silent, silent.sealed, silent.answer)
    assert containing == set()
    assert statuses[base] == statuses["/v1/predictions"] == statuses[f"/predictions/{silent.sealed.id}"] == 200
    for address, status in statuses.items():
        if address.startswith(tuple(f"{base}/{part}" for part in SEALED_PARTS)):
            assert status == 409, address


def test_refusals_are_problems_that_name_the_trial(silent: Silent) -> None:
    base = f"{silent.service.url}/v1/predictions/{silent.sealed.id}"
    refused = [
        httpx.get(f"{base}/fhir", timeout=60),
        httpx.get(f"{base}/report.html", timeout=60),
        httpx.post(f"{base}/reviews", json={"verdict": "agree", "reviewer": "R-1"}, timeout=60),
        httpx.post(f"{silent.service.url}/v2/models/tiny/infer", content=b"{}", timeout=60),
        httpx.post(f"{silent.service.url}/v2/models/tiny/versions/2.0.0/infer", content=b"{}", timeout=60),
    ]
    for response in refused:
        assert response.status_code == 409, response.text
        assert response.json()["code"] == "sealed"
        assert TRIAL in response.json()["detail"]


def test_cds_hook_has_a_card_of_the_open_prediction_only(silent: Silent) -> None:
    def cards(subject: str) -> list[Any]:
        body = {"hook": "patient-view", "hookInstance": "d1577c69-dfbe-44ad-ba6d-3e05e953b2ea"}
        body |= {"context": {"userId": "Practitioner/1", "patientId": subject}}
        response = httpx.post(f"{silent.service.url}/cds-services/rlvo-patient-view", json=body, timeout=60)
        assert response.status_code == 200, response.text
        return list(response.json()["cards"])

    assert len(cards("S-open")) == 1
    assert cards("S-sealed") == []


def test_site_gets_no_other_version_while_the_trial_runs(silent: Silent, study: dict[str, Any]) -> None:
    with silent.service.client() as client, pytest.raises(RlvoError) as refused:
        client.predict(**study, model="tiny@1.0.0")
    assert refused.value.code == "sealed"
    with silent.service.client() as client:
        for reference in ("tiny", "tiny@champion", "tiny@2.0.0"):
            answered = client.predict(**study, model=reference, subject="S-again")
            assert (answered.sealed, answered.model.version, answered.probability) == (TRIAL, "2.0.0", None)


def test_messages_and_events_have_no_number(silent: Silent) -> None:
    text, raw = of_answer(silent.answer)
    assert any(silent.sealed.id in str(body) for body in silent.receiver.bodies)
    assert not found(str((silent.receiver.bodies, silent.receiver.headers)).encode(), text, raw)
    with httpx.stream("GET", f"{silent.service.url}/v1/predictions/{silent.sealed.id}/events", timeout=30) as stream:
        events = b"".join(stream.iter_bytes())
    assert b"succeeded" in events
    assert not found(events, text, raw)


def test_outcome_is_entered_without_sight_of_the_answer(silent: Silent) -> None:
    text, raw = of_answer(silent.answer)
    address = f"{silent.service.url}/v1/predictions/{silent.sealed.id}/outcome"
    draft = {"etici": "2a", "rescue_treatment": False}
    first = httpx.put(address, json=draft, timeout=60)
    corrected = httpx.put(
        address, json=draft | {"rescue_treatment": True}, headers={"If-Match": first.headers["ETag"]}, timeout=60
    )
    for response in (first, corrected, httpx.get(address, timeout=60)):
        assert response.status_code == 200, response.text
        assert not found(response.content, text, raw)
    ((entered, changes),) = silent.service.query(
        "SELECT outcome_entered, outcome_changes FROM trial_entries WHERE prediction_id = ?", silent.sealed.id
    )
    assert (entered is not None, changes) == (True, 1)
    details = silent.service.query(
        "SELECT detail FROM audit WHERE action = 'prediction.outcome' AND target = ?", silent.sealed.id
    )
    assert [json.loads(detail) for (detail,) in details] == [
        {"correction": False, "trial": TRIAL},
        {"correction": True, "trial": TRIAL},
    ]


COMMANDS = (
    ["trial", "status"],
    ["trial", "status", TRIAL],
    ["replay", "{id}"],
    ["monitor", "tiny@2.0.0"],
    ["models", "shadow", "tiny"],
    ["compare", "tiny@2.0.0", "tiny@1.0.0"],
    ["audit", "verify"],
    ["fsck", "--deep"],
    ["subjects", "export", "{subject}", "--to", "{folder}/{subject}.zip"],
)


def test_no_command_prints_a_sealed_number(silent: Silent, tmp_path: Path) -> None:
    for prediction, answer in ((silent.open, silent.open.model_dump(mode="json")), (silent.sealed, silent.answer)):
        text, raw = of_answer(answer)
        values = {"id": prediction.id, "subject": str(prediction.subject), "folder": str(tmp_path)}
        said = {}
        for command in COMMANDS:
            done = silent.service.rlvo(*(word.format(**values) for word in command))
            assert "Traceback" not in done.stderr, command
            said[command[0]] = done.stdout + done.stderr
        containing = {name for name, each in said.items() if found(each.encode(), text, raw)}
        content = b"".join(_members(tmp_path / f"{prediction.subject}.zip"))
        if prediction is silent.open:
            assert "replay" in containing
            assert found(content, text, raw)
        else:
            assert containing == set()
            assert not found(content, text, raw)
            assert "seals the answer" in said["replay"]
            assert prediction.id.encode() in content
            assert TRIAL.encode() in content


def _members(path: Path) -> Iterator[bytes]:
    import zipfile

    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            yield archive.read(name)


def test_no_file_and_no_row_has_a_sealed_number(silent: Silent) -> None:
    """Database, blobs, scratch folder and log; a backup of the data folder is a copy of them."""
    open_text, open_raw = of_answer(silent.open.model_dump(mode="json"))
    text, raw = of_answer(silent.answer)
    files = silent.service.contents()
    assert any(found(content, open_text, open_raw) for path, content in files.items() if "blobs" in path.parts)
    assert found(files[silent.folder / "rlvo.sqlite"], open_text, open_raw)
    for path, content in files.items():
        assert not found(content, text, raw), path
    tables = [name for (name,) in silent.service.query("SELECT name FROM sqlite_master WHERE type = 'table'")]
    assert {"trials", "trial_entries", "trial_looks", "shadow_scores"} <= set(tables)
    rows = {table: str(silent.service.query(f"SELECT * FROM {table}")) for table in tables}
    assert open_text.search(rows["predictions"])
    for table, each in rows.items():
        assert not text.search(each), table
    scores = silent.service.query("SELECT 1 FROM shadow_scores WHERE prediction_id = ?", silent.sealed.id)
    assert scores == []
    named = silent.service.query("SELECT name FROM artifacts WHERE prediction_id = ?", silent.sealed.id)
    assert {name for (name,) in named} == {"inputs/ncct.nii", "inputs/cta.nii"}
    with sqlite3.connect(":memory:") as copy, sqlite3.connect(silent.folder / "rlvo.sqlite") as source:
        source.backup(copy)
        assert not text.search("\n".join(copy.iterdump()))


def test_log_and_metrics_have_no_number(silent: Silent) -> None:
    text, raw = of_answer(silent.answer)
    log = (silent.folder / "log").read_bytes()
    assert silent.sealed.id.encode() in log
    metrics = httpx.get(f"{silent.service.url}/metrics", timeout=60).content
    assert b'rlvo_predictions_total{status="succeeded"}' in metrics
    for content in (log, metrics):
        assert not found(content, text, raw)


def test_page_shows_that_the_answer_is_sealed(silent: Silent, chromium: Chrome) -> None:
    text, _ = of_answer(silent.answer)
    chromium.set_script_timeout(300)  # the viewer draws without a graphics card
    chromium.get(f"{silent.service.url}/predictions/{silent.sealed.id}")
    eventually(lambda: chromium.execute_script("return document.body.dataset.shown") == "succeeded", "page is shown")
    shown = chromium.execute_script("return document.body.innerText")
    assert f"Sealed: silent trial {TRIAL}." in shown
    assert "not shown to anyone at the site" in shown
    assert not text.search(chromium.page_source)
    assert "%" not in chromium.execute_script("return document.getElementById('result').innerText")
    assert "Probability" not in shown
    chromium.get(f"{silent.service.url}/")
    eventually(lambda: "S-sealed" in chromium.execute_script("return document.body.innerText"), "list is shown")
    assert not text.search(chromium.page_source)


def test_every_step_is_in_the_audit(silent: Silent) -> None:
    ((created,),) = silent.service.query("SELECT detail FROM audit WHERE action = 'trial.create'")
    ((hash_,),) = silent.service.query("SELECT hash FROM trials")
    assert json.loads(created)["hash"] == hash_
    for action in ("prediction.submit", "prediction.succeeded"):
        ((detail,),) = silent.service.query(
            "SELECT detail FROM audit WHERE action = ? AND target = ?", action, silent.sealed.id
        )
        assert json.loads(detail)["trial"] == TRIAL


def test_trial_ends_with_its_stop_and_stays_sealed(silent: Silent, study: dict[str, Any]) -> None:
    """The last test of the trial."""
    keys = silent.folder.parent / f"{silent.folder.name}-keys"
    both = [word for path in sorted(keys.glob("*.key")) for word in ("--key", str(path))]
    early = silent.service.rlvo("trial", "report", TRIAL, *both)
    assert (early.returncode, early.stdout) == (2, "")
    assert "next planned look is at 100 patients" in early.stderr
    one = silent.service.rlvo("trial", "report", TRIAL, *both[:2])
    assert (one.returncode, one.stdout) == (2, "")
    assert "two different holders" in one.stderr
    assert len(silent.service.query("SELECT 1 FROM audit WHERE action = 'trial.keys-refused'")) == 1
    stopped = silent.service.rlvo("trial", "stop", TRIAL, "--reason", "test")
    assert stopped.returncode == 0, stopped.stderr
    with silent.service.client() as client:
        assert client.predict(**study).probability is not None
        assert client.get(silent.sealed.id).probability is None
