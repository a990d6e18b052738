"""The list of predictions with its filters and order, and the people who use it: by a key each, or by a login."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import NamedTuple

import pytest
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import Select, WebDriverWait

from app.database import api_keys, followup
from app.database.tables import PredictionRow
from app.sdk.followup import ReviewDraft, ReviewReason, Verdict
from tests.api.server import Server, started
from tests.database.rows import add_prediction, finish
from tests.factory import tiny_version

from .accessibility import serious_findings
from .identity_provider import CLIENT, Provider, run_provider
from .test_page import visible

pytestmark = pytest.mark.xdist_group("e2e")

SUBJECTS = {"ward-1": 0.3, "ward-2": 0.8, "clinic-3": 0.1, "ward-4": None}
"""Probability by subject, oldest first; the last study is queued."""


class Site(NamedTuple):
    server: Server
    provider: Provider
    ids: dict[str, str]
    key: str


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A service without a worker that accepts keys and the tokens of a provider, and some predictions of one tenant."""
    folder = tmp_path_factory.mktemp("site")
    tiny_version(folder / "models")
    (folder / "data").mkdir()
    with run_provider() as provider:
        login = {"oidc_issuer": provider.url, "oidc_client_id": CLIENT, "oidc_name_claim": "preferred_username"}
        with started(folder / "data", folder / "models", **login) as server:
            database = server.database()
            ids = {}
            for subject, probability in SUBJECTS.items():
                new = add_prediction(database, subject=subject, caller="ward")
                ids[subject] = new.id
                if probability is not None:
                    finish(database, new)
                    with database.session() as session:
                        session.get_one(PredictionRow, new.id).probability = probability
            with database.session() as session:
                key = api_keys.create(session, "dr-bo", tenant="ward")
                draft = ReviewDraft(reviewer="R-9", verdict=Verdict.OVERRIDE, reason=ReviewReason.OTHER)
                followup.add_review(session, ids["clinic-3"], "ward", draft, "pacs")
            database.close()
            yield Site(server, provider, ids, key)


@pytest.fixture
def page(chromium: Chrome, site: Site) -> Iterator[Chrome]:
    """The browser at the start page, without a key."""
    chromium.get(f"{site.server.url}/static/icon.svg")
    chromium.execute_script("sessionStorage.clear()")
    chromium.get(site.server.url)
    yield chromium
    chromium.execute_script("sessionStorage.clear()")
    chromium.get("about:blank")  # the page asks its service again and again


def rows(page: Chrome) -> list[list[str]]:
    """The texts of all cells, read at one moment: the list replaces its rows."""
    cells: list[list[str]] = page.execute_script(
        "return [...document.querySelectorAll('#recent tr')].map((row) => [...row.cells].map((cell) => cell.innerText))"
    )
    return cells


def wait_for_text(page: Chrome, selector: str, text: str) -> None:
    script = "return document.querySelector(arguments[0])?.innerText || ''"
    WebDriverWait(page, 60).until(lambda page: text in page.execute_script(script, selector), f"{text} in {selector}")


def wait_for_subjects(page: Chrome, *subjects: str) -> None:
    WebDriverWait(page, 60).until(lambda page: [row[1] for row in rows(page) if len(row) > 1] == list(subjects))


def use_key(page: Chrome, key: str) -> None:
    page.execute_script("sessionStorage.setItem('rlvo-key', arguments[0])", key)
    page.refresh()
    wait_for_subjects(page, "ward-4", "clinic-3", "ward-2", "ward-1")


def test_list_is_filtered_and_sorted(page: Chrome, site: Site) -> None:
    use_key(page, site.key)
    newest = rows(page)
    assert [row[5] for row in newest] == ["", "10\u00a0%", "80\u00a0%", "30\u00a0%"]
    assert [row[7] for row in newest] == ["", "R-9: overrides", "", ""]
    assert newest[0][4] == "queued"
    subject = visible(page, "[name=subject_contains]")
    subject.send_keys("WARD")
    wait_for_subjects(page, "ward-4", "ward-2", "ward-1")
    head = visible(page, "[data-sort=probability]")
    head.click()
    wait_for_subjects(page, "ward-2", "ward-1", "ward-4")  # a study without a result is last
    assert page.execute_script("return arguments[0].closest('th').ariaSort", head) == "descending"
    head.click()
    wait_for_subjects(page, "ward-1", "ward-2", "ward-4")
    assert Select(visible(page, "[name=sort]")).first_selected_option.text == "lowest probability first"
    Select(visible(page, "[name=status]")).select_by_visible_text("succeeded")
    wait_for_subjects(page, "ward-1", "ward-2")
    subject.clear()
    Select(visible(page, "[name=reviewed]")).select_by_visible_text("with a review")
    wait_for_subjects(page, "clinic-3")
    Select(visible(page, "[name=status]")).select_by_visible_text("failed")
    wait_for_text(page, "#recent", "No prediction matches")
    assert serious_findings(page) == []


def review(page: Chrome, site: Site, subject: str) -> str:
    """Agree with a decision on its page; return the line of the review."""
    page.get(f"{site.server.url}/predictions/{site.ids[subject]}")
    visible(page, "#review [value=agree]").click()
    wait_for_text(page, "#review", "Your review is recorded as")  # from here on the page sends the form
    assert not page.find_elements(By.CSS_SELECTOR, "[name=reviewer]")
    visible(page, "#review button").click()
    wait_for_text(page, "#review-said", "Saved")
    return page.find_elements(By.CSS_SELECTOR, "#reviews li")[-1].text


