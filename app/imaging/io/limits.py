"""Limits of an uploaded volume, and the errors that refuse it: the upload field and what is wrong."""

from __future__ import annotations

from dataclasses import dataclass

from app.sdk.errors import DecompressedTooLarge, FieldError, InvalidVolume
from app.sdk.types import Input

__all__ = ["DEFAULT", "Limits", "invalid", "too_large"]


@dataclass(frozen=True)
class Limits:
    """Limits that are checked before memory is allocated.

    Attributes:
        max_bytes: size of the whole file, inflated.
        max_offset: bytes of header and extensions before the voxels.
        max_distance_mm: distance of any voxel from the world origin.
    """

    max_voxels: int = 512_000_000
    max_bytes: int = 4 << 30
    max_offset: int = 1 << 20
    min_spacing_mm: float = 0.02
    max_spacing_mm: float = 50.0
    max_distance_mm: float = 10_000.0


DEFAULT = Limits()


def invalid(field: Input, detail: str) -> InvalidVolume:
    """Error for the file that was sent as ``field``; ``detail`` completes the sentence "the file ..."."""
    return InvalidVolume(f"{field.value}: the file {detail}", errors=[FieldError(field.value, f"the file {detail}")])


def too_large(field: Input, detail: str) -> DecompressedTooLarge:
    """Error for a file above a limit; ``detail`` as in ``invalid``."""
    errors = [FieldError(field.value, f"the file {detail}")]
    return DecompressedTooLarge(f"{field.value}: the file {detail}", errors=errors)
