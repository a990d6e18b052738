"""Words that the training commands offer; light, so that ``--help`` answers without torch."""

from __future__ import annotations

from enum import StrEnum


class PublishedModel(StrEnum):
    """Which model of the table becomes the version; the simple one may well be the better one."""

    DAFT = "daft"
    FILM = "film"
    CONCAT = "concat"
    IMAGING = "imaging"
    LOGISTIC = "logistic"


class Validation(StrEnum):
    """How test patients are chosen. Only the first two give one ensemble, which can be published as a version."""

    PAPER = "paper"
    DATES = "dates"
    SITES = "sites"
    NESTED = "nested"
