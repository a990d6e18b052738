"""Bad input to the commands of training gives a few lines and a status, and never a traceback."""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from app.cli.__main__ import main
from app.phantoms.biology import Preset
from app.training.synthesize import synthesize
from tests.training import messy_tables
from tests.training.test_isles24 import write_data_set

MODEL_STORE = Path(__file__).resolve().parents[2] / "model_store"
NETWORK, LOGISTIC = MODEL_STORE / "rlvo-synthetic" / "2.3.0", MODEL_STORE / "rlvo-synthetic-lr" / "1.0.0"
PATIENTS = 40

Change = Callable[[Path], object]


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("phantoms") / "c"
    synthesize(folder, PATIENTS, 5, Preset.XOR)
    return folder


@pytest.fixture
def folder(phantoms: Path, tmp_path: Path) -> Path:
    """A valid cohort ``c`` with hard links to the images, so that a change replaces a file and never edits it."""
    shutil.copytree(phantoms, tmp_path / "c", copy_function=os.link)
    return tmp_path


def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *words: object) -> tuple[int, str, str]:
    """Status, standard output and error of a command; any other exception than the exit is a traceback."""
    monkeypatch.setattr(sys, "argv", ["rlvo", *map(str, words)])
    with pytest.raises(SystemExit) as caught:
        main()
    said = capsys.readouterr()
    return int(caught.value.code or 0), said.out, said.err


def write(name: str, content: bytes) -> Change:
    def change(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).write_bytes(content)

    return change


def cells(**values: object) -> Change:
    """Set columns of ``c/cohort.csv``; a callable gets the table."""

    def change(folder: Path) -> None:
        path = folder / "c" / "cohort.csv"
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
        for column, value in values.items():
            table[column] = value(table) if callable(value) else value
        path.unlink()
        table.to_csv(path, index=False)

    return change


def one_row(column: str, value: str) -> Change:
    return cells(**{column: lambda table: [value, *(table.get(column, pd.Series([""] * len(table)))[1:])]})


def volumes(value: str) -> Change:
    """Name a volume in place of the prepared images."""

    def change(folder: Path) -> None:
        cells(ncct=value)(folder)
        path = folder / "c" / "cohort.csv"
        table = pd.read_csv(path, dtype=str, keep_default_na=False).drop(columns="prepared")
        path.unlink()
        table.to_csv(path, index=False)

    return change


def damaged_version(kind: str) -> Change:
    def change(folder: Path) -> None:
        shutil.copytree(NETWORK, folder / "mine" / "1.0.0")
        target = folder / "mine" / "1.0.0" / ("manifest.json" if kind == "manifest" else "fold-0.safetensors")
        target.write_bytes(b"{}" if kind == "manifest" else b"no weights")

    return change


def nothing(folder: Path) -> None:
    """The cohort is valid; the options are not."""


def two_of_a_site(table: pd.DataFrame) -> list[str]:
    positive = (table["rescue_treatment"] == "1") | (table["final_stenosis_percent"].astype(float) > 50)
    first, other = int(np.flatnonzero(positive)[0]), int(np.flatnonzero(~positive)[0])
    return ["small" if row in (first, other) else "large" for row in range(len(table))]


def all_negative(folder: Path) -> None:
    cells(final_stenosis_percent="10", etici="3", rescue_treatment="0")(folder)


