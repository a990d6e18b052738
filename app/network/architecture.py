"""Options of a network, as its manifest names them; without torch, because the API process reads manifests."""

from __future__ import annotations

from enum import StrEnum

from pydantic import Field

from app.core.schema import FrozenModel


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
