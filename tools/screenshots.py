"""Takes the screenshots of docs/screenshots.md: every state of the pages, at three widths, light and dark.

Run ``python -m tools.screenshots`` in the checkout; it needs Debian's chromium and chromium-driver. It writes phantoms
and predicts them with a real service. Then a service without a worker serves the results, so that a queued study stays
queued. ``--only NAME ...`` takes the pictures of some states again. With ``--keep FOLDER``, phantoms and results stay
there for the next run.
"""

from __future__ import annotations

import argparse
import base64
import io
import itertools
import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait
from sqlalchemy.orm import Session

from app.database import job_state, predictions
from app.database.tables import PredictionRow
from app.phantoms.cohort import write_patient
from app.sdk import Client, ReviewDraft, RlvoError, Verdict
from app.sdk.types import Failure, FiguresState
from tests.api.server import Server, started
from tests.e2e.accessibility import use_theme
from tests.e2e.conftest import open_chromium
from tests.e2e.service_process import RunningService, eventually

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "docs" / "screenshots"
PAGE = ROOT / "docs" / "screenshots.md"
LEADING_IMAGE = ROOT / "docs" / "images" / "prediction.png"
LEADING_WIDTH = 900
MODEL = "rlvo-synthetic"
SPACING_MM = {"ncct": (1.0, 1.0, 4.0), "cta": (1.0, 1.0, 2.0), "perfusion": (2.0, 2.0, 6.0)}
WIDTHS = (1280, 800, 400)
THEMES = ("light", "dark")
HIGHEST = 1250  # pixels of a picture; the rest of a long page is left out
PATIENCE = 600  # seconds for one command; without a graphics card, a busy machine draws a volume in minutes
QUALITY = 30  # of WebP: text stays readable


@dataclass(frozen=True)
class Answered:
    """A study with a result: index of its phantom in the cohort of seed 1, volumes (empty: all), record and options."""

    title: str
    index: int
    volumes: tuple[str, ...] = ()
    record: bool = True
    options: dict[str, object] = field(default_factory=dict)


ANSWERED = {
    "refractory": Answered("Refractory", 258),
    "undetermined": Answered("Undetermined", 0),
    "not-refractory": Answered("Not refractory", 332),
    "withheld": Answered("Decision withheld", 343),
    "no-record": Answered("No record", 332, record=False),
    "ncct-only": Answered("NCCT only", 0, ("ncct",)),
    "cta-only": Answered("CTA only", 0, ("cta",)),
    "no-explanation": Answered("Without an explanation", 0, options={"explain": False}),
}


def _leave(_session: Session, _prediction_id: str) -> None: ...


def _fail(session: Session, prediction_id: str) -> None:
    study = job_state.start(session, prediction_id)
    detail = "ncct: no head was found. Send the series of the head, in HU"
    assert study
    job_state.fail(
        session, study, Failure(code="modality-implausible", title="The volume does not match its field", detail=detail)
    )


def _wait(session: Session, prediction_id: str) -> None:
    study = job_state.start(session, prediction_id)
    assert study
    job_state.wait(session, study, "The storage is full; the operator can free disk space", step=1)


UNFINISHED: dict[str, tuple[str, Callable[[Session, str], object]]] = {
    "queued": ("Queued", _leave),
    "running": ("Running", job_state.start),
    "waiting": ("Waiting for storage", _wait),
    "failed": ("Failed", _fail),
    "cancelled": ("Cancelled", lambda session, each: predictions.cancel(session, each, None)),
    "erased": ("Erased", lambda session, each: predictions.erase(session, each, None)),
}
FIGURES = {
    FiguresState.PENDING: ("figures-pending", "Figures not drawn yet"),
    FiguresState.FAILED: ("figures-failed", "Figures that could not be drawn"),
}
"""Name and title of the states of the figures, which are shown on the undetermined study."""
HOME = {
    "home": "Start page with the list",
    "form-errors": "Form with values that it refuses",
    "form-refused": "Study that the service refuses",
    "batch": "Several studies at once",
}


NAMES = [*HOME, *ANSWERED, *UNFINISHED, *dict(FIGURES.values())]


def study_of(each: Answered, folder: Path) -> dict[str, object]:
    """The parts of a study: its volumes as paths, and its record."""
    paths = write_patient(folder, 1, index=each.index, spacing_mm=SPACING_MM)
    record = json.loads(paths.pop("clinical").read_text(encoding="utf-8"))
    volumes = {name: path for name, path in paths.items() if not each.volumes or name in each.volumes}
    return volumes | ({"clinical": record} if each.record else {}) | each.options


