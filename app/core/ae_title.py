"""AE titles: names of DICOM applications (DICOM PS3.5, 6.2, value representation AE)."""

from __future__ import annotations

from typing import Final

__all__ = ["AE_TITLE"]

AE_TITLE: Final = r"[!-\[\]-~]([ -\[\]-~]{0,14}[!-\[\]-~])?"
"""Pattern of a title: 1 to 16 printable ASCII characters without a backslash; spaces only inside."""
