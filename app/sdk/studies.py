"""Types of received DICOM studies: state, series with their roles, and predictions."""

from __future__ import annotations

import re
from datetime import datetime
from enum import StrEnum

from pydantic import BaseModel, ConfigDict, Field, RootModel

from .series import SeriesRole
from .types import Failure

__all__ = [
    "MAX_ROLES",
    "UID",
    "PullState",
    "ReceivedStudy",
    "ReceivedStudyPage",
    "StudyPrediction",
    "StudyPull",
    "StudyRecord",
    "StudyRoles",
    "StudySeries",
    "StudyState",
]

UID = re.compile(r"[0-9.]{1,64}")
MAX_ROLES = 500


class StudyState(StrEnum):
    """What a study waits for, or what became of it."""

    WAITING = "waiting"  # for images: its clinical record has arrived, or it is fetched from an archive
    RECEIVING = "receiving"
    ASSEMBLING = "assembling"
    PREDICTED = "predicted"
    REFUSED = "refused"
    CANCELLED = "cancelled"


class _StudyModel(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class StudySeries(_StudyModel):
    """One series of a received study. Role, rule and reason are those of the last assembly, if there was one.

    A series with several images of different geometry is listed once for each of them, with ``part``.
    """

    uid: str = Field(description="Series Instance UID (0020,000E)")
    received: int = Field(description="Received instances of the series")
    number: int | None = Field(default=None, description="Series Number (0020,0011)")
    part: int | None = Field(default=None, description="1, 2, ... if the series holds several volumes")
    modality: str = Field(default="", description="Modality (0008,0060)")
    images: int | None = Field(default=None, description="Number of slices")
    role: SeriesRole | None = Field(default=None, description="None before the first assembly")
    used: bool = Field(default=False, description="Whether the last prediction uses the series")
    rule: str = Field(default="", description="Name of the rule that decided; docs/dicom.md lists the rules")
    reason: str = Field(default="", description="The rule as a sentence")


class PullState(StrEnum):
    """State of a request to fetch a study."""

    WAITING = "waiting"
    DONE = "done"
    FAILED = "failed"


class StudyPull(_StudyModel):
    """The last request to fetch the study from an archive."""

    source: str = Field(description="Name of the archive")
    state: PullState
    reason: str | None = Field(default=None, description="Why it failed; docs/dicom.md lists the reasons")


class StudyPrediction(_StudyModel):
    """A prediction of a study; a later revision was made because its inputs had changed."""

    revision: int
    id: str
    why: str = Field(description="What made the revision: quiet, count, call, roles or clinical")
    created: datetime


class ReceivedStudy(_StudyModel):
    """A received study."""

    uid: str = Field(description="Study Instance UID (0020,000D)")
    state: StudyState
    created: datetime
    received: datetime | None = Field(default=None, description="When the last new instance arrived")
    due: datetime | None = Field(default=None, description="When the study is complete, unless more arrives")
    completed: str | None = Field(
        default=None,
        description="What completed the study: quiet, count, call, roles or clinical; None while it is received",
    )
    instances: int
    expected: int | None = Field(default=None, description="Number of instances that the sender has stated")
    conflicts: int = Field(description="Instances that were refused: a known SOP Instance UID with other bytes")
    clinical: bool = Field(description="Whether there is a clinical record")
    roles: dict[str, SeriesRole] = Field(default={}, description="Roles that a caller has stated, by series UID")
    series: list[StudySeries] = []
    predictions: list[StudyPrediction] = Field(default=[], description="Oldest first, without erased ones")
    error: Failure | None = Field(default=None, description="Why the study was refused")
    pull: StudyPull | None = Field(default=None, description="Whether it was fetched from an archive")


class StudyRecord(_StudyModel):
    """What became of a clinical record that was sent by accession number."""

    study: ReceivedStudy | None = Field(description="The study that it was joined to; null while it waits for one")
    kept_until: datetime | None = Field(
        default=None, description="When a waiting record is deleted, if no study with its accession number arrives"
    )


class ReceivedStudyPage(_StudyModel):
    """Page of studies; ``next`` is the cursor of the next page, None on the last page."""

    items: list[ReceivedStudy]
    next: str | None = None


class StudyRoles(RootModel[dict[str, SeriesRole]]):
    """Roles by Series Instance UID; a series that is not named has the role of the rules."""

    model_config = ConfigDict(
        json_schema_extra={"propertyNames": {"pattern": f"^{UID.pattern}$"}, "maxProperties": MAX_ROLES}
    )
