"""Types of received DICOM studies."""

from __future__ import annotations

from enum import StrEnum


class StudyState(StrEnum):
    """What a study waits for, or what became of it."""

    WAITING = "waiting"  # for images: only its clinical record has arrived
    RECEIVING = "receiving"
    ASSEMBLING = "assembling"
    PREDICTED = "predicted"
    REFUSED = "refused"
    CANCELLED = "cancelled"
