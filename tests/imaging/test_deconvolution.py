"""Known residue functions in, known flow, volume, transit time and delay out."""

from __future__ import annotations

import numpy as np
import pytest

from app.imaging.perfusion.deconvolution import OSCILLATION_LIMIT, haemodynamics, oscillation, residues
from tests.imaging.heads import gamma_variate, tissue_curve

DELAYS = (0.0, 2.0, 4.0, 6.0)


def curves(times: np.ndarray, *, cbf: float, mtt: float, delay: float, plug: bool, noise: float = 0.0) -> np.ndarray:
    clean = tissue_curve(times, cbf=cbf, mtt=mtt, delay=delay, plug=plug)
    return clean + noise * np.random.default_rng(0).standard_normal((300 if noise else 1, times.size))


@pytest.mark.parametrize("plug", [False, True])
@pytest.mark.parametrize("delay", DELAYS)
@pytest.mark.parametrize("step", [0.5, 1.0, 1.5, 2.0, 3.0])
def test_volume_is_the_ratio_of_areas(step: float, delay: float, plug: bool) -> None:
    times = np.arange(0, 75, step)
    found = haemodynamics(curves(times, cbf=60, mtt=4, delay=delay, plug=plug), gamma_variate(times), step)
    assert found.cbv[0] == pytest.approx(4.0, rel=0.02)


@pytest.mark.parametrize("delay", DELAYS)
@pytest.mark.parametrize("step", [1.0, 1.5, 2.0])
def test_plug_flow(step: float, delay: float) -> None:
    """Of a box the residue is flat over the transit time: Tmax is its middle, and CBF its height."""
    times = np.arange(0, 60, step)
    found = haemodynamics(curves(times, cbf=25, mtt=4.8, delay=delay, plug=True), gamma_variate(times), step)
    assert found.cbf[0] == pytest.approx(25, rel=0.22)
    assert found.tmax[0] == pytest.approx(delay + 2.4, abs=0.3)


@pytest.mark.parametrize("delay", DELAYS)
@pytest.mark.parametrize("step", [1.0, 1.5, 2.0])
def test_a_well_mixed_compartment(step: float, delay: float) -> None:
    """An exponential's sharp peak cannot be had back from samples: CBF comes out 20-27 % low, Tmax 1-2 s late."""
    times = np.arange(0, 60, step)
    found = haemodynamics(curves(times, cbf=60, mtt=4, delay=delay, plug=False), gamma_variate(times), step)
    assert 0.72 < found.cbf[0] / 60 < 0.80
    assert 1.0 < found.tmax[0] - delay < 2.0


@pytest.mark.parametrize("plug", [False, True])
def test_delay_changes_tmax_alone(plug: bool) -> None:
    times = np.arange(0, 60, 1.0)
    found = [
        haemodynamics(curves(times, cbf=40, mtt=5, delay=delay, plug=plug), gamma_variate(times), 1.0)
        for delay in DELAYS
    ]
    assert np.diff([one.tmax[0] for one in found]) == pytest.approx([2, 2, 2], abs=0.1)
    assert np.ptp([one.cbf[0] for one in found]) < 0.5


def test_an_artery_that_arrives_after_the_tissue() -> None:
    """The block-circulant form takes negative delays; Tmax is then 0, and CBF is not harmed."""
    times = np.arange(0, 60, 1.0)
    tissue = curves(times, cbf=40, mtt=5, delay=0, plug=True)
    late = haemodynamics(tissue, gamma_variate(times, start=14.0), 1.0)
    assert late.tmax[0] == 0
    assert late.cbf[0] == pytest.approx(haemodynamics(tissue, gamma_variate(times), 1.0).cbf[0], rel=0.05)


@pytest.mark.parametrize("delay", DELAYS)
def test_noise_as_in_real_series(delay: float) -> None:
    """1 HU after smoothing is what a usual CT perfusion series leaves."""
    times = np.arange(0, 60, 1.5)
    found = haemodynamics(curves(times, cbf=20, mtt=9, delay=delay, plug=False, noise=1.0), gamma_variate(times), 1.5)
    assert found.cbf.mean() / 20 == pytest.approx(0.78, abs=0.1)
    assert found.cbv.mean() == pytest.approx(3.0, rel=0.04)
    assert np.median(found.tmax) - delay == pytest.approx(3.0, abs=0.8)
    assert np.percentile(np.abs(found.tmax - np.median(found.tmax)), 90) < 3.5


def test_no_residue_oscillates_beyond_the_limit_while_a_calmer_truncation_is_left() -> None:
    times = np.arange(0, 60, 1.0)
    noisy = curves(times, cbf=60, mtt=4, delay=2, plug=False, noise=1.0)
    index = oscillation(residues(noisy, gamma_variate(times), 1.0))
    assert np.mean(index < OSCILLATION_LIMIT) > 0.99


def test_a_residue_gives_its_tissue_back() -> None:
    """Convolving the artery with the residue that was found is the tissue curve again."""
    times = np.arange(0, 60, 1.0)
    tissue = curves(times, cbf=60, mtt=4, delay=2, plug=False)
    residue = residues(tissue, gamma_variate(times), 1.0)[0]
    again = np.fft.irfft(np.fft.rfft(residue) * np.fft.rfft(gamma_variate(times), residue.size), residue.size)
    assert np.abs(again[: times.size] - tissue[0]).max() < 0.03 * tissue.max()
