"""Valid and wrong variations of the perfusion maps of a study, for ``python -m bench.input_checks``."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy import ndimage

from app.imaging.io.nifti import Volume
from app.sdk.types import Input

Study = dict[Input, Volume]
Variation = Callable[[Study, np.random.Generator], Study]

MAPS = (Input.TMAX, Input.CBF, Input.CBV, Input.MTT)
LEAST_HOLE_ML = 4.0


# Parts of a study --------------------------------------------------------------------------------------------------


def tissue(study: Study) -> np.ndarray:
    """(X, Y, Z) bool: voxels of the maps with data."""
    data: np.ndarray = study[Input.CBF].values() > 0
    return data


def put(study: Study, **maps: np.ndarray) -> Study:
    """The study with these maps, each on the grid of Tmax."""
    affine = study[Input.TMAX].affine
    return study | {
        Input(name): Volume(np.asfortranarray(values, dtype=np.float32), affine) for name, values in maps.items()
    }


def all_maps(study: Study, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Tmax, CBF, MTT and CBV = CBF x MTT of the patient; normal MTT is 4 to 5.5 s and grows with the delay."""
    tmax, cbf = study[Input.TMAX].values(), study[Input.CBF].values()
    grain = ndimage.gaussian_filter(rng.standard_normal(tmax.shape).astype(np.float32), 1.0)
    usual = rng.uniform(4.0, 5.5) * (1 + 0.12 * grain / grain.std())
    mtt = np.where(cbf > 0, usual + 0.6 * np.maximum(tmax - 2, 0), 0)
    return {"tmax": tmax, "cbf": cbf, "mtt": mtt, "cbv": cbf * mtt / 60}


def noisy(values: np.ndarray, rng: np.random.Generator, *, relative: float = 0.0, absolute: float = 0.0) -> np.ndarray:
    """Values with smooth noise where there are data; they stay above 0."""
    grain = ndimage.gaussian_filter(rng.standard_normal(values.shape).astype(np.float32), 0.7)
    grain /= grain.std()
    return np.where(values > 0, np.maximum(values * (1 + relative * grain) + absolute * grain, 0.05), 0)


def _axial(volume: Volume) -> int:
    return int(np.argmax(np.abs(volume.affine[2, :3])))


def _outside(study: Study) -> np.ndarray:
    """Voxels outside the brain: without data, and joined to the edge of the box."""
    empty = ~ndimage.binary_closing(tissue(study), iterations=3)
    labels, _ = ndimage.label(empty)
    outside: np.ndarray = labels == labels[0, 0, 0]
    return outside


# Valid -------------------------------------------------------------------------------------------------------------


def as_sent(study: Study, _rng: np.random.Generator) -> Study:
    """The study without a change."""
    return study


def slab(mm: float, *, padded: bool = False) -> Variation:
    """Maps of a slab of ``mm`` around the lesion; ``padded`` keeps the box and writes 0 outside the slab."""

    def vary(study: Study, rng: np.random.Generator) -> Study:
        volume = study[Input.TMAX]
        axis = _axial(volume)
        spacing = volume.spacing_mm[axis]
        weight = (volume.values() > 4).sum(axis=tuple(other for other in range(3) if other != axis))
        if not weight.any():
            weight = tissue(study).sum(axis=tuple(other for other in range(3) if other != axis))
        centre = float(np.average(np.arange(weight.size), weights=weight)) + rng.normal(0, 5) / spacing
        low = int(np.clip(round(centre - mm / spacing / 2), 0, weight.size - 1))
        high = int(np.clip(round(centre + mm / spacing / 2), low + 1, weight.size))
        changed = {}
        for name in MAPS:
            if name in study:
                one = study[name]
                keep = np.zeros(weight.size, bool)
                keep[low:high] = True
                if padded:
                    shown = keep.reshape([-1 if other == axis else 1 for other in range(3)])
                    changed[name] = Volume(np.where(shown, one.values(), 0), one.affine)
                else:
                    shift = np.eye(4)
                    shift[axis, 3] = low
                    changed[name] = Volume(np.compress(keep, one.values(), axis=axis), one.affine @ shift)
        return study | changed

    return vary


