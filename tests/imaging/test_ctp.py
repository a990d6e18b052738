"""A synthetic series with a known stroke: maps, volumes, and the flags of poor series."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from scipy import ndimage

from app.imaging.io.nifti import Volume
from app.imaging.perfusion import aif, ctp, summary
from app.sdk.clinical import Side
from app.sdk.errors import GeometryMismatch, InvalidVolume
from tests.imaging import heads

MNI = np.eye(4)


@pytest.fixture(scope="module")
def stroke() -> tuple[Volume, np.ndarray]:
    return heads.series()


@pytest.fixture(scope="module")
def maps(stroke: tuple[Volume, np.ndarray]) -> ctp.PerfusionMaps:
    return ctp.deconvolve(stroke[0], MNI)


def codes(maps: ctp.PerfusionMaps) -> set[str]:
    return {flag.code for flag in maps.flags}


def cut(series: Volume, frames: slice) -> Volume:
    return dataclasses.replace(series, data=series.data[..., frames])


def test_maps_of_each_territory(stroke: tuple[Volume, np.ndarray], maps: ctp.PerfusionMaps) -> None:
    """CBV and CBF are right for exponential residues, and Tmax is later than the delay."""
    _, labels = stroke
    latest_s = {heads.NORMAL: 2.72, heads.PENUMBRA: 3.99, heads.CORE: 5.5}  # measured 2.10, 3.07, 4.74
    for label, (cbf, mtt, delay) in heads.HAEMODYNAMICS.items():
        inside = ndimage.binary_erosion(labels == label, iterations=2) & (maps.cbf.data > 0)
        assert np.median(maps.cbv.data[inside]) == pytest.approx(cbf * mtt / 60, rel=0.061)  # measured 0.047
        assert np.median(maps.cbf.data[inside]) / cbf == pytest.approx(1, abs=0.15)  # measured 0.89 to 0.95
        assert 1.0 < np.median(maps.tmax.data[inside]) - delay < latest_s[label]


def test_volumes_and_ratios_equal_the_territories(stroke: tuple[Volume, np.ndarray], maps: ctp.PerfusionMaps) -> None:
    series, labels = stroke
    voxel_ml = abs(np.linalg.det(series.affine[:3, :3])) / 1000
    found = summary.summarise(maps.by_input(), MNI)
    assert found.side is Side.LEFT
    # Measured relative errors: 0.033, 0.031, 0.0003.
    assert found.summary.core_ml == pytest.approx((labels == heads.CORE).sum() * voxel_ml, rel=0.0404)
    assert found.summary.tmax6_ml == pytest.approx((labels >= heads.PENUMBRA).sum() * voxel_ml, rel=0.0401)
    assert found.summary.mismatch_ratio == pytest.approx(4.9, rel=0.0068)
    assert maps.flags == ()


def test_noise_delays_hardly_any_normal_tissue_and_takes_no_edge_of_the_lesion() -> None:
    volumes = {}
    for noise in (0.0, 7.0):
        series, labels = heads.series(noise=noise)
        found = ctp.deconvolve(series, MNI)
        late = found.tmax.data > summary.DELAYED_TMAX_S
        voxel_ml = abs(np.linalg.det(series.affine[:3, :3])) / 1000
        in_lesion = labels >= heads.PENUMBRA
        volumes[noise] = [np.count_nonzero(late & each) * voxel_ml for each in (in_lesion, ~in_lesion)]
        whole = np.count_nonzero(in_lesion) * voxel_ml
    assert volumes[0.0][0] == pytest.approx(whole, rel=0.005)  # measured 0.001; 0.012 with the median
    assert volumes[0.0][1] < 0.1
    assert volumes[7.0][1] < 1.8  # mL; measured 0.9, and 5.2 with each voxel's own value


def test_arterial_curve_is_scaled_to_the_venous_area(stroke: tuple[Volume, np.ndarray]) -> None:
    """The artery has 60 % of its height, as after a partial-volume effect."""
    series, _ = stroke
    frames = series.values()
    inside = heads.tissues(series.affine, series.shape[:3]) < 100
    enhancement = frames - frames[..., :5].mean(axis=-1, keepdims=True)
    found = aif.select_curves(enhancement, inside & (enhancement.max(axis=-1) > -100), baseline=5)
    assert found.scale == pytest.approx(1 / 0.6, rel=0.0614)  # measured 0.047
    assert found.arterial.max() == pytest.approx(300, rel=0.0464)  # measured 0.036
    assert found.arterial.argmax() < found.venous.argmax()


def test_motion_is_detected_corrected_and_flagged(stroke: tuple[Volume, np.ndarray], maps: ctp.PerfusionMaps) -> None:
    """From frame 12, the head is 4 mm farther to the right and rotated by 3 degrees."""
    series, labels = stroke
    shifted = np.array(series.data, np.int16, order="F")
    for frame in range(12, shifted.shape[3]):
        turned = ndimage.rotate(shifted[..., frame], 3, axes=(0, 1), reshape=False, order=1, cval=-1000)
        shifted[..., frame] = ndimage.shift(turned, (4 / 2.8, 0, 0), order=1, cval=-1000)
    moved = ctp.deconvolve(dataclasses.replace(series, data=shifted), MNI)
    assert codes(moved) == {"ctp-motion"}
    inside = ndimage.binary_erosion(labels > 0, iterations=3) & (moved.cbf.data > 0) & (maps.cbf.data > 0)
    assert np.median(np.abs(moved.tmax.data - maps.tmax.data)[inside]) < 0.231  # measured 0.178 s
    assert np.median(moved.cbf.data[inside] / maps.cbf.data[inside]) == pytest.approx(1, abs=0.0652)  # measured 0.050


def test_motion_is_measured_in_millimetres(stroke: tuple[Volume, np.ndarray]) -> None:
    series, _ = stroke
    frames = series.values()[..., :3].copy()
    frames[..., 2] = ndimage.shift(frames[..., 2], (0, 2 / 2.8, 0), order=1, cval=-1000)
    _, moved = aif.correct_motion(frames, series.spacing_mm)
    assert moved == pytest.approx(2.0, abs=0.265)  # measured 0.204 mm


def test_series_without_motion_has_no_motion(stroke: tuple[Volume, np.ndarray]) -> None:
    series, _ = stroke
    assert aif.correct_motion(series.values(), series.spacing_mm)[1] < 0.105  # measured 0.081 mm


def test_truncated_series_is_flagged(stroke: tuple[Volume, np.ndarray]) -> None:
    assert "ctp-truncated" in codes(ctp.deconvolve(cut(stroke[0], slice(0, 14)), MNI))


def test_series_with_short_baseline_is_flagged(stroke: tuple[Volume, np.ndarray]) -> None:
    assert "ctp-baseline-short" in codes(ctp.deconvolve(cut(stroke[0], slice(8, None)), MNI))


def test_series_without_bolus_is_flagged(stroke: tuple[Volume, np.ndarray]) -> None:
    series, _ = stroke
    noise = np.random.default_rng(0).integers(-3, 4, series.shape)
    still = np.asfortranarray(series.data[..., :1] + noise, dtype=np.int16)
    assert "aif-doubtful" in codes(ctp.deconvolve(dataclasses.replace(series, data=still), MNI))


def test_series_without_vein_is_flagged(stroke: tuple[Volume, np.ndarray]) -> None:
    series, _ = stroke
    data = np.array(series.data, order="F")
    vein = data.max(axis=-1) - data[..., 0] > 230  # the artery has 60 % of its 300 HU
    assert vein.any()
    data[vein] = data[vein][:, :1]
    assert "vof-doubtful" in codes(ctp.deconvolve(dataclasses.replace(series, data=data), MNI))


@pytest.mark.parametrize("step", [None, 0.0, 1500.0])
def test_impossible_time_step_is_refused(stroke: tuple[Volume, np.ndarray], step: float | None) -> None:
    with pytest.raises(InvalidVolume, match="time step"):
        ctp.deconvolve(dataclasses.replace(stroke[0], time_step_s=step), MNI)


def test_series_shorter_than_a_bolus_is_refused(stroke: tuple[Volume, np.ndarray]) -> None:
    with pytest.raises(InvalidVolume, match="shorter"):
        ctp.deconvolve(cut(stroke[0], slice(0, 7)), MNI)


def test_series_outside_the_brain_is_refused(stroke: tuple[Volume, np.ndarray]) -> None:
    away = stroke[0].affine.copy()
    away[:3, 3] += 500
    with pytest.raises(GeometryMismatch):
        ctp.deconvolve(dataclasses.replace(stroke[0], affine=away), MNI)
