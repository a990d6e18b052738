"""Options of a network, as its manifest names them; without torch, because the API process reads manifests."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import Field

from app.core.schema import FrozenModel

TRUNK_STRIDE = 8
"""Voxels of the image per voxel of the trunk's features, along each axis."""


class Fusion(StrEnum):
    """How the clinical vector is combined with the image features."""

    NONE = "none"
    CONCAT = "concat"
    FILM = "film"
    DAFT = "daft"


class Location(StrEnum):
    """Point of the last residual block at which the features are modulated (0..4 in the DAFT paper's code)."""

    BLOCK_INPUT = "block-input"
    SHORTCUT = "shortcut"
    RESIDUAL_INPUT = "residual-input"
    AFTER_NORM = "after-norm"
    AFTER_ACTIVATION = "after-activation"


class ScaleActivation(StrEnum):
    """Activation of the modulation's scale."""

    LINEAR = "linear"
    TANH = "tanh"
    SIGMOID = "sigmoid"


Start = Annotated[int, Field(ge=0, le=1024, multiple_of=TRUNK_STRIDE)]
Size = Annotated[int, Field(ge=TRUNK_STRIDE, le=1024, multiple_of=TRUNK_STRIDE)]


class BoxPath(FrozenModel):
    """Second image path: a box of the image, read without pooling at its start, for signs of a few voxels."""

    start: tuple[Start, Start, Start] = Field(description="First voxel of the box along each axis of the image")
    size: tuple[Size, Size, Size] = Field(description="Voxels of the box along each axis")
    filters: int = Field(default=16, ge=1, le=256, description="Filters of its stem; its features have 4 f channels")
    marks: int = Field(
        default=0, ge=0, le=256, description="Channels of a third path over the same box, which marks the clot; 0: none"
    )

    @property
    def slices(self) -> tuple[slice, slice, slice]:
        """Voxel ranges of the box in the image."""
        x, y, z = (slice(start, start + size) for start, size in zip(self.start, self.size, strict=True))
        return x, y, z

    @property
    def channels(self) -> int:
        """Channels of the features of the box."""
        return 4 * self.filters + self.marks


class Architecture(FrozenModel):
    """A 3-D ResNet with (or without) modulation of its last block by the clinical vector."""

    fusion: Fusion = Fusion.DAFT
    in_channels: int = Field(ge=1, le=16)
    clinical_size: int = Field(default=15, ge=0, le=4096)
    outputs: int = Field(default=1, ge=1, le=16)
    filters: int = Field(default=4, ge=1, le=256, description="Filters of the stem; blocks have f, 2f, 4f, 8f")
    stride: int = Field(default=2, ge=1, le=8, description="Stride of the last, modulated block")
    location: Location = Location.BLOCK_INPUT
    activation: ScaleActivation = ScaleActivation.LINEAR
    scale: bool = True
    shift: bool = True
    bottleneck: int = Field(default=7, ge=1, le=4096)
    box: BoxPath | None = Field(default=None, description="Second image path; null: one path over the whole image")

    @property
    def trunk_channels(self) -> int:
        """Channels of the trunk's features: those of the whole image, then those of the box."""
        return 4 * self.filters + (self.box.channels if self.box else 0)

    @property
    def pooled_channels(self) -> int:
        """Channels of the last block's output."""
        return 8 * self.filters