def strong_noise(study: Study, rng: np.random.Generator) -> Study:
    """Noise of 40 % in CBF and of 1.5 s in Tmax."""
    maps = all_maps(study, rng)
    return put(study, tmax=noisy(maps["tmax"], rng, absolute=1.5), cbf=noisy(maps["cbf"], rng, relative=0.4))


def four_maps(study: Study, rng: np.random.Generator) -> Study:
    """All four maps, each with its own noise of 15 %."""
    return put(study, **{name: noisy(values, rng, relative=0.15) for name, values in all_maps(study, rng).items()})


def other_units(study: Study, rng: np.random.Generator) -> Study:
    """CBF in mL/g/min, CBV in mL/g."""
    maps = all_maps(study, rng)
    return put(study, tmax=maps["tmax"], cbf=maps["cbf"] / 100, cbv=maps["cbv"] / 100, mtt=maps["mtt"])


def relative_cbf(study: Study, _rng: np.random.Generator) -> Study:
    """CBF as a ratio to its mean."""
    cbf = study[Input.CBF].values()
    return put(study, cbf=cbf / cbf[cbf > 0].mean())


def background(value: float) -> Variation:
    """Maps with another number than 0 outside the brain."""

    def vary(study: Study, _rng: np.random.Generator) -> Study:
        outside = _outside(study)
        maps = {name: study[Input(name)].values() for name in ("tmax", "cbf")}
        return put(study, **{name: np.where(outside, np.float32(value), values) for name, values in maps.items()})

    return vary


def large_background(study: Study, _rng: np.random.Generator) -> Study:
    """CBF with 4095 and Tmax with 60 s outside the brain: the numbers must be those of the brain."""
    outside = _outside(study)
    return put(
        study,
        tmax=np.where(outside, 60, study[Input.TMAX].values()),
        cbf=np.where(outside, 4095, study[Input.CBF].values()),
    )


def no_lesion(study: Study, rng: np.random.Generator) -> Study:
    """Good collaterals: delays below 4 s, and normal flow."""
    tmax, cbf = study[Input.TMAX].values(), study[Input.CBF].values()
    mirrored = np.where(cbf > 0, np.maximum(cbf, 20), 0)
    return put(study, tmax=noisy(np.minimum(tmax, 3.4), rng, absolute=0.5), cbf=noisy(mirrored, rng, relative=0.15))


def large_lesion(study: Study, rng: np.random.Generator) -> Study:
    """The whole hemisphere of the lesion delayed, half of it core."""
    tmax, cbf, data = study[Input.TMAX].values(), study[Input.CBF].values(), tissue(study)
    centre = np.argwhere(data).mean(axis=0)
    lesion = np.argwhere(data & (tmax > 6)).mean(axis=0)
    side = np.abs((lesion - centre)[:2]).argmax()
    index = np.indices(data.shape)[side]
    half = data & ((index > centre[side]) == (lesion[side] > centre[side]))
    grain = ndimage.gaussian_filter(rng.standard_normal(data.shape), 6)
    late = half & (grain > np.median(grain[half]))
    return put(
        study,
        tmax=np.where(half, np.where(late, 13.0, 8.0) + grain / grain.std(), tmax),
        cbf=np.where(half, np.where(late, 0.15, 0.5) * cbf.clip(20), cbf),
    )


