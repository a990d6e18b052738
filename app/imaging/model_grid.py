"""The voxel grid of a model version, and the normalisation of its channels."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from app.core.schema import FrozenModel
from app.sdk.types import Channel

MOST_VOXELS = 2**26  # of one channel: eight times a head at 1 mm
LARGEST_OFFSET_MM = 1000.0
LARGEST_VALUE = 1e6  # of a window, in units of the modality

Length = Annotated[int, Field(ge=2, le=1024)]
Row = tuple[float, float, float, float]


class Grid(FrozenModel):
    """Voxel grid in MNI152 space: voxel (i, j, k) lies at ``affine @ (i, j, k, 1)``, RAS+ millimetres."""

    template: Literal["mni152"] = "mni152"
    shape: tuple[Length, Length, Length]
    affine: tuple[Row, Row, Row, Row]

    @model_validator(mode="after")
    def _is_a_grid_over_the_head(self) -> Grid:
        if math.prod(self.shape) > MOST_VOXELS:
            raise ValueError(f"the grid has more than {MOST_VOXELS} voxels")
        if self.affine[3] != (0, 0, 0, 1):
            raise ValueError("the last row of the affine must be 0, 0, 0, 1")
        for axis, row in enumerate(self.affine[:3]):
            if any(step for column, step in enumerate(row[:3]) if column != axis):
                raise ValueError("the affine must be axis-aligned: only its diagonal and its last column are not 0")
            if not 0.1 <= abs(row[axis]) <= 100 or abs(row[3]) > LARGEST_OFFSET_MM:
                raise ValueError("the voxels of the grid must have edges of 0.1 to 100 mm and lie within 1 m")
        return self

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Lengths of the voxel edges: the diagonal, because the affine is axis-aligned."""
        return (abs(self.affine[0][0]), abs(self.affine[1][1]), abs(self.affine[2][2]))

    def divided(self, parts: int) -> Grid:
        """The grid of the ``parts`` parts of each voxel along each axis."""
        rows = [list(row) for row in self.affine]
        for axis in range(3):
            step = rows[axis][axis]
            rows[axis][axis] = step / parts
            rows[axis][3] -= step * (parts - 1) / (2 * parts)
        x, y, z = (length * parts for length in self.shape)
        return Grid.model_validate({"shape": (x, y, z), "affine": rows})


class ChannelSpec(FrozenModel):
    """How a channel is made: the highest value of each voxel's parts, clipped to ``window``, then (x - mean) / std.

    Window, mean and standard deviation are in units of the modality. An absent channel is 0.
    """

    name: Channel
    window: tuple[float, float]
    mean: float = Field(ge=-LARGEST_VALUE, le=LARGEST_VALUE)
    std: float = Field(ge=1e-6, le=LARGEST_VALUE)
    required: bool = False
    parts: int = Field(
        default=1,
        ge=1,
        le=4,
        description="Parts of a voxel along each axis, of which the channel has the highest value; 1: its own value",
    )

    @model_serializer(mode="wrap")
    def _only_divided(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out ``parts`` of an undivided channel, which earlier releases do not know."""
        document: dict[str, Any] = write(self)
        if self.parts == 1:
            document.pop("parts", None)
        return document

    @model_validator(mode="after")
    def _window_has_a_width(self) -> ChannelSpec:
        low, high = self.window
        if not -LARGEST_VALUE <= low < high <= LARGEST_VALUE:
            raise ValueError("the window must be a lower and a higher value")
        return self
