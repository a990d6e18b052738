"""The reference head of a version: which voxels its network sees, and relative to what.

Design notes:
- A network sees the intracranial space only, and there the difference to the mean training head. So a skull, a scalp or
  air cannot change a prediction, and no part of an explanation lies on them.
- Zero is the mean head. An absent channel is zero too: it shows nothing that differs from the mean.
- With ``side_aligned``, heads whose left side is affected are mirrored, so that the network always finds the affected
  side on the right. Without a known side a head stays as it is.
- The file is safetensors: ``mask`` (x, y, z) uint8, ``mean`` (c, voxels of the mask) float16, normalised as the image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from app.sdk.clinical import Side

Image = NDArray[np.float32]  # (c, x, y, z)


@dataclass(frozen=True)
class ReferenceHead:
    """Mask (x, y, z) of the intracranial space and mean head (c, x, y, z) float32, zero outside the mask."""

    mask: NDArray[np.bool_]
    mean: Image
    side_aligned: bool = True

    def is_mirrored(self, affected: Side | None) -> bool:
        """Whether a head with this affected side is mirrored along the first axis."""
        return self.side_aligned and affected is Side.LEFT

    def to_network(self, image: Image, presence: NDArray[np.bool_], *, mirrored: bool) -> Image:
        """Return what the network sees of a normalised image: the difference to the mean head, inside the mask."""
        seen = image[:, ::-1] if mirrored else image
        seen = (seen - self.mean) * self.mask
        seen[~presence] = 0
        return np.ascontiguousarray(seen, np.float32)

    def only(self, channels: Sequence[int]) -> ReferenceHead:
        """The reference head of these channels."""
        return replace(self, mean=self.mean[list(channels)])

    def to_bytes(self) -> bytes:
        """Serialise mask and mean as one safetensors file."""
        mean = self.mean[:, self.mask].astype(np.float16)
        return bytes(save({"mask": self.mask.astype(np.uint8), "mean": np.ascontiguousarray(mean)}))

    @classmethod
    def from_bytes(cls, data: bytes, shape: tuple[int, int, int, int], *, side_aligned: bool = True) -> ReferenceHead:
        """Read the file that ``to_bytes`` wrote, for images of ``shape`` (c, x, y, z).

        Raises:
            ValueError: The file is damaged, or it belongs to another grid or to other channels.
        """
        try:
            tensors = load(data)
            mask, inside = tensors["mask"] > 0, tensors["mean"]
        except (SafetensorError, KeyError) as error:
            raise ValueError("the file holds no reference head") from error
        if mask.shape != shape[1:] or inside.shape != (shape[0], int(mask.sum())):
            raise ValueError("the reference head has another grid or other channels than the version")
        if not np.isfinite(inside).all():
            raise ValueError("the mean head holds numbers that are not finite")
        mean = np.zeros(shape, np.float32)
        mean[:, mask] = inside
        return cls(mask, mean, side_aligned)
