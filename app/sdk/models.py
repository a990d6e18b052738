"""Types of the model registry: aliases with their history, and shadow reports."""

from __future__ import annotations

from datetime import datetime

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["Alias", "AliasDraft", "AliasMove", "ShadowReport"]


class _RegistryModel(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", protected_namespaces=())


class AliasDraft(BaseModel):
    """New target of an alias."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: str = Field(pattern=r"^[0-9]+\.[0-9]+\.[0-9]+(-[0-9a-z.]+)?$", max_length=64)


class AliasMove(_RegistryModel):
    """Move of an alias from ``previous`` (None for a new alias) to ``version``."""

    version: str
    previous: str | None = None
    at: datetime
    by: str


class Alias(_RegistryModel):
    """Alias of a version; ``history`` lists all moves, oldest first."""

    model: str
    alias: str
    version: str
    history: list[AliasMove] = []


class ShadowReport(_RegistryModel):
    """Comparison of a shadow version with the version that was answered.

    Differences are those of the probability, shadow minus answered.
    """

    version: str
    answered: str
    scored: int
    failed: int
    decided: int = Field(default=0, description="Scored predictions with a decision, which is not withheld")
    agreed: int = Field(description="Scored predictions with the same decision of both versions")
    mean_difference: float | None = None
    mean_absolute_difference: float | None = None
    largest_difference: float | None = None
