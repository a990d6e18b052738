"""``make demo-model``: its steps are commands of this release, and those that are done are left out."""

from __future__ import annotations

from pathlib import Path

from typer.main import get_command

from app.cli.__main__ import app as command_line
from tools import demo_model


def test_steps_are_valid_commands_and_finished_ones_are_left_out(tmp_path: Path) -> None:
    registered = get_command(command_line)
    steps = demo_model.commands(tmp_path, 10, 10)
    (tmp_path / "cohort").mkdir()
    assert [step[0] for step in steps] == ["synthesize", "train", "train"]
    assert demo_model.commands(tmp_path, 10, 10) == steps[1:]
    for name, *arguments in steps:
        parsed = registered.commands[name].make_context(name, list(arguments))  # type: ignore[attr-defined]
        assert not parsed.args
    (tmp_path / "rlvo-synthetic" / "2.3.0").mkdir(parents=True)
    assert demo_model.commands(tmp_path, 10, 10) == steps[2:]
