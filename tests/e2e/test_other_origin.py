"""A real browser with a page of another web site, against a service without keys."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from app.registry.model_store import ModelStore
from tests.factory import tiny_version

from .conftest import open_chromium
from .service_process import RunningService, eventually

pytestmark = pytest.mark.xdist_group("e2e")

EVIL = "evil.example"
CHAMPION = "/v1/models/tiny/aliases/champion"
CANCEL = "/v1/predictions/01900000-0000-7000-8000-000000000000/cancel"
FORM = """<form id="form" method="post" enctype="%s" action="%s"><input name="model" value="tiny"></form>
<script>document.getElementById("form").submit()</script>"""
FETCH = """
const [path, options, done] = arguments;
fetch(path, options).then((answer) => done([answer.type, answer.status]), (error) => done([error.name, 0]));
"""


class AttackerPage(BaseHTTPRequestHandler):
    """Answers each request with the page of the server."""

    page = b"<!doctype html><title>A page</title>"

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(self.page)))
        self.end_headers()
        self.wfile.write(self.page)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def attacker() -> Iterator[int]:
    """Port of a web server on this machine, which has the pages of ``evil.example``."""
    with ThreadingHTTPServer(("127.0.0.1", 0), AttackerPage) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def keyless(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    """A service on loopback without keys, whose champion could be rolled back."""
    folder = tmp_path_factory.mktemp("keyless")
    for seed, version in enumerate(("1.0.0", "1.1.0")):
        tiny_version(folder / "store", version=version, seed=seed)
        ModelStore(folder / "store").set_alias("tiny", "champion", version)
    service = RunningService(folder, folder / "store", "tiny")
    service.start()
    yield service
    assert service.stop() == 0, service.log()


@pytest.fixture(scope="module")
def chrome(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    """A browser whose name server has the attacker's name at this machine, as after DNS rebinding."""
    with open_chromium(tmp_path_factory.mktemp("chromium"), f"MAP {EVIL} 127.0.0.1") as chrome:
        yield chrome


def fetch(chrome: Chrome, path: str, **options: Any) -> list[Any]:
    """Type and status of the response to a `fetch` of the open page."""
    answer: list[Any] = chrome.execute_async_script(FETCH, path, options)
    return answer


def unchanged(service: RunningService) -> bool:
    with service.client() as client:
        return client.registry.alias("tiny").version == "1.1.0" and not list(client.list())


@pytest.mark.parametrize("name", [EVIL, "127.0.0.1"])
@pytest.mark.parametrize("encoding", ["application/x-www-form-urlencoded", "multipart/form-data", "text/plain"])
@pytest.mark.parametrize("path", [f"{CHAMPION}/rollback", "/v1/predictions", CANCEL])
def test_form_of_another_site_changes_nothing(
    keyless: RunningService, chrome: Chrome, attacker: int, name: str, encoding: str, path: str
) -> None:
    AttackerPage.page = b"<!doctype html>" + (FORM % (encoding, keyless.url + path)).encode()
    chrome.get(f"http://{name}:{attacker}/")
    WebDriverWait(chrome, 30).until(lambda page: "trace_id" in page.page_source)
    assert "cross-origin" in chrome.page_source
    assert unchanged(keyless)


def test_script_of_another_site_changes_and_reads_nothing(
    keyless: RunningService, chrome: Chrome, attacker: int
) -> None:
    AttackerPage.page = b"<!doctype html><title>A page</title>"
    chrome.get(f"http://{EVIL}:{attacker}/")
    simple = {"mode": "no-cors", "headers": {"Content-Type": "text/plain"}}
    before, hidden = keyless.requests(403), ["TypeError", 0]  # the browser sends the request and hides the response
    assert fetch(chrome, f"{keyless.url}{CHAMPION}/rollback", method="POST", **simple) == hidden
    assert fetch(chrome, f"{keyless.url}/v1/predictions", method="POST", body="x", **simple) == hidden
    assert fetch(chrome, f"{keyless.url}/v1/predictions", mode="no-cors") == hidden
    # The service writes the line of a request after its answer was sent, so the browser can be ahead of the log.
    eventually(lambda: keyless.requests(403) >= before + 3, "the log has a line of each request")
    assert keyless.requests(403) == before + 3
    for method in ("GET", "POST", "PUT", "DELETE"):
        assert fetch(chrome, f"{keyless.url}{CHAMPION}", method=method) == hidden
    assert unchanged(keyless)


def test_name_that_leads_to_this_machine_reads_nothing(keyless: RunningService, chrome: Chrome) -> None:
    """DNS rebinding: for the browser, page and service have the same origin."""
    chrome.get(f"http://{EVIL}:{keyless.port}/livez")
    for method, path in (("GET", "/v1/predictions"), ("POST", f"{CHAMPION}/rollback"), ("POST", CANCEL)):
        assert fetch(chrome, path, method=method) == ["basic", 401]
    assert unchanged(keyless)


def test_own_page_and_link_of_another_site_work(keyless: RunningService, chrome: Chrome, attacker: int) -> None:
    AttackerPage.page = f'<!doctype html><a id="link" href="{keyless.url}/v1/models">models</a>'.encode()
    chrome.get(f"http://{EVIL}:{attacker}/")
    chrome.find_element(By.ID, "link").click()
    WebDriverWait(chrome, 30).until(lambda page: "1.1.0" in page.page_source)
    chrome.get(keyless.url)
    assert fetch(chrome, "/v1/predictions") == ["basic", 200]
    assert fetch(chrome, CANCEL, method="POST") == ["basic", 404]
    form = """const form = document.createElement("form");
    [form.method, form.action] = ["post", arguments[0]];
    document.body.append(form);
    form.submit();"""
    chrome.execute_script(form, f"{CHAMPION}/rollback")
    WebDriverWait(chrome, 30).until(lambda page: "precondition-required" in page.page_source)
    assert unchanged(keyless)
