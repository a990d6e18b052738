"""nibabel without pydicom, which it would load with all its decoders and never use here.

Design notes:
- nibabel reads DICOM content of NIfTI header extensions if pydicom can be imported. No volume is read that way here.
- Loading both takes 0.4 CPU seconds and 20 MB more in each worker than nibabel alone (0.06 s).
- Import it from here, at the start of the process: meanwhile, no other thread may load pydicom.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import cast


@contextmanager
def _missing(name: str) -> Iterator[None]:
    """Let the import of a module fail, unless it is loaded already."""
    if name in sys.modules:
        yield
        return
    cast("dict[str, ModuleType | None]", sys.modules)[name] = None  # documented: its import raises ModuleNotFoundError
    try:
        yield
    finally:
        del sys.modules[name]


with _missing("pydicom"):
    import nibabel

__all__ = ["nibabel"]
