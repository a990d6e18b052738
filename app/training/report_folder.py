"""The folder of a report: its default name, and the check that no other folder is replaced.

This module imports no torch, so that the options are checked before anything is computed.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from app.training.errors import CohortFault

PARENT = "reports"
FILES = ("report.json", "report.md")
"""Files that show that a folder is an earlier report; reports of earlier releases have the second only."""


def check(folder: Path | None, option: str = "--report") -> None:
    """Check that a report may replace ``folder``; the messages name the ``option``.

    Raises:
        CohortFault: If the folder has content and is no report, or if it is a file.
    """
    if folder is None or not folder.exists():
        return
    if not folder.is_dir():
        raise CohortFault([f"{option} {folder} is a file; give a new folder"])
    names = {path.name for path in folder.iterdir()}
    if names and not names & set(FILES):
        raise CohortFault([f"{option} {folder} is a folder with other files; give a new folder, or that of a report"])


def default(base: Path, table: Path, names: Sequence[str], key: str) -> Path:
    """Folder ``reports/TABLE-NAMES-KEY`` in the folder ``base`` of a cohort; ``key`` is that of the run."""
    parts = [table.stem if table.suffix else table.name, *names, key[:8]]
    plain = [re.sub("[^A-Za-z0-9._]+", "-", part).strip("-.") for part in parts]
    return base / PARENT / "-".join(part for part in plain if part)[:150]