def old_infarct(study: Study, rng: np.random.Generator) -> Study:
    """A hole of 20 to 35 mm in the other hemisphere, dark on the CT: an old infarct."""
    data, delayed = tissue(study), study[Input.TMAX].values() > 4
    away = data & ~ndimage.binary_dilation(delayed, iterations=6)
    inner = np.argwhere(ndimage.binary_erosion(away, iterations=4))
    if not inner.size:
        return study
    volume = study[Input.TMAX]
    point = (volume.affine @ [*inner[rng.integers(len(inner))], 1])[:3]
    radius = rng.uniform(10, 17)
    changed = {
        name: _ball(study[name], point, radius, 0 if name in MAPS else 8)
        for name in (Input.TMAX, Input.CBF, Input.NCCT, Input.CTA)
        if name in study
    }
    return study | changed


def _ball(volume: Volume, centre: np.ndarray, radius: float, value: float) -> Volume:
    index = np.ogrid[tuple(slice(n) for n in volume.shape)]
    affine = volume.affine
    apart = [
        sum(affine[row, axis] * index[axis] for axis in range(3)) + affine[row, 3] - centre[row] for row in range(3)
    ]
    within = sum(one**2 for one in apart) < radius**2
    data = volume.data.copy()
    data[within & (data < 300)] = value
    return Volume(data, volume.affine, volume.slope, volume.inter)


def smoothed(study: Study, rng: np.random.Generator) -> Study:
    """Maps after a Gaussian filter within the brain."""
    data = tissue(study)
    size = rng.uniform(1.0, 2.0)
    weight = ndimage.gaussian_filter(data.astype(np.float32), size)
    maps = {name: study[Input(name)].values() for name in ("tmax", "cbf")}
    return put(
        study,
        **{
            name: np.where(data, ndimage.gaussian_filter(one, size) / np.maximum(weight, 1e-3), 0)
            for name, one in maps.items()
        },
    )


def integers_with_slope(study: Study, _rng: np.random.Generator) -> Study:
    """Maps as int16 in tenths, with the slope in the header."""
    return study | {
        name: Volume(np.rint(study[name].values() * 10).astype(np.int16), study[name].affine, slope=0.1)
        for name in (Input.TMAX, Input.CBF)
    }


def whole_seconds(study: Study, rng: np.random.Generator) -> Study:
    """Tmax in whole seconds, with noise."""
    return put(study, tmax=np.rint(noisy(study[Input.TMAX].values(), rng, absolute=0.8)))


def tmax_zero_is_normal(study: Study, rng: np.random.Generator) -> Study:
    """Tmax less 2 s, as after a correction of the arterial delay: half of the normal tissue has exactly 0."""
    tmax = study[Input.TMAX].values()
    return put(study, tmax=np.maximum(noisy(tmax, rng, absolute=0.7) - 2, 0))


def corrected_delay(study: Study, _rng: np.random.Generator) -> Study:
    """Tmax less the arterial delay of 2 s, and a tenth shorter."""
    tmax = study[Input.TMAX].values()
    return put(study, tmax=np.where(tmax > 0, np.maximum(0.9 * (tmax - 2), 0.02), 0))


def recovered_core(study: Study, rng: np.random.Generator) -> Study:
    """Flow and delay of the core as in normal tissue, after a spontaneous recanalisation of its branch."""
    tmax, cbf = study[Input.TMAX].values(), study[Input.CBF].values()
    core = (cbf > 0) & (cbf < 0.36 * np.median(cbf[(cbf > 0) & (tmax <= 4)]))
    grain = rng.standard_normal(tmax.shape).astype(np.float32)
    usual = float(np.median(cbf[cbf > 0]))
    return put(study, tmax=np.where(core, 2 + 0.2 * grain, tmax), cbf=np.where(core, usual * (1 + 0.1 * grain), cbf))


