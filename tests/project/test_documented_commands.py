"""Each `rlvo` command line in README, CHANGELOG, Makefile and docs exists in the command line interface."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import typer.main

from app.cli.__main__ import TRAINING_COMMANDS, app
from app.cli.training import commands as training

ROOT = Path(__file__).parents[2]
DOCUMENTS = ["README.md", "CHANGELOG.md", "Makefile", *(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]
REMOVED = {"--cohort"}
"""Options that the change log names because they were removed."""


def find_command(words: list[str]) -> Any:
    """Return the command or group that ``words`` (without `rlvo`) call; KeyError if there is none."""
    root = typer.main.get_group(training if words[0] in TRAINING_COMMANDS else app)
    command: Any = root
    for word in words:
        if not hasattr(command, "commands"):
            break
        command = command.commands[word]
    return command


def option_names(command: Any) -> set[str]:
    return {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)} | {"--help"}


def command_lines(text: str) -> list[list[str]]:
    """Return the words after `rlvo` of each command line in code spans, code blocks and make recipes.

    A code span such as `rlvo models add | sign` gives one command line for each alternative.
    """
    text = text.replace("$(BIN)/", "")
    blocks = re.findall(r"^```[a-z]*\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    prose = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    lines = [line for block in blocks for line in block.splitlines()]
    lines += [line for line in prose.splitlines() if line.startswith(("    ", "\t"))]
    lines += [span.replace("\n", " ") for span in re.findall(r"`([^`]+)`", prose)]
    found = []
    for line in lines:
        match = re.search(r"(?<!from )\brlvo +([a-z-][^#;&>)]*)", line)
        if match:
            first, *alternatives = match[1].split(" | ")
            words = re.sub(r"[<\[$|].*", "", first).split()
            found += [words, *([words[0], other.split()[0]] for other in alternatives)]
    return found


@pytest.mark.parametrize("document", DOCUMENTS)
def test_documented_commands_and_options_exist(document: str) -> None:
    for words in command_lines((ROOT / document).read_text(encoding="utf-8")):
        command = find_command(words) if not words[0].startswith("-") else typer.main.get_group(app)
        options = {word.partition("=")[0] for word in words if word.startswith("--")}
        if document == "CHANGELOG.md":
            options -= REMOVED
        assert options <= option_names(command), f"rlvo {' '.join(words)}"


def test_documents_name_commands() -> None:
    named = {line[0] for document in DOCUMENTS for line in command_lines((ROOT / document).read_text(encoding="utf-8"))}
    assert named >= {"serve", "predict", "predict-cohort", "models", "train", "train-segmenter", "fsck"}


def test_command_lines_are_found() -> None:
    text = "`rlvo a b | c`, `from rlvo import X`\n\n    rlvo d --e=f   # rlvo g\n\t$(BIN)/rlvo j\n"
    text += "```sh\nX=1 rlvo h i\n```\n"
    assert command_lines(text) == [["h", "i"], ["d", "--e=f"], ["j"], ["a", "b"], ["a", "c"]]