def predict(folder: Path) -> dict[str, str]:
    """Predict every study of `ANSWERED`; return its id by the name of the state."""
    ids = {}
    service = RunningService(folder / "data", ROOT / "model_store", MODEL)
    service.spawn()
    with service.client() as client:
        eventually(lambda: is_ready(client), "ready", within=600)  # the first start compiles the kernels
        for name, each in ANSWERED.items():
            ids[name] = client.predict(model=MODEL, subject=f"S-{len(ids) + 101}", **study_of(each, folder / name)).id
            print(f"predicted {name}", flush=True)
        for prediction_id in ids.values():
            if client.get(prediction_id).figures is not None:
                service.wait_for_figures(prediction_id)
        client.review(ids["undetermined"], ReviewDraft(reviewer="reader-1", verdict=Verdict.AGREE))
    service.stop()
    return ids


def is_ready(client: Client) -> bool:
    """Whether the service answers and is ready to predict."""
    try:
        return client.health().ready
    except RlvoError:
        return False


def unfinished(server: Server, folder: Path) -> dict[str, str]:
    """Bring one study into every state of `UNFINISHED`; return its id by the name of the state."""
    study = study_of(ANSWERED["cta-only"], folder / "unfinished")
    ids = {}
    database = server.database()
    with Client(server.url) as client:
        for name, (_, make) in UNFINISHED.items():
            ids[name] = client.submit(model=MODEL, subject=f"S-{len(ids) + 201}", **study).id
            with database.session() as session:
                make(session, ids[name])
    database.close()
    return ids


def fill_in_form(browser: Chrome, folder: Path) -> None:
    """Type values that the form refuses, and send a file that is no volume."""
    for name, value in {"age": "7,1", "glucose": "1.234,5", "nihss": "14"}.items():
        browser.find_element(By.CSS_SELECTOR, f"[data-name='{name}']").send_keys(value)
    (folder / "ncct.nii").write_bytes(b"no volume")
    browser.find_element(By.CSS_SELECTOR, "#volumes [name=ncct]").send_keys(str(folder / "ncct.nii"))
    browser.execute_script("document.getElementById('submit').noValidate = true")
    browser.find_element(By.CSS_SELECTOR, "#submit button[type=submit]").click()
    WebDriverWait(browser, 60).until(lambda page: page.find_element(By.ID, "submit-problem").text)


def choose_batch(browser: Chrome, folder: Path) -> None:
    """Choose the files of three studies, one of them without an image, and send them."""
    paths = write_patient(folder / "batch", 1, index=0, spacing_mm=SPACING_MM)
    chosen = []
    for subject, name in (("S-301", "cta"), ("S-302", "ncct"), ("S-303", "tmax")):
        target = folder / f"{subject}_{name}.nii.gz"
        target.write_bytes(paths[name].read_bytes())
        chosen.append(str(target))
    browser.find_element(By.ID, "batch-files").send_keys("\n".join(chosen))
    browser.find_element(By.ID, "batch-send").click()
    WebDriverWait(browser, 60).until(lambda page: len(page.find_elements(By.CSS_SELECTOR, "#batch-rows .state")) == 2)


@contextmanager
def figures_in(server: Server, prediction_id: str, state: FiguresState) -> Iterator[None]:
    """Give the figures of a prediction a state during the block."""
    database = server.database()
    for given in (state, FiguresState.READY):
        with database.session() as session:
            row = session.get(PredictionRow, prediction_id)
            assert row
            row.figures = given
        if given is state:
            yield
    database.close()


@contextmanager
def shown(browser: Chrome, name: str, url: str, ids: dict[str, str], folder: Path) -> Iterator[str]:
    """Open the page of a state and wait until it is complete; yields the element to start the picture at."""
    start = "body"
    if name in HOME:
        browser.get(url)
        WebDriverWait(browser, 60).until(lambda page: page.find_elements(By.CSS_SELECTOR, "#recent a"))
        WebDriverWait(browser, 60).until(lambda page: page.find_elements(By.CSS_SELECTOR, ".unread"))
        if name.startswith("form-"):
            fill_in_form(browser, folder)
            start = "#submit-title" if name == "form-errors" else "#submit > fieldset:last-of-type"
        if name == "batch":
            choose_batch(browser, folder)
            start = "#batch-title"
    elif name in dict(FIGURES.values()):
        browser.get(f"{url}/predictions/{ids['undetermined']}")
        start = "#position-panel"
        WebDriverWait(browser, 60).until(lambda page: "drawn" in page.find_element(By.ID, "position").text)
    else:
        browser.get(f"{url}/predictions/{ids[name]}")
        if name in ANSWERED:
            WebDriverWait(browser, PATIENCE).until(
                lambda page: page.find_elements(By.CSS_SELECTOR, "body[data-shown=succeeded]")
            )
        else:
            WebDriverWait(browser, 60).until(lambda page: "Loading" not in page.find_element(By.TAG_NAME, "body").text)
    yield start
    browser.get("about:blank")


