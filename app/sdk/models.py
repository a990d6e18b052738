"""What operators send and get about model versions: aliases with their history, and how a shadow compares."""

from __future__ import annotations

from datetime import datetime

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["Alias", "AliasDraft", "AliasMove", "ShadowReport"]


class _Answer(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", protected_namespaces=())


class AliasDraft(BaseModel):
    """Where an alias is to point."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: str = Field(pattern=r"^[0-9]+\.[0-9]+\.[0-9]+(-[0-9a-z.]+)?$", max_length=64)


class AliasMove(_Answer):
    """The alias came to mean ``version`` after ``previous``; none: it was new."""

    version: str
    previous: str | None = None
    at: datetime
    by: str


class Alias(_Answer):
    """A name for a version; ``history`` is every move of it, oldest first."""

    model: str
    alias: str
    version: str
    history: list[AliasMove] = []


class ShadowReport(_Answer):
    """What a version that was scored in the shadow would have said, beside what was answered by another.

    Differences are of the probability, shadow minus answered.
    """

    version: str
    answered: str
    scored: int
    failed: int
    agreed: int = Field(description="Scored predictions in which both decide alike")
    mean_difference: float | None = None
    mean_absolute_difference: float | None = None
    largest_difference: float | None = None
