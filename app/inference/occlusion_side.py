"""Detect the side of the occlusion in the images, if the record does not give it.

Design notes:
- Three signs, the most reliable first: delayed tissue on Tmax, low flow on rCBF, missing arteries on the vessel mask.
- The first sign that is clearly one-sided decides. If none is, the side stays unknown.
- Missing arteries need a high threshold; a lower one gives wrong sides (docs/benchmarks.md).
- Delay is measured in the whole anterior territory; arteries and flow around M1 and in the insula, where collaterals
  do not hide the occlusion.
- The side only names the sides of regions in an explanation; no network receives it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from app.imaging.model_grid import ChannelSpec, Grid
from app.inference.attribution import atlas
from app.sdk.clinical import Side
from app.sdk.types import Channel

DELAYED_TMAX_S = 6.0
MIN_DELAYED_ML = 5.0  # least delayed tissue for a decision
MIN_ASYMMETRY = {Channel.TMAX: 0.5, Channel.RCBF: 0.1, Channel.VESSELS: 0.3}  # least |left - right| / sum
_DEEP = ("MCA M1", "insula")
_ANTERIOR = (*_DEEP, "basal ganglia", "MCA M2-M3 superior", "MCA M2-M3 inferior")


def affected_side(
    image: NDArray[np.float32], presence: NDArray[np.bool_], channels: Sequence[ChannelSpec], grid: Grid
) -> tuple[Side, Channel] | None:
    """Return the side and the channel that shows it; None if no channel is clearly one-sided.

    ``image`` is (c, x, y, z), normalised as for the network; ``presence`` is (c,).
    """
    volumes = {
        spec.name: values * spec.std + spec.mean
        for spec, values, is_present in zip(channels, image, presence, strict=True)
        if is_present
    }
    labels = atlas.labels(grid.shape, grid.affine)

    def halves(names: Sequence[str]) -> list[NDArray[np.bool_]]:
        return [np.isin(labels, [atlas.NAMES.index(f"{side} {name}") for name in names]) for side in Side]

    millilitres = float(np.prod(grid.spacing_mm)) / 1000
    for channel, least in MIN_ASYMMETRY.items():
        if channel not in volumes:
            continue
        values = volumes[channel]
        if channel is Channel.TMAX:
            left, right = (float((values[side] > DELAYED_TMAX_S).sum()) * millilitres for side in halves(_ANTERIOR))
            if max(left, right) < MIN_DELAYED_ML:
                continue
        else:  # less flow or fewer arteries: the other side is affected
            right, left = (float(np.clip(values[side], 0, None).sum()) for side in halves(_DEEP))
        if left + right > 0 and abs(left - right) / (left + right) > least:
            return (Side.LEFT if left > right else Side.RIGHT), channel
    return None
