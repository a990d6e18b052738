"""Shifts the clock of the rows and of `time.time` by the seconds in the file `SHIFTED_CLOCK`, read at each use.

Python imports this module at its start if its folder is in PYTHONPATH. Child processes inherit it.
"""

from __future__ import annotations

import importlib.abc
import importlib.util
import os
import sys
import time
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

FILE = Path(os.environ["SHIFTED_CLOCK"])
MODULE = "app.database.session"  # rows have its times; webhooks and aliases keep the real date


def shift() -> float:
    """Seconds by which the clock is ahead."""
    try:
        return float(FILE.read_text() or 0)
    except (FileNotFoundError, ValueError):
        return 0.0


class ShiftedDatetime(datetime):
    """A date whose present is shifted."""

    @classmethod
    def now(cls, tz: Any = None) -> Any:
        return datetime.now(tz) + timedelta(seconds=shift())


class Finder(importlib.abc.MetaPathFinder):
    """Replaces the clock of `MODULE` after its import."""

    def find_spec(self, name: str, *_: object) -> Any:
        if name != MODULE:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        assert spec
        assert spec.loader
        execute = spec.loader.exec_module

        def exec_module(module: Any) -> None:
            execute(module)
            module.datetime = ShiftedDatetime

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


real = time.time
time.time = lambda: real() + shift()
sys.meta_path.insert(0, Finder())