BAD = [
    ("an empty table", write("t.csv", b""), "train t.csv", "is empty"),
    ("a header and no row", write("t.csv", b"patient,age,etici\n"), "train t.csv", "a header and no row"),
    ("a damaged spreadsheet", messy_tables.damaged, "train cohort.xlsx", "is damaged"),
    ("random bytes as spreadsheet", write("t.xlsx", bytes(range(256))), "train t.xlsx", "is damaged"),
    ("random bytes as parquet", write("t.parquet", bytes(range(256))), "train t.parquet", "cannot be read as .parquet"),
    ("an AppleDouble table", write("._t.parquet", b"\x00\x05\x16\x07"), "train ._t.parquet", "not a table"),
    ("a lock file", write("~$t.xlsx", b"lock"), "table check ~$t.xlsx", "not a table"),
    ("bytes that are no text", write("t.csv", b"a\x00\xff\x01,b\n"), "table check t.csv", r"no text|damaged"),
    ("an unknown kind of file", write("t.ods", b"x"), "train t.ods", "cannot be read as .ods"),
    ("no file", nothing, "train gone.csv", "there is no table"),
    ("no file for the check", nothing, "table check gone.csv", "there is no table"),
    ("a folder without a table", nothing, "train .", "there is no table"),
    ("a folder named as a table", lambda f: (f / "t.csv").mkdir(), "train t.csv", "there is no table"),
    ("inf in a number", one_row("systolic_bp", "inf"), "train c", "column systolic_bp: expected a number"),
    ("1e999 in a number", one_row("age", "1e999"), "train c", "column age: the number is too large"),
    ("nan in a number", one_row("age", "nan"), "train c", "column age: expected a number"),
    ("a number of 400 digits", one_row("nihss", "9" * 400), "train c", "column nihss: the number is too large"),
    ("a negative image row", one_row("prepared", "-1"), "train c", "column prepared: expected a row number"),
    ("an image row beyond the end", one_row("prepared", "99"), "train c", "images.npy has no such row"),
    ("an image row of 30 digits", one_row("prepared", "9" * 30), "train c", "expected a row number"),
    ("no images", lambda f: (f / "c" / "images.npy").unlink(), "train c", "images.npy or images.json is missing"),
    ("damaged images", write("c/images.npy", b"x"), "train c", "is damaged"),
    ("damaged description of the images", write("c/images.json", b"{"), "train c", "is damaged"),
    ("a damaged truth", write("c/truth.csv", b"patient\nx\n"), "train c", "truth.csv"),
    ("a missing volume", volumes("gone.nii.gz"), "train c", "there is no such file"),
    ("a folder as volume", volumes("."), "train c", "it is a folder"),
    ("a path of 400 characters", volumes("a" * 400), "train c", "the path is no valid file name"),
    ("a path with a zero byte", volumes("a\x00b"), "train c", r"no such file|no text|no valid"),
    ("an AppleDouble volume", volumes("._head.nii.gz"), "train c", "and no volume"),
    ("one outcome", all_negative, "train c", "patients of one outcome only"),
    (
        "every outcome unknown",
        cells(etici="", rescue_treatment="", final_stenosis_percent="10"),
        "train c --drop-unknown",
        "0 rows are too few",
    ),
    ("one fold", cells(fold="1"), "train c", "column fold: needs at least two folds"),
    ("a fold of one outcome", cells(fold=lambda t: np.where(np.arange(len(t)) < 2, "a", "test")), "train c", "fold"),
    ("more folds than patients", cells(fold=lambda t: ["test", *map(str, range(1, len(t)))]), "train c", "fold"),
    ("dates without a date", nothing, "train c --validation dates", "column date: missing"),
    ("sites with one site", nothing, "train c --validation sites", "at least two sites"),
    (
        "sites that are missing in some rows",
        cells(site=lambda t: np.where(np.arange(len(t)) % 5 > 0, "A", "")),
        "train c --validation sites",
        "column site: missing",
    ),
    ("0 epochs", nothing, "train c --epochs 0", "epochs"),
    ("-1 epochs", nothing, "train c --epochs -1", "epochs"),
    ("half an epoch", nothing, "train c --epochs 0.5", "epochs"),
    ("-1 jobs", nothing, "train c --jobs -1", "jobs"),
    ("0 repeats", nothing, "train c --validation nested --repeats 0", "repeats"),
    ("-1 phantoms", nothing, "train c --phantoms -1", "phantoms"),
    ("a seed below 0", nothing, "train c --seed -1", "seed"),
    ("a seed of 30 digits", nothing, f"train c --seed {10**30}", "seed"),
    ("an unknown device", nothing, "train c --device tpu", "give auto, cpu or cuda"),
    ("an unknown variable", nothing, "train c --variables shoe_size", "variable"),
    ("an unknown code", nothing, "train c --accept everything", "--accept: give all, or codes"),
    ("an unknown form of dates", nothing, "train c --date-format day", "--date-format: expected"),
    ("missing rules", nothing, "train c --columns gone.toml", "there is no file gone.toml"),
    ("a folder as rules", nothing, "train c --columns c", "there is no file c"),
    ("damaged rules", write("c/columns.toml", b"\xff["), "train c", "columns.toml is no TOML"),
    ("a trunk that is no version", nothing, "train c --trunk c", "holds no model version"),
    ("a trunk without image layers", nothing, f"train c --trunk {LOGISTIC} --i-know", "no image layers"),
    ("a trunk with damaged weights", damaged_version("weights"), "train c --trunk mine/1.0.0 --i-know", "damaged"),
    ("an existing version", lambda f: (f / "m" / "1.0.0").mkdir(parents=True), "train c --out m/1.0.0", "exists"),
    ("a version without a number", nothing, "train c --out m/first", "NAME/VERSION"),
    ("a version inside a file", write("m", b"x"), "train c --out m/1.0.0", r"NAME/VERSION|is a file"),
    ("a file as report", write("report", b"x"), "train c --report report", "is a file; give a new folder"),
    (
        "a file as report of a score",
        write("report", b"x"),
        f"evaluate {LOGISTIC} c --report report",
        "is a file; give a new folder",
    ),
    ("no version", nothing, "evaluate c c", "holds no model version"),
    ("a damaged manifest", damaged_version("manifest"), "evaluate mine/1.0.0 c", "holds no model version"),
    ("an unknown site", nothing, f"evaluate {LOGISTIC} c --site none", "0 patients are left"),
    ("a date of another form", nothing, f"evaluate {LOGISTIC} c --since 1/2/2024", "--since: expected"),
    ("rows without a date", nothing, f"evaluate {LOGISTIC} c --since 2024-01-01", "column date: missing"),
    ("one version twice", nothing, f"evaluate {LOGISTIC} {LOGISTIC} c", "given twice"),
    ("another target", nothing, f"evaluate {LOGISTIC} c --target unsuccessful-reperfusion", "another"),
    ("an unknown target", nothing, "table check c --target rLVO2", "target"),
    ("another layout", nothing, "import isles24 c t.csv", "not laid out as ISLES'24"),
    (
        "an existing table",
        lambda f: write("t.csv", b"x")(write_data_set(f / "i", 1).parent),
        "import isles24 i t.csv",
        "exists and is not overwritten",
    ),
    ("a table in a missing folder", lambda f: write_data_set(f / "i", 1), "import isles24 i gone/t.csv", "folder"),
    ("an existing folder of phantoms", nothing, "synthesize c", "exists"),
    ("0 phantoms", nothing, "synthesize new --patients 0", "patients"),
    ("a file in the path of phantoms", write("f", b"x"), "synthesize f/new --patients 1", "f"),
    ("an existing segmenter", nothing, "train-segmenter c --steps 1", "exists"),
    ("0 steps", nothing, "train-segmenter s/v/1.0.0 --steps 0", "steps"),
]


