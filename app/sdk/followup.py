"""Follow-up of a prediction: review by a clinician, and outcome of the thrombectomy.

Design notes:
- Reviewer and subject are pseudonyms of the site; a comment must not name a person.
- The service adds the author of a review: the name of the key or token that sent it.
- An override needs a coded reason, so that reasons can be counted.
- ``refractory`` is derived from the findings, so that the definition exists in one place.
"""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema, model_validator

from .errors import FieldError
from .etici import UNSUCCESSFUL, Etici, EticiField

__all__ = ["Etici", "Outcome", "OutcomeDraft", "Review", "ReviewDraft", "ReviewReason", "ReviewerVerdict", "Verdict"]

PSEUDONYM = r"^[A-Za-z0-9._-]{1,64}$"
REFRACTORY_STENOSIS = 50.0
"""Percent of the lumen; a final stenosis above this value is refractory."""


class Verdict(StrEnum):
    """Opinion of a reviewer on the decision."""

    AGREE = "agree"
    OVERRIDE = "override"


class ReviewReason(StrEnum):
    """Reason of an override."""

    IMAGE_QUALITY = "image-quality"
    WRONG_INPUT = "wrong-input"
    IMPLAUSIBLE_REASONS = "implausible-reasons"
    UNKNOWN_TO_THE_MODEL = "unknown-to-the-model"
    OTHER = "other"


class _Draft(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class ReviewDraft(_Draft):
    """Review of the decision of a prediction."""

    model_config = ConfigDict(
        json_schema_extra={
            "anyOf": [
                {"properties": {"verdict": {"const": "agree"}}},
                {"required": ["reason"], "properties": {"reason": {"type": "string"}}},
            ]
        }
    )

    reviewer: str | None = Field(
        default=None,
        pattern=PSEUDONYM,
        description="Pseudonym of the reviewer at the site; if not sent, the name of the caller's key or token",
    )
    # Not strict, so that Python code may write the words: ``ReviewDraft(verdict="agree")``.
    verdict: Verdict = Field(strict=False)
    reason: ReviewReason | None = Field(default=None, strict=False, description="Required for an override")
    comment: str = Field(default="", max_length=500, description="Free text without names of patients or other persons")

    @model_validator(mode="after")
    def _override_has_a_reason(self) -> ReviewDraft:
        if self.verdict is Verdict.OVERRIDE and self.reason is None:
            raise ValueError("an override needs a reason")
        return self


# A number between 0 and 1 is refused by ``fault_of``, at the edge: a record of an earlier release may hold one.
Stenosis = Annotated[
    float,
    Field(ge=0, le=100, allow_inf_nan=False),
    WithJsonSchema({"anyOf": [{"type": "number", "const": 0}, {"type": "number", "minimum": 1, "maximum": 100}]}),
]


class OutcomeDraft(_Draft):
    """Findings at the end of the thrombectomy."""

    etici: EticiField = Field(description="Other spellings are accepted: 2B, TICI 2b, eTICI 2b50, IIb")
    rescue_treatment: bool = Field(description="Rescue angioplasty or stenting was done")
    final_stenosis_percent: Stenosis | None = Field(
        default=None, description="Percent of the lumen: 0, or 1 to 100; null if it was not measured"
    )

    @property
    def refractory(self) -> bool | None:
        """Final stenosis > 50 %, eTICI 0-2a, or rescue treatment; None if only the unmeasured stenosis could decide."""
        if self.rescue_treatment or self.etici in UNSUCCESSFUL:
            return True
        if self.final_stenosis_percent is None:
            return None
        return self.final_stenosis_percent > REFRACTORY_STENOSIS


def fault_of(draft: OutcomeDraft) -> FieldError | None:
    """What cannot be right in an outcome: a stenosis above 0 and below 1 %, which no reader gives; it is a fraction."""
    if draft.final_stenosis_percent is None or not 0 < draft.final_stenosis_percent < 1:
        return None
    detail = "it is below 1 %, so it is probably a fraction; write percent, as 60 and not 0.6"
    return FieldError("final_stenosis_percent", detail)


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Review(_Record):
    """Stored review."""

    id: str
    reviewer: str
    author: str | None = Field(
        default=None, description="Name of the key or token that sent the review; null if none was needed"
    )
    verdict: Verdict
    reason: ReviewReason | None = None
    comment: str = ""
    created: datetime


class ReviewerVerdict(_Record):
    """Last verdict of one reviewer."""

    reviewer: str
    verdict: Verdict
    created: datetime


class Outcome(_Record):
    """Stored outcome; ``refractory`` is derived from the findings, and null if they do not decide it."""

    etici: Etici
    rescue_treatment: bool
    final_stenosis_percent: float | None = None
    refractory: bool | None = None
    recorded: datetime
