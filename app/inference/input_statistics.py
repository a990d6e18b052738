"""Statistics of the prepared images of one patient, by which a new patient and the training patients are compared.

Design notes:
- Training and serving use the same ``InputMeter``, on normalised images as ``prepare`` makes them.
- Everything is measured inside the intracranial mask of the reference head, where the network looks, and in units of
  the modality. Values at the lower end of a channel's window count as no data: air outside the field of view, and
  perfusion maps outside their slab.
- A statistic belongs to a group: a channel, or two channels. Groups with an absent channel are left out.
- No statistic depends on the side of the occlusion.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from app.imaging.model_grid import ChannelSpec, Grid
from app.inference.reference_head import ReferenceHead
from app.sdk.types import Channel

Values = NDArray[np.float32]
Bits = NDArray[np.bool_]
Statistics = dict[str, dict[str, float]]
"""Statistics by group (``ncct``, ``tmax+rcbf``), then by name (``median``), in units of the modality."""

LEAST_VOXELS = 50  # with data; with fewer, a channel has only its share without data
DEEP_VOXELS = 2  # distance from the edge of the mask beyond which no skull is
LEAST_VESSELS_ML, LEAST_SHARE = 0.5, 0.05  # share of a voxel that the mask fills
DELAYED_S, CORE_RCBF = 6.0, 0.3


class InputMeter:
    """Measures the statistics of patients; the constructor does the work that is the same for all of them."""

    def __init__(self, channels: Sequence[ChannelSpec], grid: Grid, reference: ReferenceHead) -> None:
        self.channels = tuple(channels)
        self.voxel_ml = float(np.prod(grid.spacing_mm)) / 1000
        self.mask = np.flatnonzero(reference.mask)
        numbers = np.arange(reference.mask.size).reshape(reference.mask.shape)
        self.mirrored = np.ascontiguousarray(numbers[::-1]).ravel()[self.mask]
        inside = ndimage.binary_erosion(reference.mask, iterations=DEEP_VOXELS)
        self.deep = np.flatnonzero(inside)
        _, y, z = reference.mask.shape
        self.neighbours = self.deep + np.array([1, -1, z, -z, y * z, -y * z])[:, None]
        self.means = [mean.ravel() for mean in reference.mean]
        self.mean_details = [self.detail(mean) for mean in self.means]
        self.is_low = numbers.ravel()[self.mask] < reference.mask.size // 2

    def detail(self, values: Values) -> Values:
        """Differences (deep voxels,) of values (voxels,) to the mean of their six neighbours."""
        return np.asarray(values[self.deep] - values[self.neighbours].mean(axis=0), np.float32)

    def measure(self, image: Values, presence: Bits) -> Statistics:
        """Measure one patient: image (c, x, y, z), normalised, and presence (c,); absent channels are not measured."""
        shown: dict[Channel, _Shown] = {}
        found: Statistics = {}
        for index, spec in enumerate(self.channels):
            if presence[index]:
                values = image[index].ravel().astype(np.float32) * np.float32(spec.std) + np.float32(spec.mean)
                values = np.clip(values, *spec.window)  # a tensor that was sent prepared may leave the window
                one = shown[spec.name] = _Shown(self, values, index)
                found[str(spec.name)] = _ALONE[spec.name](one)
        for pair, together in _TOGETHER.items():
            if all(name in shown for name in pair):
                found["+".join(pair)] = together(*(shown[name] for name in pair))
        return found


class _Shown:
    """Channel ``index`` of one patient: ``values`` (voxels,) in its unit, and the mean head ``mean`` (voxels,)."""

    def __init__(self, meter: InputMeter, values: Values, index: int) -> None:
        self.meter, self.values = meter, values
        self.mean, self.mean_detail = meter.means[index], meter.mean_details[index]
        low, high = meter.channels[index].window
        self.has_data = values > low + 1e-3 * (high - low)

    @cached_property
    def seen(self) -> NDArray[np.int64]:
        """Voxels of the mask that have data."""
        return self.meter.mask[self.has_data[self.meter.mask]]

    @cached_property
    def inner(self) -> Bits:
        """Deep voxels that have data, and whose neighbours have."""
        return np.asarray(
            self.has_data[self.meter.deep] & self.has_data[self.meter.neighbours].all(axis=0), dtype=np.bool_
        )

    @cached_property
    def _detail(self) -> Values:
        return self.meter.detail(self.values)[self.inner]

    def share_without_data(self) -> float:
        return 1 - len(self.seen) / max(len(self.meter.mask), 1)

    def percentiles(self) -> dict[str, float]:
        low, middle, high = np.percentile(self.values[self.seen], [10, 50, 90]).tolist()
        return {"p10": low, "median": middle, "p90": high}

    def deep_percentiles(self) -> dict[str, float]:
        values = self.values[self.meter.deep][self.inner]
        if len(values) < LEAST_VOXELS:
            return {}
        low, high = np.percentile(values, [10, 90]).tolist()
        return {"deep-p10": low, "deep-p90": high}

    def volume_ml(self, chosen: Callable[[Values], Bits]) -> float:
        return float(chosen(self.values[self.seen]).sum()) * self.meter.voxel_ml

    def texture(self) -> float:
        """Standard deviation of the detail."""
        return float(self._detail.std()) if self._detail.size else 0.0

    def pattern(self) -> float:
        """Correlation of the detail with that of the mean head."""
        return _correlation(self._detail, self.mean_detail[self.inner])

    def asymmetry(self) -> float:
        """Mean absolute difference between the sides, where both have data."""
        other = self.meter.mirrored
        both = self.has_data[self.meter.mask] & self.has_data[other]
        differences = np.abs(self.values[self.meter.mask] - self.values[other])[both]
        return float(differences.mean()) if differences.size else 0.0

    def likeness(self) -> float:
        """Correlation with the mean head."""
        return _correlation(self.values[self.seen], self.mean[self.seen])


def _correlation(one: Values, two: Values) -> float:
    """Pearson's correlation of (n,) with (n,); 0 if one of them is constant."""
    if len(one) < LEAST_VOXELS or min(one.std(), two.std()) < 1e-6:
        return 0.0
    return float(np.corrcoef(one, two)[0, 1])


