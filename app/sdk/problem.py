"""Problem details, the body of every refusal of the service."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class _Problem(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class ProblemField(_Problem):
    """Invalid field of a request."""

    field: str
    detail: str


class Problem(_Problem):
    """Problem details (RFC 9457) with the additional members of this service.

    ``prediction`` and ``prediction_url`` are there if the study was accepted and its prediction then failed or was
    cancelled; the record of the prediction remains.
    """

    type: str
    title: str
    status: int
    detail: str
    instance: str | None = None
    code: str
    trace_id: str | None = None
    errors: list[ProblemField] = []
    prediction: str | None = Field(default=None, description="Id of the prediction that ended with this problem")
    prediction_url: str | None = Field(default=None, description="Address of that prediction")
