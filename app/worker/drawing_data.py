"""The stored data of the figures and the report of one prediction.

Design notes:
- `app.worker.artifacts` stores the data with the answer. Figures and report follow from stored bytes alone, so each
  drawing gives the same bytes, also after the model version is removed.
"""

from __future__ import annotations

from collections.abc import Iterable

from pydantic import BaseModel, ConfigDict

from app.sdk.types import Channel, Prediction

DATA = "drawing.json"
"""Name of the artifact with the data."""


class OverlayData(BaseModel):
    """The overlay of one channel; ``window`` holds its values for black and white (HU, s or ratio)."""

    model_config = ConfigDict(frozen=True)
    channel: Channel
    window: tuple[float, float]
    title: str


class PositionData(BaseModel):
    """Value of one variable, and those of the background patients, in standard deviations from their mean."""

    model_config = ConfigDict(frozen=True)
    name: str
    value_text: str
    patient: float
    others: list[float]


class ScoreData(BaseModel):
    """One published score of the patient: its points, the items that are missing, and its source."""

    model_config = ConfigDict(frozen=True)
    name: str
    points: str
    missing: list[str]
    source: str


class DrawingData(BaseModel):
    """Everything that figures and report show, except the images: ``card`` is the model card, Markdown."""

    model_config = ConfigDict(frozen=True)
    prediction: Prediction
    overlays: list[OverlayData]
    positions: list[PositionData]
    card: str
    scores: list[ScoreData] = []


def wanted(names: Iterable[str]) -> list[str]:
    """Names of the artifacts that figures and report are drawn from."""
    return [name for name in names if name == DATA or name.startswith("maps/aligned-")]
