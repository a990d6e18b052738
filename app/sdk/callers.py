"""Who the caller of the service is."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class CallerInfo(BaseModel):
    """Sender of a request, as the service knows it."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    name: str = Field(description="Name of the key, or of the person that a token identifies")
    tenant: str
    scopes: list[str]
    identified: bool = Field(description="Whether a key or token names the caller; else no key is required")
