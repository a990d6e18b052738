"""Types of a DICOM study in an answer: what each series was taken for, and why."""

from __future__ import annotations

from enum import StrEnum

from pydantic import BaseModel, ConfigDict, Field


class SeriesRole(StrEnum):
    """What a series is taken for: the name of an upload, or other."""

    NCCT = "ncct"
    CTA = "cta"
    CTP = "ctp"
    TMAX = "tmax"
    CBF = "cbf"
    CBV = "cbv"
    MTT = "mtt"
    VESSELS = "vessels"
    OTHER = "other"


class SeriesSummary(BaseModel):
    """One series of a DICOM study; its UID and its texts are not stored.

    A series with several images of different geometry is listed once for each of them, with ``part``.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    number: int | None = Field(default=None, description="Series Number (0020,0011)")
    part: int | None = Field(default=None, description="1, 2, ... if the series holds several volumes")
    modality: str = Field(default="", description="Modality (0008,0060)")
    images: int = Field(description="Number of slices, or of objects without an image")
    role: SeriesRole
    used: bool = Field(description="Whether the prediction uses the series")
    rule: str = Field(description="Name of the rule that decided; docs/dicom.md lists the rules")
    reason: str = Field(description="The rule as a sentence")
