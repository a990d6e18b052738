"""Deconvolution of known residue functions gives the known flow, volume, transit time and delay."""

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
def test_cbv_is_the_ratio_of_areas(step: float, delay: float, plug: bool) -> None:
    times = np.arange(0, 75, step)
    found = haemodynamics(curves(times, cbf=60, mtt=4, delay=delay, plug=plug), gamma_variate(times), step)
    assert found.cbv[0] == pytest.approx(4.0, rel=0.0162)  # measured 0.0124


@pytest.mark.parametrize("delay", DELAYS)
@pytest.mark.parametrize("step", [1.0, 1.5, 2.0])
def test_plug_flow_residue(step: float, delay: float) -> None:
    """The residue is a box over the transit time: Tmax is its middle, and CBF is too high, as the model is another."""
    times = np.arange(0, 60, step)
    found = haemodynamics(curves(times, cbf=25, mtt=4.8, delay=delay, plug=True), gamma_variate(times), step)
    assert found.cbf[0] / 25 == pytest.approx(2.04, abs=0.01)  # measured 2.036 to 2.038
    assert found.tmax[0] == pytest.approx(delay + 2.4, abs=0.0884)  # measured 0.068 s


@pytest.mark.parametrize("delay", DELAYS)
@pytest.mark.parametrize("step", [1.0, 1.5, 2.0])
def test_exponential_residue(step: float, delay: float) -> None:
    """CBF is right although samples do not show the sharp peak of an exponential; Tmax is 1-2 s late."""
    times = np.arange(0, 60, step)
    found = haemodynamics(curves(times, cbf=60, mtt=4, delay=delay, plug=False), gamma_variate(times), step)
    assert found.cbf[0] / 60 == pytest.approx(1, abs=0.045)  # measured 0.962 to 0.964
    assert 1.0 < found.tmax[0] - delay < 2.0  # measured 1.34 to 1.62 s


@pytest.mark.parametrize("noise", [0.0, 1.0])
@pytest.mark.parametrize("depth", [0.08, 0.2, 0.25, 0.4])
def test_ratio_of_flows_does_not_depend_on_the_transit_time(depth: float, noise: float) -> None:
    """A core of 25 % of normal flow appears below the limit of 30 %; a truncated deconvolution shows 36 %."""
    times = np.arange(0, 60, 1.5)
    normal, low = (
        haemodynamics(
            curves(times, cbf=50 * share, mtt=mtt, delay=delay, plug=False, noise=noise), gamma_variate(times), 1.5
        ).cbf
        for share, mtt, delay in ((1, 4, 0), (depth, 10, 8))
    )
    assert np.median(low) / np.median(normal) == pytest.approx(depth, abs=0.0183)  # measured 0.014


@pytest.mark.parametrize("plug", [False, True])
def test_delay_changes_only_tmax(plug: bool) -> None:
    times = np.arange(0, 60, 1.0)
    found = [
        haemodynamics(curves(times, cbf=40, mtt=5, delay=delay, plug=plug), gamma_variate(times), 1.0)
        for delay in DELAYS
    ]
    assert np.diff([one.tmax[0] for one in found]) == pytest.approx([2, 2, 2], abs=0.0018)  # measured 0.0014 s
    assert np.ptp([one.cbf[0] for one in found]) < 0.0076  # measured 0.0058


def test_negative_delay_gives_tmax_zero_and_the_same_cbf() -> None:
    """The block-circulant form accepts negative delays: Tmax is 0, and CBF does not change."""
    times = np.arange(0, 60, 1.0)
    tissue = curves(times, cbf=40, mtt=5, delay=0, plug=True)
    late = haemodynamics(tissue, gamma_variate(times, start=14.0), 1.0)
    assert late.tmax[0] == 0
    assert late.cbf[0] == pytest.approx(haemodynamics(tissue, gamma_variate(times), 1.0).cbf[0])


@pytest.mark.parametrize("delay", DELAYS)
def test_noise_of_a_real_series(delay: float) -> None:
    """A usual CT perfusion series has noise of 1 HU after smoothing."""
    times = np.arange(0, 60, 1.5)
    found = haemodynamics(curves(times, cbf=20, mtt=9, delay=delay, plug=False, noise=1.0), gamma_variate(times), 1.5)
    # Measured, as the largest over the delays: 0.015, 0.0111, 0.341 s, 1.90 s.
    assert found.cbf.mean() / 20 == pytest.approx(1, abs=0.0195)
    assert found.cbv.mean() == pytest.approx(3.0, rel=0.0144)
    assert np.median(found.tmax) - delay == pytest.approx(3.0, abs=0.443)
    assert np.percentile(np.abs(found.tmax - np.median(found.tmax)), 90) < 2.46


def test_residues_stay_below_the_oscillation_limit() -> None:
    times = np.arange(0, 60, 1.0)
    noisy = curves(times, cbf=60, mtt=4, delay=2, plug=False, noise=1.0)
    index = oscillation(residues(noisy, gamma_variate(times), 1.0))
    assert (index < OSCILLATION_LIMIT).all()


def test_residue_convolved_with_artery_gives_the_tissue_curve() -> None:
    """The arterial curve convolved with the residue equals the tissue curve."""
    times = np.arange(0, 60, 1.0)
    tissue = curves(times, cbf=60, mtt=4, delay=2, plug=False)
    residue = residues(tissue, gamma_variate(times), 1.0)[0]
    again = np.fft.irfft(np.fft.rfft(residue) * np.fft.rfft(gamma_variate(times), residue.size), residue.size)
    assert np.abs(again[: times.size] - tissue[0]).max() < 0.0055 * tissue.max()  # measured 0.0042
