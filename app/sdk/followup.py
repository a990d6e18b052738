"""What becomes of a prediction: a clinician's review, and the outcome of the thrombectomy once it is known.

Notable choices:
- A reviewer is a pseudonym of the site, as a subject is; a comment is for the model's makers and names nobody.
- Overriding needs a coded reason, so that it can be counted.
- Whether the occlusion was refractory is derived from the findings, never asked: the definition stands here once.
"""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum

from pydantic import BaseModel, ConfigDict, Field, model_validator

__all__ = ["Etici", "Outcome", "OutcomeDraft", "Review", "ReviewDraft", "ReviewReason", "Verdict"]

PSEUDONYM = r"^[A-Za-z0-9._-]{1,64}$"
REFRACTORY_STENOSIS = 50.0
"""Percent of the lumen; a final stenosis above it is refractory."""


class Verdict(StrEnum):
    AGREE = "agree"
    OVERRIDE = "override"


class ReviewReason(StrEnum):
    """Why a decision was overridden."""

    IMAGE_QUALITY = "image-quality"
    WRONG_INPUT = "wrong-input"
    IMPLAUSIBLE_REASONS = "implausible-reasons"
    UNKNOWN_TO_THE_MODEL = "unknown-to-the-model"
    OTHER = "other"


class Etici(StrEnum):
    """Reperfusion by the expanded Treatment In Cerebral Infarction scale."""

    NONE = "0"
    MINIMAL = "1"
    LESS_THAN_HALF = "2a"
    HALF = "2b50"
    TWO_THIRDS = "2b67"
    NEAR_COMPLETE = "2c"
    COMPLETE = "3"


class _Draft(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class ReviewDraft(_Draft):
    """What a reviewer thinks of a prediction's decision."""

    model_config = ConfigDict(
        json_schema_extra={
            "anyOf": [
                {"properties": {"verdict": {"const": "agree"}}},
                {"required": ["reason"], "properties": {"reason": {"type": "string"}}},
            ]
        }
    )

    reviewer: str = Field(pattern=PSEUDONYM, description="The site's pseudonym for the reviewer, never a name")
    verdict: Verdict
    reason: ReviewReason | None = Field(default=None, description="Needed to override")
    comment: str = Field(default="", max_length=500, description="Nothing that names a patient or a person")

    @model_validator(mode="after")
    def _override_has_a_reason(self) -> ReviewDraft:
        if self.verdict is Verdict.OVERRIDE and self.reason is None:
            raise ValueError("an override needs a reason")
        return self


class OutcomeDraft(_Draft):
    """The findings at the end of the thrombectomy."""

    etici: Etici
    rescue_treatment: bool = Field(description="Rescue angioplasty or stenting was done")
    final_stenosis_percent: float | None = Field(
        default=None, ge=0, le=100, allow_inf_nan=False, description="Of the lumen; null where it was not measured"
    )

    @property
    def refractory(self) -> bool | None:
        """Final stenosis over 50 %, eTICI 0-2a, or rescue treatment; None where only the stenosis could tell."""
        if self.rescue_treatment or self.etici in (Etici.NONE, Etici.MINIMAL, Etici.LESS_THAN_HALF):
            return True
        if self.final_stenosis_percent is None:
            return None
        return self.final_stenosis_percent > REFRACTORY_STENOSIS


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Review(_Record):
    """A review on record."""

    id: str
    reviewer: str
    verdict: Verdict
    reason: ReviewReason | None = None
    comment: str = ""
    created: datetime


class Outcome(_Record):
    """An outcome on record; ``refractory`` is derived from the findings, and null where they leave it open."""

    etici: Etici
    rescue_treatment: bool
    final_stenosis_percent: float | None = None
    refractory: bool | None = None
    recorded: datetime
