"""Orders in which predictions are listed."""

from __future__ import annotations

from enum import StrEnum


class Sort(StrEnum):
    """Order of a list of predictions; rows without a value are last, and ``-`` means descending."""

    NEWEST = "-created"
    OLDEST = "created"
    SUBJECT = "subject"
    SUBJECT_DESCENDING = "-subject"
    LOWEST = "probability"
    HIGHEST = "-probability"
