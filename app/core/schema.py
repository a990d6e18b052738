"""Base class of every part of a manifest: unknown members are refused, instances are immutable."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class FrozenModel(BaseModel):
    """An immutable pydantic model that refuses unknown members."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())
