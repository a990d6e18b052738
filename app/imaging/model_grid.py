"""The common voxel grid of a model version and the normalisation of its channels."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from app.core.schema import FrozenModel
from app.sdk.types import Channel


class Grid(FrozenModel):
    """The common grid: voxel (i, j, k) lies at ``affine @ (i, j, k, 1)``, MNI152 RAS+ millimetres."""

    template: Literal["mni152"] = "mni152"
    shape: tuple[int, int, int]
    affine: tuple[tuple[float, float, float, float], ...]

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Lengths of the voxel edges; the affine is axis-aligned, so its diagonal."""
        return (abs(self.affine[0][0]), abs(self.affine[1][1]), abs(self.affine[2][2]))


class ChannelSpec(FrozenModel):
    """One channel: clip to ``window`` (in the modality's own units), then (x - mean) / std; 0 where absent."""

    name: Channel
    window: tuple[float, float]
    mean: float
    std: float = Field(gt=0)
    required: bool = False
