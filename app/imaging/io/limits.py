"""What a volume may claim, and how one is refused: which field it was sent as, and what is wrong, in one sentence."""

from __future__ import annotations

from dataclasses import dataclass

from app.sdk.errors import DecompressedTooLarge, FieldError, InvalidVolume
from app.sdk.types import Input

__all__ = ["DEFAULT", "Limits", "invalid", "too_large"]


@dataclass(frozen=True)
class Limits:
    """Checked before anything is allocated.

    :ivar max_bytes: of the whole file, inflated
    :ivar max_offset: bytes of header and extensions before the voxels
    :ivar max_distance_mm: of any voxel from the origin of the world
    """

    max_voxels: int = 512_000_000
    max_bytes: int = 4 << 30
    max_offset: int = 1 << 20
    min_spacing_mm: float = 0.02
    max_spacing_mm: float = 50.0
    max_distance_mm: float = 10_000.0


DEFAULT = Limits()


def invalid(field: Input, detail: str) -> InvalidVolume:
    """The refusal of the file sent as ``field``; ``detail`` goes on where "the file" left off."""
    return InvalidVolume(f"{field.value}: the file {detail}", errors=[FieldError(field.value, f"the file {detail}")])


def too_large(field: Input, detail: str) -> DecompressedTooLarge:
    """The same for a file beyond a limit."""
    errors = [FieldError(field.value, f"the file {detail}")]
    return DecompressedTooLarge(f"{field.value}: the file {detail}", errors=errors)
