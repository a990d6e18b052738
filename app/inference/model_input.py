"""One patient as a model version sees it, between prepare and predict.

Notable choices:
- It travels between worker steps as bytes: one safetensors file, what is not a tensor in it as JSON. No pickle.
- Everything that the answer must say about the input (flags, imputed fields, grids of the patient) travels with it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load, save

from app.inference.clinical_encoder import Value
from app.sdk.clinical import Side
from app.sdk.types import Channel, Flag, Input, PerfusionSummary

if TYPE_CHECKING:
    from app.imaging.preprocess import PatientGrid, Source


@dataclass(frozen=True)
class ModelInput:
    """What a version needs to know of one patient.

    ``image``: (c, x, y, z) float32 on the version's MNI grid, normalised, zero where the channel is absent.
    ``presence``: (c,) bool. ``clinical``: (v,) float32, the whole clinical vector (values, missing bits, presence
    bits). ``shown``: the record's values by variable, None where missing. ``grids``: each uploaded channel's own grid;
    a channel without one is shown on the MNI grid. ``sources``: what each of these channels was read from.
    ``affected``: the side of the occlusion, None where neither record nor images tell.
    """

    image: NDArray[np.float32]
    presence: NDArray[np.bool_]
    clinical: NDArray[np.float32]
    shown: Mapping[str, Value | None] = field(default_factory=dict)
    imputed: tuple[str, ...] = ()
    flags: tuple[Flag, ...] = ()
    perfusion: PerfusionSummary | None = None
    grids: Mapping[Channel, PatientGrid] = field(default_factory=dict)
    sources: Mapping[Channel, Source] = field(default_factory=dict)
    affected: Side | None = None

    def to_bytes(self) -> bytes:
        """The case as one safetensors file."""
        tensors: dict[str, Any] = {"image": self.image, "presence": self.presence, "clinical": self.clinical}
        for channel, grid in self.grids.items():
            tensors[f"affine/{channel}"] = np.asarray(grid.affine, dtype=np.float64)
            tensors[f"mni/{channel}"] = np.asarray(grid.mni_from_world, dtype=np.float64)
        for channel, source in self.sources.items():
            if source.computed is not None:
                tensors[f"computed/{channel}"] = _flat(source.computed.data)
        words = {
            "shown": dict(self.shown),
            "imputed": self.imputed,
            "flags": [flag.model_dump() for flag in self.flags],
            "perfusion": self.perfusion.model_dump() if self.perfusion else None,
            "affected": self.affected,
            "shapes": {channel: list(grid.shape) for channel, grid in self.grids.items()},
            "sources": {channel: [source.upload, source.factor] for channel, source in self.sources.items()},
        }
        tensors["words"] = np.frombuffer(json.dumps(words).encode(), dtype=np.uint8)
        return bytes(save({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}))

    @classmethod
    def from_bytes(cls, data: bytes) -> ModelInput:
        """The case that ``to_bytes`` wrote."""
        tensors = load(data)
        case = json.loads(tensors["words"].tobytes())
        grids = {Channel(name): _grid(tensors, name, shape) for name, shape in case["shapes"].items()}
        return cls(
            image=tensors["image"],
            presence=tensors["presence"],
            clinical=tensors["clinical"],
            shown=case["shown"],
            imputed=tuple(case["imputed"]),
            flags=tuple(Flag(**flag) for flag in case["flags"]),
            perfusion=PerfusionSummary(**case["perfusion"]) if case["perfusion"] else None,
            grids=grids,
            affected=Side(case["affected"]) if case.get("affected") else None,
            sources={
                Channel(name): _source(tensors, grids[Channel(name)], name, *source)
                for name, source in case.get("sources", {}).items()
            },
        )


def _flat(values: NDArray[Any]) -> NDArray[Any]:
    """A volume's voxels in NIfTI's order; a mask's as bits, an eighth of its bytes."""
    flat = values.ravel(order="F")
    return np.packbits(flat) if values.dtype == np.uint8 else flat


def _grid(tensors: Mapping[str, NDArray[Any]], name: str, shape: list[int]) -> PatientGrid:
    # Here, because the imaging room takes seconds to import, and a case without grids can do without it.
    from app.imaging.preprocess import PatientGrid

    x, y, z = shape
    return PatientGrid(affine=tensors[f"affine/{name}"], shape=(x, y, z), mni_from_world=tensors[f"mni/{name}"])


def _source(
    tensors: Mapping[str, NDArray[Any]], grid: PatientGrid, name: str, upload: str | None, factor: float
) -> Source:
    from app.imaging.io.nifti import Volume
    from app.imaging.preprocess import Source

    if upload is not None:
        return Source(Input(upload), factor)
    flat = tensors[f"computed/{name}"]
    if flat.dtype == np.uint8:
        flat = np.unpackbits(flat, count=math.prod(grid.shape))
    return Source(computed=Volume(flat.reshape(grid.shape, order="F"), grid.affine))
