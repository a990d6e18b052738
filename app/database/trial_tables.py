"""Tables of silent trials: protocol, sealed answers, and looks.

Design notes:
- `trial_entries` has one row for each prediction of a trial, from its acceptance on. ``sealed`` is ciphertext that two
  key holders open together (`app.core.two_key_sealing`); the service cannot.
- An erasure of the prediction deletes its row. `predictions.trial` stays, so erased patients are counted.
- A look stores counts and its verdict, and no estimate.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import ForeignKey, Integer, LargeBinary, String, false
from sqlalchemy.orm import Mapped, mapped_column

from app.database.tables import Base


class TrialRow(Base):
    """A silent trial with its frozen protocol; it runs until ``stopped``."""

    __tablename__ = "trials"

    name: Mapped[str] = mapped_column(String(63), primary_key=True)
    hash: Mapped[str] = mapped_column(String(64))
    protocol: Mapped[dict[str, Any]]
    created: Mapped[datetime]
    stopped: Mapped[datetime | None]
    stop_reason: Mapped[str | None] = mapped_column(String(500))
    unsealed: Mapped[datetime | None]  # first final report


class TrialEntryRow(Base):
    """A prediction of a trial: its sealed answer, and when its outcome was entered and changed."""

    __tablename__ = "trial_entries"

    prediction_id: Mapped[str] = mapped_column(ForeignKey("predictions.id"), primary_key=True)
    trial: Mapped[str] = mapped_column(ForeignKey("trials.name"), index=True)
    sealed: Mapped[bytes | None] = mapped_column(LargeBinary)
    outcome_entered: Mapped[datetime | None]
    outcome_changes: Mapped[int] = mapped_column(Integer, default=0, server_default="0")
    changed_unsealed: Mapped[bool] = mapped_column(default=False, server_default=false())


class TrialLookRow(Base):
    """A look of a trial that was made."""

    __tablename__ = "trial_looks"

    trial: Mapped[str] = mapped_column(ForeignKey("trials.name"), primary_key=True)
    number: Mapped[int] = mapped_column(Integer, primary_key=True)
    at: Mapped[datetime]
    patients: Mapped[int] = mapped_column(Integer)
    events: Mapped[int] = mapped_column(Integer)
    verdict: Mapped[str] = mapped_column(String(16))
