"""CT perfusion series: frames, their order and their interval are checked before the deconvolution."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from app.imaging.io import nifti
from app.imaging.io.nifti import Volume
from app.imaging.perfusion import bolus_check, ctp
from app.sdk.errors import InvalidVolume
from app.sdk.flags import Severity, severity_of
from app.sdk.types import Flag, Input
from bench.variations import perfusion_series as variations
from tests.imaging import heads
from tests.imaging.hostile import build

MNI = np.eye(4)
RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def series() -> Volume:
    return heads.series()[0]


def codes(series: Volume) -> set[str]:
    return {flag.code for flag in ctp.deconvolve(series, MNI).flags}


def refusal(series: Volume) -> str:
    with pytest.raises(InvalidVolume) as refused:
        ctp.deconvolve(series, MNI)
    assert refused.value.errors[0].field == Input.CTP
    return refused.value.detail


@pytest.mark.parametrize("value", [0, -1024])
def test_empty_frame_is_refused(series: Volume, value: int) -> None:
    assert "a frame is empty" in refusal(variations.empty_frame(value)(series, RNG))


def test_axes_x_y_t_z_are_refused(series: Volume) -> None:
    assert "X, Y, Z, T" in refusal(variations.time_before_z(series, RNG))


def test_reversed_frames_are_refused(series: Volume) -> None:
    assert "order of the scan" in refusal(variations.reversed_frames(series, RNG))


def test_one_frame_is_refused(series: Volume) -> None:
    with pytest.raises(InvalidVolume, match="shorter than a bolus"):
        ctp.deconvolve(variations.one_frame(series, RNG), MNI)


def test_repeated_frames_are_flagged(series: Volume) -> None:
    assert codes(variations.repeated_frames(series, RNG)) == {"ctp-frames-repeated"}


def test_bolus_that_is_cut_off_is_flagged(series: Volume) -> None:
    """The series ends at 21 s, when the veins fill; that of 45 s passes."""
    assert "bolus-cut" in codes(variations.frames(series, list(range(15))))
    assert codes(variations.frames(series, list(range(30)))) == set()


def test_scan_that_starts_within_the_bolus_is_flagged(series: Volume) -> None:
    found = codes(variations.frames(series, list(range(8, series.shape[3]))))
    assert "bolus-doubtful" in found
    assert severity_of("bolus-doubtful") is Severity.WARNING


def test_step_of_one_second_by_mistake_is_flagged(series: Volume) -> None:
    """The frames are 1.5 s apart, so the bolus seems to be narrower than an injection."""
    assert codes(dataclasses.replace(series, time_step_s=1.0)) == {"ctp-interval-doubtful"}


def test_biphasic_series_passes(series: Volume) -> None:
    assert codes(variations.biphasic(series, RNG)) == set()


@pytest.mark.parametrize("step_s", [1.0, 3.0])
def test_other_intervals_pass(step_s: float) -> None:
    assert codes(heads.series(step_s=step_s, frames=int(60 / step_s))[0]) == set()


# The interval ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("units", "step", "seconds", "expected"),
    [
        (2 + 8, 1.5, 1.5, []),  # millimetres and seconds
        (2 + 8, 1.0, 1.0, []),
        (2 + 16, 1500.0, 1.5, []),  # milliseconds
        (2, 1.5, 1.5, ["time-unit-assumed"]),
        (2, 1.0, 1.0, ["time-step-default"]),
        (2, 1500.0, None, ["time-step-unknown"]),
    ],
)
def test_time_step_without_a_unit_is_flagged(
    tmp_path: Path, units: int, step: float, seconds: float | None, expected: list[str]
) -> None:
    voxels = np.arange(5 * 4 * 3 * 7, dtype=np.int16).reshape(5, 4, 3, 7)
    pixdim = (1.0, 2.0, 2.0, 5.0, step, 0.0, 0.0, 0.0)
    (tmp_path / "ctp.nii").write_bytes(build(voxels, xyzt_units=units, pixdim=pixdim))
    volume = nifti.read(tmp_path / "ctp.nii", field=Input.CTP)
    assert volume.time_step_s == seconds
    assert [flag.code for flag in volume.flags if flag.code.startswith("time")] == expected


def test_interval_that_was_sent_replaces_the_header(series: Volume) -> None:
    doubt = (Flag(code="time-step-default", detail="ctp: no step"), Flag(code="units-assumed", detail="ctp: no unit"))
    assumed = dataclasses.replace(series, time_step_s=1.0, flags=doubt)
    found = bolus_check.with_interval(assumed, 1.5)
    assert found.time_step_s == 1.5
    assert [flag.code for flag in found.flags] == ["units-assumed"]
    unknown = dataclasses.replace(series, time_step_s=None, flags=(Flag(code="time-step-unknown", detail=""),))
    assert bolus_check.with_interval(unknown, 1.5).flags == ()


def test_interval_that_differs_from_the_header_is_told(series: Volume) -> None:
    assert bolus_check.with_interval(series, 1.5).flags == ()
    (flag,) = bolus_check.with_interval(series, 2.0).flags
    assert flag.code == "ctp-interval-differs"
    assert severity_of(flag.code) is Severity.INFO
