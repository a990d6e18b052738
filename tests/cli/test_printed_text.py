"""Text in brackets is printed as it is: tables, answers and messages read no markup in data."""

from __future__ import annotations

import io
from typing import Any

import pytest
import typer
from rich.console import Console

from app.cli.__main__ import app
from app.cli.common import table
from app.cli.predict import LONGEST_BAR, show
from app.sdk.types import Prediction
from app.training.progress import RichProgress

TEXT = "D-dimer [mg/l] [/b]"


def prediction(**members: Any) -> Prediction:
    return Prediction.model_validate(
        {
            "id": "01",
            "status": "succeeded",
            "model": {"name": "m", "version": "1.0.0", "digest": "sha256:0"},
            "created": "2026-01-01T00:00:00Z",
            "probability": 0.25,
            **members,
        }
    )


def shown(answer: Prediction, width: int = 200) -> str:
    console = Console(file=io.StringIO(), width=width)
    show(answer, console)
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


def test_table_prints_brackets(capsys: pytest.CaptureFixture[str]) -> None:
    table(["variable", "value"], [["needs `rlvo-service[otel]`", TEXT]])
    printed = capsys.readouterr().out
    assert "needs `rlvo-service[otel]`" in printed
    assert TEXT in printed


def test_answer_prints_brackets() -> None:
    own = {"variable": "own.ddimer", "label": TEXT, "value": "high [a]", "contribution": 0.5}
    flags = [
        {"code": code, "detail": TEXT, "severity": kind} for code, kind in (("hu-cut", "warning"), ("metal", "info"))
    ]
    series = [{"number": 3, "images": 2, "role": "ncct", "used": True, "reason": TEXT, "rule": "words", "uid": "1.2"}]
    answer = prediction(
        flags=flags,
        withheld=["hu-cut"],
        series=series,
        attribution={"base": -1.6, "total": -1.1, "clinical": [own], "imaging": []},
    )
    printed = shown(answer)
    assert printed.count(TEXT) == 4  # warning, reason of the answer, series, information
    assert "high [a]" in printed


def test_bars_keep_their_proportion_on_a_narrow_terminal() -> None:
    clinical = [
        {"variable": name, "value": 1.0, "contribution": share}
        for name, share in (("age", 0.8), ("nihss", 0.7), ("glucose", 0.4))
    ]
    printed = shown(prediction(attribution={"base": -1.6, "total": 0.3, "clinical": clinical, "imaging": []}), width=80)
    lengths = [line.count("█") for line in printed.splitlines() if "█" in line]
    assert lengths == [LONGEST_BAR, round(LONGEST_BAR * 7 / 8), LONGEST_BAR // 2]


def test_message_of_a_run_prints_brackets() -> None:
    console = Console(file=io.StringIO(), width=200)
    report = RichProgress(console)
    report(TEXT)
    with report.stage("patients", 1) as advance:
        report(f"in a stage {TEXT}")
        advance(1)
    printed = console.file.getvalue()  # type: ignore[attr-defined]
    assert printed.startswith(TEXT)
    assert f"in a stage {TEXT}" in printed


def test_stated_roles_can_be_withdrawn() -> None:
    command = typer.main.get_command(app).commands["studies"].commands["roles"]  # type: ignore[attr-defined]
    (entries,) = [each for each in command.params if each.name == "entries"]
    assert not entries.required
    assert "none: no stated role" in entries.help
