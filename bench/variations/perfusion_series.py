"""Valid and wrong CT perfusion series of a study, for ``python -m bench.input_checks``.

The series is simulated from the patient's own NCCT, Tmax and CBF: each voxel of tissue gets the curve of an exponential
residue with its flow and delay, arteries and sagittal sinus the bolus. The maps are not sent, so they are computed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import lru_cache

import numpy as np

from app.imaging.io.nifti import Volume
from app.imaging.registration import align
from app.imaging.resample import resample
from app.sdk.types import Flag, Input
from tests.imaging import heads

Study = dict[Input, Volume]
Variation = Callable[[Study, np.random.Generator], Study]

SHAPE = (64, 76)
SPACING = (2.8, 2.8, 5.0)
LOWEST_MM = -20.0
DELAY_STEP_S = 0.25


@dataclasses.dataclass(frozen=True)
class Protocol:
    """A scan: seconds between and number of frames, slices, noise (HU), and the bolus (``width`` is b of a = 3)."""

    step_s: float = 1.5
    seconds: float = 60.0
    slices: int = 16
    lowest_mm: float = LOWEST_MM
    noise: float = 3.0
    start_s: float = 9.0
    width: float = 1.8
    recirculation: float = 0.1

    def bolus(self, times: np.ndarray, *, later: float = 0.0) -> np.ndarray:
        """Enhancement of a large artery, HU, at ``times`` (s)."""
        since = np.clip(times - self.start_s - later, 0, None)
        first = since**3 * np.exp(-since / self.width) / ((3 * self.width) ** 3 * np.exp(-3))
        mixed = np.cumsum(first) / max(float(first.sum()), 1e-9)
        curve: np.ndarray = 300 * (first + self.recirculation * mixed)
        return curve


def drawn(rng: np.random.Generator, **fixed: float) -> Protocol:
    """A usual protocol."""
    chosen: dict[str, float] = {
        "step_s": float(rng.choice([1.0, 1.5, 2.0])),
        "seconds": rng.uniform(50, 70),
        "noise": rng.uniform(2, 4),
        "start_s": rng.uniform(7, 13),
        "width": rng.uniform(1.6, 2.6),
        "recirculation": rng.uniform(0, 0.2),
    }
    return Protocol(**(chosen | fixed))  # type: ignore[arg-type]


@lru_cache(maxsize=1)
def _world_from_mni(ncct: Volume) -> np.ndarray:
    return np.linalg.inv(align.to_mni(align.RegistrationImage(ncct)).mni_from_world)


def series(study: Study, rng: np.random.Generator, scan: Protocol) -> Volume:
    """The CT perfusion series (X, Y, Z, T) of the patient."""
    ncct = study[Input.NCCT]
    shape = (*SHAPE, scan.slices)
    in_mni = heads.grid(shape, SPACING)
    in_mni[2, 3] = scan.lowest_mm
    affine = _world_from_mni(ncct) @ in_mni
    plain = resample(ncct.values(), np.linalg.inv(ncct.affine) @ affine, shape, fill=-1000.0)
    tmax, cbf = (
        resample(study[name].values(), np.linalg.inv(study[name].affine) @ affine, shape)
        for name in (Input.TMAX, Input.CBF)
    )
    times = np.arange(0, scan.seconds, scan.step_s)
    values = np.repeat(plain[..., None], times.size, axis=-1).astype(np.float32)
    tissue = (cbf > 1) & (plain < 100)
    library = _curves(scan, times)
    bins = np.clip(np.rint((tmax[tissue] - 2) / DELAY_STEP_S), 0, len(library) - 1).astype(int)
    values[tissue] += cbf[tissue, None] * library[bins]
    i, j, k = np.indices(shape)
    x, y, z = (np.stack([i, j, k], axis=-1) @ in_mni[:3, :3].T + in_mni[:3, 3]).transpose(3, 0, 1, 2)
    low = (np.abs(np.abs(x) - 22) < 8) & (np.abs(y - 2) < 2.9) & (np.abs(z + 13) < 3)
    high = (np.abs(np.abs(x) - 4) < 3) & (np.abs(y - 26) < 3) & (np.abs(z - 36) < 6)
    sinus = (np.abs(x) < 4.5) & (np.abs(y + 92) < 5) & (np.abs(z - 20) < 25)
    values[low | high] = 40 + 0.6 * scan.bolus(times)
    values[sinus] = 40 + scan.bolus(times, later=rng.uniform(4, 7))
    values += scan.noise * rng.standard_normal(values.shape, np.float32)
    return Volume(np.asfortranarray(np.round(values), dtype=np.int16), affine, time_step_s=scan.step_s)


def _curves(scan: Protocol, times: np.ndarray) -> np.ndarray:
    """(delays, T): enhancement of tissue per unit of CBF; MTT is 4.5 s and grows with the delay."""
    fine = np.arange(0, times[-1] + 1, 0.1)
    arterial = scan.bolus(fine)
    rows = []
    for delay in np.arange(0, 14, DELAY_STEP_S):
        since = fine - delay
        residue = (since >= 0) * np.exp(-np.clip(since, 0, None) / (4.5 + 0.4 * delay))
        curve = np.convolve(arterial, residue)[: fine.size] * 0.1 / (6000 * heads.KAPPA)
        rows.append(np.interp(times, fine, curve))
    return np.array(rows, np.float32)


def computed(study: Study, ctp: Volume) -> Study:
    """The study with a series instead of maps."""
    kept = {name: volume for name, volume in study.items() if name not in (Input.TMAX, Input.CBF)}
    return kept | {Input.CTP: ctp}


def scanned(**fixed: float) -> Variation:
    """A valid series with some fixed settings of its protocol."""
    return lambda study, rng: computed(study, series(study, rng, drawn(rng, **fixed)))


def changed(change: Callable[[Volume, np.random.Generator], Volume], **fixed: float) -> Variation:
    """A series that was changed after the scan."""
    return lambda study, rng: computed(study, change(series(study, rng, drawn(rng, **fixed)), rng))


def frames(ctp: Volume, chosen: np.ndarray | list[int]) -> Volume:
    return dataclasses.replace(ctp, data=np.asfortranarray(ctp.data[..., chosen]))


def biphasic(ctp: Volume, _rng: np.random.Generator) -> Volume:
    """Every frame until 36 s, then every third; the header has the first interval."""
    first = int(36 / (ctp.time_step_s or 1.5))
    return frames(ctp, [*range(first), *range(first, ctp.shape[3], 3)])


def moved(ctp: Volume, rng: np.random.Generator) -> Volume:
    """The head moves by 6 mm for some frames."""
    data = ctp.data.copy()
    start = int(rng.integers(3, ctp.shape[3] - 6))
    data[..., start : start + 5] = np.roll(data[..., start : start + 5], 2, axis=int(rng.integers(2)))
    return dataclasses.replace(ctp, data=data)


def without_unit(ctp: Volume, _rng: np.random.Generator) -> Volume:
    """A time step that is right, without a unit (the flag is the reader's)."""
    return dataclasses.replace(ctp, flags=(Flag(code="time-unit-assumed", detail="ctp: no unit"),))


VALID: dict[str, Variation] = {
    "series": scanned(),
    "series, one frame in 3 s": scanned(step_s=3.0),
    "series of 40 mm above the skull base": scanned(slices=8, lowest_mm=5.0),
    "noisy series": scanned(noise=7.0),
    "late and wide bolus": scanned(start_s=24.0, width=4.0, seconds=85.0),
    "biphasic series": changed(biphasic, step_s=1.5, seconds=70.0),
    "moving head": changed(moved),
    "right step without a unit": changed(without_unit, step_s=1.5),
}


def default_step(ctp: Volume, _rng: np.random.Generator) -> Volume:
    """The step of 1 that a library writes where none was set, without a unit (the flag is the reader's)."""
    flag = Flag(code="time-step-default", detail="ctp: the default of 1")
    return dataclasses.replace(ctp, time_step_s=1.0, flags=(flag,))


def other_step(seconds: float | None) -> Callable[[Volume, np.random.Generator], Volume]:
    return lambda ctp, _rng: dataclasses.replace(ctp, time_step_s=seconds)


def empty_frame(value: int) -> Callable[[Volume, np.random.Generator], Volume]:
    def change(ctp: Volume, rng: np.random.Generator) -> Volume:
        data = ctp.data.copy()
        data[..., rng.integers(ctp.shape[3])] = value
        return dataclasses.replace(ctp, data=data)

    return change


def time_before_z(ctp: Volume, _rng: np.random.Generator) -> Volume:
    return dataclasses.replace(ctp, data=np.asfortranarray(ctp.data.transpose(0, 1, 3, 2)))


def reversed_frames(ctp: Volume, _rng: np.random.Generator) -> Volume:
    return frames(ctp, np.arange(ctp.shape[3])[::-1])


def one_frame(ctp: Volume, _rng: np.random.Generator) -> Volume:
    return frames(ctp, [0])


def repeated_frames(ctp: Volume, rng: np.random.Generator) -> Volume:
    """Some frames twice."""
    count = ctp.shape[3]
    return frames(ctp, np.sort([*range(count), *rng.choice(count, 3, replace=False)]))


def cut_at_the_peak(ctp: Volume, _rng: np.random.Generator) -> Volume:
    """The scan ends 3 s after the arterial peak."""
    return frames(ctp, list(range(int((13 + 3 * 2.2 + 3) / (ctp.time_step_s or 1.5)))))


def started_late(ctp: Volume, _rng: np.random.Generator) -> Volume:
    """The scan starts at the arterial peak."""
    return frames(ctp, list(range(int((8 + 3 * 2.2) / (ctp.time_step_s or 1.5)), ctp.shape[3])))


INTERVAL = {"refused", "ctp-interval-doubtful", "tmax-scale"}
ORDER = {"refused", "bolus-doubtful"}

WRONG: dict[str, tuple[Variation, set[str]]] = {
    "step of 1 by default": (changed(default_step), {"time-step-default"}),
    "step of 1 s instead of 3 s": (changed(other_step(1.0), step_s=3.0, width=2.2), INTERVAL),
    "step of 6 s instead of 1 s": (changed(other_step(6.0), step_s=1.0), INTERVAL),
    "step in milliseconds": (changed(other_step(1500.0)), {"refused"}),
    "no step": (changed(other_step(None)), {"refused"}),
    "reversed frames": (changed(reversed_frames), ORDER),
    "empty frame of 0": (changed(empty_frame(0)), {"refused"}),
    "empty frame of -1024": (changed(empty_frame(-1024)), {"refused"}),
    "axes X, Y, T, Z": (changed(time_before_z), {"refused"}),
    "one frame": (changed(one_frame), {"refused"}),
    "repeated frames": (changed(repeated_frames), {"ctp-frames-repeated"}),
    "bolus cut off at its peak": (
        changed(cut_at_the_peak, start_s=13.0, width=2.2),
        {"refused", "bolus-cut", "aif-doubtful"},
    ),
    "scan starts at the peak": (changed(started_late, start_s=8.0, width=2.2), ORDER),
}
