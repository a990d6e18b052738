"""Searches for unreachable objects: rare while a process starts, and never of what it has loaded.

Design notes:
- An import makes many objects and hardly any garbage, and each search looks at many of them again: by default, a fifth
  of the processor time of a start (docs/experiments.md).
- A search of everything that was loaded would later delay requests by up to 0.1 s, so it is left out for good.
- The searches are rarer instead of switched off: a start that waits for hours, or compiles, must not fill the memory.
"""

from __future__ import annotations

import gc

__all__ = ["begin_start", "end_start"]

_AT_START = 100_000  # new objects between two searches; 700 by default
_USUAL = gc.get_threshold()


def begin_start() -> None:
    """Search rarely from now on. Call it before the large imports."""
    gc.set_threshold(_AT_START, *_USUAL[1:])


def end_start() -> None:
    """Search as usual from now on, and leave out what exists by now."""
    gc.freeze()
    gc.set_threshold(*_USUAL)