def test_review_by_a_key_has_its_name(page: Chrome, site: Site) -> None:
    field = visible(page, "#key")
    field.send_keys("rlvo_wrong\n")
    wait_for_text(page, "#list-problem", "Send a valid API key")
    visible(page, "#key").clear()
    visible(page, "#key").send_keys(f"{site.key}\n")
    wait_for_subjects(page, "ward-4", "clinic-3", "ward-2", "ward-1")
    wait_for_text(page, "#who", "Signed in as dr-bo")
    assert not page.find_element(By.ID, "key").is_displayed()
    assert "Agrees · dr-bo · " in review(page, site, "ward-1")
    database = site.server.database()
    with database.reading() as session:
        (stored,) = followup.reviews(session, site.ids["ward-1"], "ward")
    database.close()
    assert (stored.reviewer, stored.author) == ("dr-bo", "dr-bo")


def test_person_logs_in_at_the_provider_and_reviews(page: Chrome, site: Site) -> None:
    site.provider.grants.clear()
    began = f"{site.server.url}/predictions/{site.ids['ward-2']}"
    page.get(began)
    visible(page, "#who button").click()
    wait_for_text(page, "#who", "Signed in as dr-ana")  # of the start page or already of the next one
    WebDriverWait(page, 60).until(lambda page: page.current_url == began, "the page where the login began")
    wait_for_text(page, "#who", "Signed in as dr-ana")
    assert site.provider.grants == ["authorization_code"]
    assert "Agrees · dr-ana · " in review(page, site, "ward-2")
    page.execute_script(  # the token ends soon
        "const kept = JSON.parse(sessionStorage.getItem('rlvo-login')); kept.expires = 0;"
        "sessionStorage.setItem('rlvo-login', JSON.stringify(kept));"
    )
    page.get(site.server.url)
    wait_for_subjects(page, "ward-4", "clinic-3", "ward-2", "ward-1")
    assert site.provider.grants == ["authorization_code", "refresh_token"]
    assert rows(page)[2][7] == "dr-ana: agrees"
    visible(page, "#who button").click()
    wait_for_text(page, "#who", "Log in")
    assert page.execute_script("return sessionStorage.length") == 0


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ("code=stolen&state=other", "belongs to another login"),
        ("code=stolen&state=mine", "gives no token"),
        ("code=stolen&state=mine&iss=https://evil.example", "names another issuer"),
        ("error=access_denied&state=mine", "access_denied"),
    ],
)
def test_answer_that_the_page_did_not_ask_for_signs_no_one_in(page: Chrome, site: Site, answer: str, said: str) -> None:
    asked = {"state": "mine", "verifier": "v" * 43, "token_endpoint": f"{site.provider.url}/token", "from": "/"}
    page.execute_script("sessionStorage.setItem('rlvo-login-pending', arguments[0])", json.dumps(asked))
    page.get(f"{site.server.url}/?{answer}")
    wait_for_text(page, ".login-problem", said)
    assert page.execute_script("return sessionStorage.getItem('rlvo-key')") is None
    assert page.current_url == f"{site.server.url}/"


def test_focus_stays_in_its_row_while_the_list_changes(page: Chrome, site: Site) -> None:
    """A new study comes before the row with the focus, and then that row has another text."""
    database = site.server.database()
    try:
        with database.session() as session:
            key = api_keys.create(session, "dr-eve", tenant="focus")
        chosen = add_prediction(database, subject="chosen", caller="focus")
        page.execute_script("sessionStorage.setItem('rlvo-key', arguments[0])", key)
        page.refresh()
        wait_for_subjects(page, "chosen")
        page.execute_script(
            "const link = document.querySelector('#recent a'); link.focus(); getSelection().selectAllChildren(link)"
        )
        selected = page.execute_script("return String(getSelection())")
        add_prediction(database, subject="newer", caller="focus")
        wait_for_subjects(page, "newer", "chosen")
        assert (page.switch_to.active_element.get_attribute("href") or "").endswith(chosen.id)
        assert page.execute_script("return String(getSelection())") == selected != ""
        finish(database, chosen)
        WebDriverWait(page, 60).until(lambda page: rows(page)[1][4] == "succeeded")
        assert (page.switch_to.active_element.get_attribute("href") or "").endswith(chosen.id)
    finally:
        database.close()


def test_opened_part_of_a_changed_row_keeps_the_focus(page: Chrome) -> None:
    """As in the list of received studies, whose rows can be opened."""
    left = page.execute_async_script(
        "const [site, done] = arguments; import(`${site}/static/js/rows.js`).then(({ redraw }) => {"
        "  const table = document.createElement('table'), body = table.createTBody(); document.body.append(table);"
        "  const row = (id, text, open) => { const made = document.createElement('tr'); made.dataset.id = id;"
        "    made.innerHTML = `<td>${text}</td><td><details><summary>3 series</summary></details></td>`;"
        "    made.querySelector('details').open = open; return made; };"
        "  redraw(body, [row('a', 'x', false), row('b', 'x', true)]);"
        "  const [kept, changed] = body.children; changed.querySelector('summary').focus();"
        "  redraw(body, [row('c', 'x', false), row('a', 'x', false), row('b', 'y', true)]);"
        "  done({ order: [...body.children].map((each) => each.dataset.id), kept: kept === body.children[1],"
        "    focus: document.activeElement.closest('tr')?.dataset.id, text: body.children[2].cells[0].innerText });"
        "  table.remove(); });",
        page.execute_script("return location.origin"),
    )
    assert left == {"order": ["c", "a", "b"], "kept": True, "focus": "b", "text": "y"}