VALID: dict[str, Variation] = {
    "maps as they are": as_sent,
    "slab of 40 mm": slab(40),
    "slab of 80 mm": slab(80),
    "slab of 100 mm": slab(100),
    "slab of 160 mm": slab(160),
    "slab of 80 mm in a padded box": slab(80, padded=True),
    "strong noise": strong_noise,
    "four maps": four_maps,
    "other units of CBF and CBV": other_units,
    "relative CBF": relative_cbf,
    "background 0": background(0),
    "background -1": background(-1),
    "background NaN": background(np.nan),
    "background 4095 and 60 s": large_background,
    "no lesion": no_lesion,
    "whole hemisphere": large_lesion,
    "old infarct": old_infarct,
    "smoothed maps": smoothed,
    "integers with a slope": integers_with_slope,
    "whole seconds": whole_seconds,
    "Tmax 0 in normal tissue": tmax_zero_is_normal,
    "Tmax less the arterial delay": corrected_delay,
    "core with recovered flow": recovered_core,
}


# Wrong -------------------------------------------------------------------------------------------------------------


def blanked(mark: float, names: tuple[str, ...], *, whole: bool = False) -> Variation:
    """A core, or all tissue with Tmax > 6 s (``whole``), without data in some maps; at least 4 mL."""

    def vary(study: Study, _rng: np.random.Generator) -> Study:
        tmax, cbf = study[Input.TMAX].values(), study[Input.CBF].values()
        usual = np.median(cbf[(cbf > 0) & (tmax <= 4)])
        core = (tmax > 6) & ((cbf < 0.3 * usual) | whole)
        core = ndimage.binary_opening(ndimage.binary_closing(core) & (tmax > 0))
        least = LEAST_HOLE_ML * 1000 / abs(np.linalg.det(study[Input.TMAX].affine[:3, :3]))
        if core.sum() < least:
            peak = ndimage.gaussian_filter(tmax, 3)
            core = (peak >= np.sort(peak[tmax > 0])[-int(1.5 * least)]) & (tmax > 0)
        maps = {"tmax": tmax, "cbf": cbf}
        return put(study, **{name: np.where(core, np.float32(mark), maps[name]) for name in names})

    return vary


def tenths(study: Study, _rng: np.random.Generator) -> Study:
    """Tmax in tenths of a second, without a slope."""
    return put(study, tmax=np.rint(study[Input.TMAX].values() * 10))


def milliseconds(study: Study, _rng: np.random.Generator) -> Study:
    """Tmax in milliseconds."""
    return put(study, tmax=study[Input.TMAX].values() * 1000)


def minutes(study: Study, _rng: np.random.Generator) -> Study:
    """Tmax in minutes."""
    return put(study, tmax=study[Input.TMAX].values() / 60)


def frames(seconds: float) -> Variation:
    """Tmax in frames of ``seconds``."""

    def vary(study: Study, _rng: np.random.Generator) -> Study:
        return put(study, tmax=study[Input.TMAX].values() / seconds)

    return vary


def instead(field: str, sent: str, *, with_others: bool = False) -> Variation:
    """Another map in a field; ``with_others`` adds CBV and MTT."""

    def vary(study: Study, rng: np.random.Generator) -> Study:
        maps = {name: noisy(values, rng, relative=0.1) for name, values in all_maps(study, rng).items()}
        names = ("tmax", "cbf", "cbv", "mtt") if with_others else ("tmax", "cbf")
        return put(study, **({name: maps[name] for name in names} | {field: maps[sent]}))

    return vary


def exchanged(one: str, two: str, *, relative: bool = False) -> Variation:
    """Two maps exchanged; ``relative`` has CBF as a ratio to its mean."""

    def vary(study: Study, rng: np.random.Generator) -> Study:
        maps = {name: noisy(values, rng, relative=0.1) for name, values in all_maps(study, rng).items()}
        if relative:
            maps["cbf"] = maps["cbf"] / maps["cbf"][maps["cbf"] > 0].mean()
        names = {"tmax", "cbf", one, two} if {one, two} == {"tmax", "cbf"} else set(maps)
        return put(study, **({name: maps[name] for name in names} | {one: maps[two], two: maps[one]}))

    return vary


