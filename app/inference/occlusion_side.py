"""Find the side of the occlusion in the images, and compare it with the side in the record.

Design notes:
- Three signs, the most reliable first: delayed tissue on Tmax, low flow on rCBF, missing arteries on the vessel mask.
- The record's side is used. Without it, the first sign that is clearly one-sided decides.
- If two known sides differ, one source is wrong. The side then stays unknown, with a warning.
- The regions are those of an earlier atlas, with which the thresholds were measured and versions were trained: another
  region of the carotid would change what side is found, and so the answer of a version that mirrors the images.
- Missing arteries need a high threshold; a lower one gives wrong sides (docs/benchmarks.md).
- Delay is measured in the whole anterior territory; arteries and flow around M1 and in the insula, where collaterals
  do not hide the occlusion.
- The side names the sides of regions in an explanation. It is no variable of a network, but a version whose reference
  head is side-aligned mirrors the images of a left-sided occlusion.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from app.imaging.model_grid import ChannelSpec, Grid, Row
from app.inference.attribution import atlas
from app.sdk.clinical import Side
from app.sdk.types import Channel, Flag

DELAYED_TMAX_S = 6.0
MIN_DELAYED_ML = 5.0  # least delayed tissue for a decision
MIN_ASYMMETRY = {Channel.TMAX: 0.5, Channel.RCBF: 0.1, Channel.VESSELS: 0.3}  # least |left - right| / sum
MIN_SEEN = 0.5  # least share of the deep territory with a value on both sides, for relative CBF
NO_FLOW = 0.02  # relative CBF of a voxel without data
_DEEP = ("MCA M1", "insula")
_ANTERIOR = (*_DEEP, "basal ganglia", atlas.SUPERIOR, atlas.INFERIOR)


def compare(recorded: Side | None, shown: Mapping[Channel, Side]) -> tuple[Side | None, list[Flag]]:
    """Return the side of the occlusion and the flags about it.

    Args:
        recorded: side in the clinical record.
        shown: side that each channel shows, the most reliable channel first, as from ``shown_sides``.
    """
    sides = {"the record": recorded} if recorded else {}
    sides |= {str(channel): side for channel, side in shown.items()}
    if len(set(sides.values())) > 1:
        stated = ", ".join(f"{source} {side}" for source, side in sides.items())
        detail = f"the sides of the occlusion differ ({stated}); check the header of each volume and the record"
        return None, [Flag(code="side-contradiction", detail=detail)]
    if recorded or not shown:
        return recorded, []
    channel, side = next(iter(shown.items()))
    detail = f"occlusion_side is not given; {channel} shows the occlusion on the {side}"
    return side, [Flag(code="side-from-images", detail=detail)]


def shown_sides(
    image: NDArray[np.float32], presence: NDArray[np.bool_], channels: Sequence[ChannelSpec], grid: Grid
) -> dict[Channel, Side]:
    """Return the side that each clearly one-sided channel shows, the most reliable channel first.

    ``image`` is (c, x, y, z), normalised as for the network; ``presence`` is (c,).
    """
    volumes = {
        spec.name: values * spec.std + spec.mean
        for spec, values, is_present in zip(channels, image, presence, strict=True)
        if is_present
    }
    millilitres = float(np.prod(grid.spacing_mm)) / 1000
    shown = {}
    for channel, least in MIN_ASYMMETRY.items():
        if channel not in volumes:
            continue
        values = volumes[channel]
        if channel is Channel.TMAX:
            left, right = (
                float((values[side] > DELAYED_TMAX_S).sum()) * millilitres
                for side in _halves(grid.shape, grid.affine, _ANTERIOR)
            )
            if max(left, right) < MIN_DELAYED_ML:
                continue
        else:  # less flow or fewer arteries: the other side is affected
            deep = list(_halves(grid.shape, grid.affine, _DEEP))
            if channel is Channel.RCBF:
                seen = _seen_on_both_sides(values, grid)
                if any(np.mean(seen[side]) < MIN_SEEN for side in deep):
                    continue
                deep = [side & seen for side in deep]
            right, left = (float(np.clip(values[side], 0, None).sum()) for side in deep)
        if left + right > 0 and abs(left - right) / (left + right) > least:
            shown[channel] = Side.LEFT if left > right else Side.RIGHT
    return shown


@lru_cache(maxsize=8)
def _halves(
    shape: tuple[int, int, int], affine: tuple[Row, Row, Row, Row], names: tuple[str, ...]
) -> tuple[NDArray[np.bool_], ...]:
    """Voxels (x, y, z) of these regions on each side; kept, because every prepared tensor needs them."""
    labels = atlas.labels(shape, affine, atlas.BEFORE)
    return tuple(np.isin(labels, [atlas.NAMES.index(f"{side} {name}") for name in names]) for side in Side)


def _seen_on_both_sides(values: NDArray[np.float32], grid: Grid) -> NDArray[np.bool_]:
    """Voxels (x, y, z) of a map that have a value there and at the mirrored place, because a tilted slab is uneven."""
    seen = values > NO_FLOW
    to_x, shape = np.asarray(grid.affine, np.float64)[0], grid.shape
    if abs(2 * to_x[3] + (shape[0] - 1) * to_x[0]) < abs(to_x[0]) / 2:  # the grid is symmetric about the midplane
        seen &= seen[::-1]
    return seen