def _image(one: _Shown, more: Callable[[_Shown], dict[str, float]]) -> dict[str, float]:
    found = {"no-data": one.share_without_data()}
    if len(one.seen) < LEAST_VOXELS:
        return found
    common = {"texture": one.texture(), "asymmetry": one.asymmetry(), "likeness": one.likeness()}
    return found | one.percentiles() | common | more(one)


def _ct(one: _Shown) -> dict[str, float]:
    return one.deep_percentiles() | {"pattern": one.pattern()}


def _vessels(one: _Shown) -> dict[str, float]:
    mask, low = one.values[one.meter.mask], one.meter.is_low
    sides = [float(mask[side].sum()) * one.meter.voxel_ml for side in (low, ~low)]
    marked = mask[mask > LEAST_SHARE]
    return {
        "volume": sum(sides),
        "thickness": float(marked.mean()) if marked.size else 0.0,
        "asymmetry": abs(float(np.log((sides[0] + LEAST_VESSELS_ML) / (sides[1] + LEAST_VESSELS_ML)))),
        "likeness": _correlation(mask, one.mean[one.meter.mask]),
    }


_ALONE: Mapping[Channel, Callable[[_Shown], dict[str, float]]] = {
    Channel.NCCT: lambda one: _image(one, _ct),
    Channel.CTA: lambda one: _image(one, _ct),
    Channel.VESSELS: _vessels,
    Channel.TMAX: lambda one: _image(one, lambda tmax: {"delayed": tmax.volume_ml(lambda s: s > DELAYED_S)}),
    Channel.RCBF: lambda one: _image(one, lambda rcbf: {"low": rcbf.volume_ml(lambda share: share < CORE_RCBF)}),
}


def _both(one: _Shown, two: _Shown) -> tuple[Values, Values]:
    """Values (n,) of two channels where both have data."""
    place = one.seen[two.has_data[one.seen]]
    return one.values[place], two.values[place]


def _cts(ncct: _Shown, cta: _Shown) -> dict[str, float]:
    plain, enhanced = _both(ncct, cta)
    if len(plain) < LEAST_VOXELS:
        return {}
    return {"likeness": _correlation(plain, enhanced), "difference": float(np.median(enhanced - plain))}


def _contrast(cta: _Shown, vessels: _Shown) -> dict[str, float]:
    density, share = cta.values[cta.seen], vessels.values[cta.seen]
    if len(density) < LEAST_VOXELS or share.sum() * cta.meter.voxel_ml < LEAST_VESSELS_ML:
        return {}
    return {"contrast": float((density * share).sum() / share.sum() - np.median(density))}


def _maps(tmax: _Shown, rcbf: _Shown) -> dict[str, float]:
    late, _ = _both(tmax, rcbf)
    if len(late) < LEAST_VOXELS:
        return {}
    overlap = 2 * len(late) / (len(tmax.seen) + len(rcbf.seen))
    deep = tmax.inner & rcbf.inner  # at the edge of the brain both maps are low
    delay, flow = (one.values[one.meter.deep][deep] for one in (tmax, rcbf))
    return {"likeness": _correlation(delay, flow), "overlap": overlap}


_TOGETHER: Mapping[tuple[Channel, Channel], Callable[[_Shown, _Shown], dict[str, float]]] = {
    (Channel.NCCT, Channel.CTA): _cts,
    (Channel.CTA, Channel.VESSELS): _contrast,
    (Channel.TMAX, Channel.RCBF): _maps,
}
