"""Types of the delivery of results to DICOM destinations."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum

from pydantic import BaseModel, ConfigDict, Field


class DeliveryState(StrEnum):
    """State of a delivery."""

    WAITING = "waiting"
    DELIVERED = "delivered"
    GIVEN_UP = "given-up"


class Delivery(BaseModel):
    """Delivery of the DICOM objects of a prediction to one destination."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    destination: str = Field(description="Name of the destination")
    state: DeliveryState = Field(description="waiting: it is sent or will be tried again")
    tries: int = Field(ge=0)
    reason: str | None = Field(default=None, description="Why the last try failed: refused-401, unreachable, ...")
    since: datetime = Field(description="When it was queued")
    changed: datetime = Field(description="When its last try ended")