@pytest.mark.parametrize(("change", "command", "message"), [case[1:] for case in BAD], ids=[case[0] for case in BAD])
def test_bad_input_gives_a_short_message_and_status_2(
    folder: Path,
    change: Change,
    command: str,
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    change(folder)
    monkeypatch.chdir(folder)
    status, out, err = run(capsys, monkeypatch, *command.split())
    assert status == 2, out + err
    assert re.search(message, re.sub(r"[\s│]+", " ", out + err))
    assert "Traceback" not in out + err
    assert str(folder) not in err
    assert len(err.splitlines()) <= 12


def test_damaged_weights_of_a_version_are_a_failure_of_the_version(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    damaged_version("weights")(folder)
    status, _, err = run(capsys, monkeypatch, "evaluate", folder / "mine" / "1.0.0", folder / "c", "--i-know")
    assert status == 1
    assert "fold-0.safetensors of the model version differs from its manifest" in err


def test_one_epoch_on_a_small_cohort_trains(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """24 patients give three training steps, fewer than the warm-up of the learning rate."""
    cells(fold=lambda t: np.where(np.arange(len(t)) % 5 == 0, "test", np.where(np.arange(len(t)) % 2, "a", "b")))(
        folder
    )
    status, out, err = run(
        capsys, monkeypatch, "train", folder / "c", "--epochs", 1, "--quick", "--model", "imaging", "--jobs", 1
    )
    assert status == 0, err
    assert "| all imaging |" in out


def test_site_with_two_patients_is_scored(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    cells(site=two_of_a_site)(folder)
    status, out, err = run(capsys, monkeypatch, "evaluate", LOGISTIC, folder / "c", "--site", "small")
    assert status == 0, err
    assert "on 2 patients, 1 with the outcome" in out
