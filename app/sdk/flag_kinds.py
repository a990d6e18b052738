"""What the catalogue of flags says about a code."""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple


class Severity(StrEnum):
    """Severity of a flag; a ``warning`` withholds the decision."""

    INFO = "info"
    WARNING = "warning"


class FlagKind(NamedTuple):
    """What a flag code says: severity, meaning, the measurement behind it, and what to do."""

    severity: Severity
    meaning: str
    measured: str
    action: str
