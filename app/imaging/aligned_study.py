"""Volumes of one patient with their maps to MNI space, to which the steps of ``preprocess`` add.

A volume keeps its own grid. Its origin says whether it was sent, or computed from what was sent.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from app.imaging.io.nifti import Volume
from app.imaging.registration import align, brain_mask
from app.sdk.types import Channel, Flag, Input

__all__ = ["AlignedStudy", "AlignedVolume", "PatientGrid", "Source"]


@dataclass(frozen=True)
class PatientGrid:
    """Voxel grid of a volume: ``affine`` (voxel -> RAS+ mm), shape, and ``mni_from_world`` (RAS+ mm -> MNI152 mm)."""

    affine: np.ndarray
    shape: tuple[int, int, int]
    mni_from_world: np.ndarray


@dataclass(frozen=True)
class Source:
    """Origin of a channel: ``factor`` times an upload, or a volume that was ``computed`` from uploads."""

    upload: Input | None = None
    factor: float = 1.0
    computed: Volume | None = None


@dataclass(frozen=True)
class AlignedVolume:
    """A volume with its map to MNI space, (4, 4) millimetres, its origin, and the intracranial space of a CT."""

    volume: Volume
    mni_from_world: np.ndarray
    source: Source = Source()
    coarse: align.Coarse | None = None

    @property
    def coverage(self) -> float:
        """Share of the brain in the field of view, 0 to 1."""
        return brain_mask.coverage(self.volume.affine, self.volume.shape, self.mni_from_world)


@dataclass
class AlignedStudy:
    """Aligned volumes, flags and lesion masks of one patient, which the steps of ``prepare`` add to."""

    aligned: dict[Channel, AlignedVolume] = field(default_factory=dict)
    flags: list[Flag] = field(default_factory=list)
    lesions: dict[str, Volume] = field(default_factory=dict)

    def flag(self, code: str, detail: str) -> None:
        self.flags.append(Flag(code=code, detail=detail))

    def has(self, code: str, volume: str = "") -> bool:
        """Whether there is a flag with this code, about the named volume if one is given."""
        return any(flag.code == code and flag.detail.startswith(volume) for flag in self.flags)

    @property
    def poorly_aligned(self) -> bool:
        """Whether places in MNI space are uncertain, which has its own flag."""
        return self.has("alignment-poor")

    def merge(self, other: AlignedStudy) -> None:
        self.aligned |= other.aligned
        self.flags += other.flags
        self.lesions |= other.lesions
