"""The voxel grid of a model version, and the normalisation of its channels."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from app.core.schema import FrozenModel
from app.sdk.types import Channel


class Grid(FrozenModel):
    """Voxel grid in MNI152 space: voxel (i, j, k) lies at ``affine @ (i, j, k, 1)``, RAS+ millimetres."""

    template: Literal["mni152"] = "mni152"
    shape: tuple[int, int, int]
    affine: tuple[tuple[float, float, float, float], ...]

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Lengths of the voxel edges: the diagonal, because the affine is axis-aligned."""
        return (abs(self.affine[0][0]), abs(self.affine[1][1]), abs(self.affine[2][2]))


class ChannelSpec(FrozenModel):
    """Normalisation of one channel: clip to ``window`` (units of the modality), then (x - mean) / std; 0 if absent."""

    name: Channel
    window: tuple[float, float]
    mean: float
    std: float = Field(gt=0)
    required: bool = False
