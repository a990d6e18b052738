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


class CommitmentState(StrEnum):
    """What an archive says of the storage of a result (DICOM storage commitment)."""

    ASKED = "asked"
    COMMITTED = "committed"
    REFUSED = "refused"
    UNANSWERED = "unanswered"


class Delivery(BaseModel):
    """Delivery of the DICOM objects of a prediction to one destination."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    destination: str = Field(description="Name of the destination")
    state: DeliveryState = Field(description="waiting: it is sent or will be tried again")
    tries: int = Field(ge=0)
    reason: str | None = Field(default=None, description="Why the last try failed: refused-401, unreachable, ...")
    commitment: CommitmentState | None = Field(
        default=None, description="Storage commitment of the archive; null if the archive does not offer it"
    )
    commitment_reason: str | None = Field(
        default=None, description="Why storage is not committed: incomplete, failed-0112, refused-0110, ..."
    )
    since: datetime = Field(description="When it was queued")
    changed: datetime = Field(description="When its last try ended")