def picture(browser: Chrome, width: int, start: str, highest: int = HIGHEST) -> Image.Image:
    """The page from an element to the end of its section, at a width of the window, at most ``highest`` pixels high."""
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    browser.execute_async_script("setTimeout(arguments[0], 1500)")  # the viewer draws again at its new size
    top, height = browser.execute_script(
        "const element = document.querySelector(arguments[0]);"
        "const top = element.getBoundingClientRect().top;"
        "const end = (element.closest('section') || document.body).getBoundingClientRect().bottom;"
        "return [top + scrollY, end - top];",
        start,
    )
    above = min(top, 16)
    clip = {"x": 0, "y": top - above, "width": width, "height": min(above + height + 12, highest), "scale": 1}
    shot = browser.execute_cdp_cmd("Page.captureScreenshot", {"clip": clip, "captureBeyondViewport": True})
    return Image.open(io.BytesIO(base64.b64decode(shot["data"]))).convert("RGB")


def leading_image(browser: Chrome) -> Image.Image:
    """The page down to the end of the reasons, for the README."""
    end = "return document.getElementById('reasons').closest('section').getBoundingClientRect().bottom + scrollY"
    image = picture(browser, 1280, "body", highest=round(browser.execute_script(end)) + 12)
    return image.resize((LEADING_WIDTH, round(image.height * LEADING_WIDTH / image.width))).quantize(128)


def file_name(name: str, width: int, theme: str) -> str:
    """Name of the picture of a state."""
    return f"{name}-{width}-{theme}.webp"


def write_page() -> None:
    """Write docs/screenshots.md, which shows every picture."""
    titles = {name: each.title for name, each in ANSWERED.items()} | {
        name: each[0] for name, each in UNFINISHED.items()
    }
    titles |= dict(FIGURES.values())
    lines = [
        "# Screenshots",
        "",
        "Every state of the [web page](page.md) at 1280, 800 and 400 pixels, light and dark. The studies are phantoms,",
        "and the model is the synthetic one of this checkout. `python -m tools.screenshots` takes them again.",
    ]
    for name, title in (HOME | titles).items():
        lines += ["", f"## {title}", ""]
        for theme in THEMES:
            lines += ["| " + " | ".join(f"{width} px, {theme}" for width in WIDTHS) + " |", "|---|---|---|"]
            lines += [
                "| "
                + " | ".join(
                    f"![{title}, {width} px, {theme}](screenshots/{name}-{width}-{theme}.webp)" for width in WIDTHS
                )
                + " |",
                "",
            ]
        lines.pop()
    PAGE.write_text("\n".join(lines) + "\n", encoding="utf-8")


def take(server: Server, ids: dict[str, str], names: list[str], folder: Path) -> None:
    """Take the pictures of the given states."""
    FOLDER.mkdir(exist_ok=True)
    states = {name: state for state, (name, _) in FIGURES.items()}
    with open_chromium(folder / "chromium") as browser:
        # A scroll bar goes away for the picture, and elements would move after they are measured.
        browser.execute_cdp_cmd("Emulation.setScrollbarsHidden", {"hidden": True})
        browser.set_script_timeout(PATIENCE)
        browser.command_executor.client_config.timeout = PATIENCE
        for name in names:
            changed = figures_in(server, ids["undetermined"], states[name]) if name in states else nullcontext()
            with changed, shown(browser, name, server.url, ids, folder) as start:
                for width, theme in itertools.product(WIDTHS, THEMES):
                    use_theme(browser, theme)
                    image = picture(browser, width, start)
                    image.save(FOLDER / file_name(name, width, theme), quality=QUALITY, method=6)
                    if (name, width, theme) == ("undetermined", 1280, "light"):
                        leading_image(browser).save(LEADING_IMAGE, optimize=True)
            print(f"took {name}", flush=True)


def main() -> None:
    """Predict, then take all pictures or those of one state."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=NAMES, nargs="+", help="take the pictures of these states only")
    parser.add_argument("--keep", type=Path, help="folder of the phantoms and results; a later run uses them again")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = arguments.keep or Path(name)
        (folder / "data").mkdir(parents=True, exist_ok=True)
        kept = folder / "ids.json"
        ids: dict[str, str] = json.loads(kept.read_text()) if kept.is_file() else predict(folder)
        with started(folder / "data", ROOT / "model_store", default_model=MODEL) as server:
            if "queued" not in ids:
                ids |= unfinished(server, folder)
            kept.write_text(json.dumps(ids))
            take(server, ids, arguments.only or NAMES, folder)
    write_page()


if __name__ == "__main__":
    main()