def time_to_peak(field: str) -> Variation:
    """TTP from the start of the scan, in the field of another map."""

    def vary(study: Study, rng: np.random.Generator) -> Study:
        tmax = study[Input.TMAX].values()
        late = np.where(tmax > 0, rng.uniform(12, 25) + tmax, 0)
        return put(study, **{field: noisy(late, rng, absolute=0.5)})

    return vary


def classes(limits: tuple[float, ...], values: tuple[float, ...]) -> Variation:
    """Colour classes of Tmax: ``values`` below, between and above ``limits`` (s)."""

    def vary(study: Study, _rng: np.random.Generator) -> Study:
        tmax = study[Input.TMAX].values()
        shown = np.array(values, np.float32)[np.digitize(tmax, limits)]
        return put(study, tmax=np.where(tmax > 0, shown, 0))

    return vary


def lesion_only(study: Study, rng: np.random.Generator) -> Study:
    """Tmax with a threshold of 4 s."""
    tmax = noisy(study[Input.TMAX].values(), rng, absolute=0.3)
    return put(study, tmax=np.where(tmax > 4, tmax, 0))


def noise_only(study: Study, rng: np.random.Generator) -> Study:
    """Noise between 0 and 20 s as Tmax."""
    return put(study, tmax=np.where(tissue(study), rng.uniform(0.1, 20, study[Input.TMAX].shape), 0))


BLANK = {"core-blanked"}
SCALE = {"refused", "tmax-scale", "tmax-doubtful", "maps-contradict", "core-without-delay"}
CLASSES = {"refused", "map-classes", "map-thresholded"}

WRONG: dict[str, tuple[Variation, set[str]]] = {
    "core blanked with 0 in both maps": (blanked(0, ("tmax", "cbf")), BLANK),
    "core blanked with NaN in both maps": (blanked(np.nan, ("tmax", "cbf")), BLANK),
    "core blanked in CBF": (blanked(0, ("cbf",)), BLANK),
    "core blanked in Tmax": (blanked(0, ("tmax",)), BLANK),
    "Tmax > 6 s blanked in both maps": (blanked(0, ("tmax", "cbf"), whole=True), BLANK),
    "Tmax in tenths": (tenths, SCALE),
    "Tmax in milliseconds": (milliseconds, SCALE),
    "Tmax in minutes": (minutes, SCALE),
    "Tmax in frames of 3 s": (frames(3), SCALE),
    "Tmax twice as long": (frames(0.5), SCALE),
    "MTT as Tmax": (instead("tmax", "mtt"), SCALE),
    "MTT as Tmax beside all maps": (instead("tmax", "mtt", with_others=True), SCALE),
    "CBF as Tmax": (instead("tmax", "cbf"), SCALE),
    "TTP as Tmax": (time_to_peak("tmax"), SCALE),
    "TTP as CBF": (time_to_peak("cbf"), SCALE),
    "MTT as CBF": (instead("cbf", "mtt"), SCALE),
    "Tmax and CBF exchanged": (exchanged("tmax", "cbf"), SCALE),
    "Tmax and relative CBF exchanged": (exchanged("tmax", "cbf", relative=True), SCALE),
    "CBF and MTT exchanged": (exchanged("cbf", "mtt"), SCALE),
    "CBV and MTT exchanged": (exchanged("cbv", "mtt"), SCALE),
    "Tmax and MTT exchanged": (exchanged("tmax", "mtt"), SCALE),
    "classes 1 to 5 as Tmax": (classes((4, 6, 8, 10), (1, 2, 3, 4, 5)), CLASSES),
    "thresholds as Tmax": (classes((4, 6, 8, 10), (0, 4, 6, 8, 10)), CLASSES),
    "grey levels as Tmax": (classes((4, 6, 8, 10), (0, 64, 128, 192, 255)), CLASSES),
    "Tmax of the lesion only": (lesion_only, CLASSES),
    "noise as Tmax": (noise_only, SCALE),
}
