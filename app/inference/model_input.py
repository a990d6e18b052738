"""The input of a model version for one patient, made by prepare and used by predict and explain.

Design notes:
- Between worker steps it is stored as one safetensors file with its metadata as JSON; nothing is pickled.
- It carries everything that the answer must report about the input: flags, imputed fields, the patient's grids.
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
    from app.imaging.aligned_study import PatientGrid, Source
    from app.imaging.io.nifti import Volume


@dataclass(frozen=True)
class ModelInput:
    """One patient as a model version's input.

    Attributes:
        image: (c, x, y, z) float32 on the version's MNI grid, normalised; an absent channel is zero.
        presence: (c,) bool.
        clinical: (v,) float32, the clinical vector: values, missing bits, presence bits.
        shown: The record's values by variable; None if missing.
        grids: The patient's grid of each channel; a channel without one is shown on the MNI grid.
        sources: The upload or computation behind each of these channels.
        affected: The side of the occlusion; None if neither record nor images show it.
        lesions: Masks of the perfusion core (``core``) and of Tmax > 6 s (``tmax6``), uint8 on the grid of the maps.
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
    lesions: Mapping[str, Volume] = field(default_factory=dict)

    def to_bytes(self) -> bytes:
        """Serialise as one safetensors file."""
        tensors: dict[str, Any] = {"image": self.image, "presence": self.presence, "clinical": self.clinical}
        for channel, grid in self.grids.items():
            tensors[f"affine/{channel}"] = np.asarray(grid.affine, dtype=np.float64)
            tensors[f"mni/{channel}"] = np.asarray(grid.mni_from_world, dtype=np.float64)
        for channel, source in self.sources.items():
            if source.computed is not None:
                tensors[f"computed/{channel}"] = _flat(source.computed.data)
        for name, mask in self.lesions.items():
            tensors[f"lesion/{name}"] = _flat(mask.data)
            tensors[f"lesion-affine/{name}"] = np.asarray(mask.affine, dtype=np.float64)
        metadata = {
            "shown": dict(self.shown),
            "imputed": self.imputed,
            "flags": [flag.model_dump() for flag in self.flags],
            "perfusion": self.perfusion.model_dump() if self.perfusion else None,
            "affected": self.affected,
            "shapes": {channel: list(grid.shape) for channel, grid in self.grids.items()},
            "sources": {channel: [source.upload, source.factor] for channel, source in self.sources.items()},
            "lesions": {name: list(mask.shape) for name, mask in self.lesions.items()},
        }
        tensors["words"] = np.frombuffer(json.dumps(metadata).encode(), dtype=np.uint8)
        return bytes(save({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}))

    @classmethod
    def from_bytes(cls, data: bytes) -> ModelInput:
        """Read the file that ``to_bytes`` wrote."""
        tensors = load(data)
        metadata = json.loads(tensors["words"].tobytes())
        grids = {Channel(name): _grid(tensors, name, shape) for name, shape in metadata["shapes"].items()}
        return cls(
            image=tensors["image"],
            presence=tensors["presence"],
            clinical=tensors["clinical"],
            shown=metadata["shown"],
            imputed=tuple(metadata["imputed"]),
            flags=tuple(Flag(**flag) for flag in metadata["flags"]),
            perfusion=PerfusionSummary(**metadata["perfusion"]) if metadata["perfusion"] else None,
            grids=grids,
            affected=Side(metadata["affected"]) if metadata.get("affected") else None,
            sources={
                Channel(name): _source(tensors, grids[Channel(name)], name, *source)
                for name, source in metadata.get("sources", {}).items()
            },
            lesions={name: _lesion(tensors, name, shape) for name, shape in metadata.get("lesions", {}).items()},
        )


def _flat(values: NDArray[Any]) -> NDArray[Any]:
    """Flatten a volume in NIfTI's voxel order, and a mask to one bit per voxel."""
    flat = values.ravel(order="F")
    return np.packbits(flat) if values.dtype == np.uint8 else flat


def _grid(tensors: Mapping[str, NDArray[Any]], name: str, shape: list[int]) -> PatientGrid:
    # Imported here, because app.imaging takes seconds to import and an input without grids does not need it.
    from app.imaging.aligned_study import PatientGrid

    x, y, z = shape
    return PatientGrid(affine=tensors[f"affine/{name}"], shape=(x, y, z), mni_from_world=tensors[f"mni/{name}"])


def _lesion(tensors: Mapping[str, NDArray[Any]], name: str, shape: list[int]) -> Volume:
    from app.imaging.io.nifti import Volume

    flat = np.unpackbits(tensors[f"lesion/{name}"], count=math.prod(shape))
    return Volume(flat.reshape(shape, order="F"), tensors[f"lesion-affine/{name}"])


def _source(
    tensors: Mapping[str, NDArray[Any]], grid: PatientGrid, name: str, upload: str | None, factor: float
) -> Source:
    from app.imaging.aligned_study import Source
    from app.imaging.io.nifti import Volume

    if upload is not None:
        return Source(Input(upload), factor)
    flat = tensors[f"computed/{name}"]
    if flat.dtype == np.uint8:
        flat = np.unpackbits(flat, count=math.prod(grid.shape))
    return Source(computed=Volume(flat.reshape(grid.shape, order="F"), grid.affine))
