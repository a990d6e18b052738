"""Sections of the report of a validation: text, tables and plots, independent of the format of the report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class ReportTable:
    """A table of the report."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Plot:
    """A plot of the report: name of its file, and SVG text."""

    name: str
    svg: str


@dataclass(frozen=True)
class Section:
    """A title, and the parts below it."""

    title: str
    parts: Sequence[str | ReportTable | Plot] = field(default=())


def parts_of(text: str) -> list[str | ReportTable]:
    """Parts of a Markdown text of paragraphs, lists and tables, without marks of headings and of bold text."""
    parts: list[str | ReportTable] = []
    for block in text.split("\n\n"):
        lines = block.splitlines()
        if len(lines) > 1 and all(line.startswith("|") for line in lines):
            head, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
            parts.append(ReportTable(head, rows))
        else:
            items = lines if any(line.startswith("- ") for line in lines) else [block]
            parts += [item.removeprefix("## ").replace("**", "") for item in items]
    return parts
