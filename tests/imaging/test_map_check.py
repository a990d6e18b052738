"""Perfusion maps: wrong ones are refused or flagged, valid ones of any unit, slab or lesion pass, holes are no 0."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from app.imaging import plausibility
from app.imaging.io import nifti
from app.imaging.io.nifti import Volume
from app.imaging.perfusion import background, map_check, summary
from app.sdk.errors import ImplausibleModality, RlvoError
from app.sdk.flags import Severity, severity_of
from app.sdk.types import Input, PerfusionSummary
from bench.variations import perfusion_maps
from tests.imaging import studies

MNI = np.eye(4)
MAPS = (Input.TMAX, Input.CBF, Input.CBV, Input.MTT)
Study = dict[Input, Volume]


@pytest.fixture(scope="module")
def study() -> Study:
    return studies.study()


def checked(study: Study) -> tuple[set[str], PerfusionSummary | None]:
    """Codes of the flags, and the summary, as ``preprocess.prepare`` makes them; a refusal is the code ``refused``."""
    codes, maps = set(), {}
    try:
        for name in (name for name in MAPS if name in study):
            maps[name], flags = background.clean(study[name], name)
            codes |= {flag.code for flag in (*flags, *plausibility.check(maps[name], name))}
        found = map_check.check(maps, MNI, studies.ct_of(study))
    except RlvoError:
        return {"refused"}, None
    numbers = map_check.withhold(summary.summarise(maps, MNI).summary, found.blanked)
    return codes | {flag.code for flag in found.flags}, numbers


def warnings(codes: set[str]) -> set[str]:
    return {code for code in codes if code == "refused" or severity_of(code) is Severity.WARNING}


@pytest.mark.parametrize("name", perfusion_maps.VALID)
def test_valid_maps_pass(study: Study, name: str) -> None:
    codes, _ = checked(perfusion_maps.VALID[name](dict(study), np.random.default_rng(0)))
    assert warnings(codes) == set()


@pytest.mark.parametrize("name", perfusion_maps.WRONG)
def test_wrong_maps_are_refused_or_flagged(study: Study, name: str) -> None:
    vary, expected = perfusion_maps.WRONG[name]
    codes, _ = checked(vary(dict(study), np.random.default_rng(0)))
    assert codes & expected
    assert warnings(codes)


def scaled(study: Study, factor: float) -> Study:
    return study | {Input.TMAX: dataclasses.replace(study[Input.TMAX], data=study[Input.TMAX].data * factor)}


def test_tmax_in_frames_is_told_by_the_delay_of_the_core(study: Study) -> None:
    """Before, a map in frames passed: the volume of Tmax > 6 s and the probability were wrong without a word."""
    found = {step: checked(scaled(study, 1 / step))[0] for step in (1.0, 1.6, 3.0)}
    assert found == {1.0: set(), 1.6: {"core-delay-short"}, 3.0: {"core-without-delay"}}
    assert severity_of("core-without-delay") is Severity.WARNING
    assert severity_of("core-delay-short") is Severity.INFO


def test_old_infarct_without_delay_passes(study: Study) -> None:
    """An old infarct has low flow, no delay, and the density of CSF; tissue of brain density with such maps is told."""
    scar = studies.ball((30, -70, 20), 22)
    tmax, cbf, dark = (np.array(study[name].data) for name in (Input.TMAX, Input.CBF, Input.NCCT))
    cbf[cbf > 0] = np.maximum(cbf[cbf > 0], 20)  # the acute lesion has no core
    tmax[scar], cbf[scar], dark[scar] = np.minimum(tmax[scar], 2), np.minimum(cbf[scar], 8), 8
    changed = {Input.TMAX: tmax, Input.CBF: cbf}
    maps = study | {name: dataclasses.replace(study[name], data=data) for name, data in changed.items()}
    assert checked(maps | {Input.NCCT: dataclasses.replace(study[Input.NCCT], data=dark)})[0] == set()
    assert checked(maps)[0] == {"core-without-delay"}


@pytest.mark.parametrize(
    ("delay_s", "sides", "expected"), [(9, (1,), {"core-dark"}), (2, (1,), set()), (9, (1, -1), set())]
)
def test_old_infarct_that_counts_as_core_is_told(
    study: Study, delay_s: float, sides: tuple[int, ...], expected: set[str]
) -> None:
    """Before, an old infarct with a delay made the core larger without a word. Ventricles are dark on both sides."""
    scar = np.logical_or.reduce([studies.ball((30 * side, -70, 20), 22) for side in sides])
    one = studies.ball((30, -70, 20), 22)
    tmax, cbf, dark = (np.array(study[name].data) for name in (Input.TMAX, Input.CBF, Input.NCCT))
    tmax[one & (tmax > 0)], cbf[one], dark[scar] = delay_s, np.minimum(cbf[one], 4), 8
    changed = {Input.TMAX: tmax, Input.CBF: cbf, Input.NCCT: dark}
    found, numbers = checked(
        study | {name: dataclasses.replace(study[name], data=data) for name, data in changed.items()}
    )
    assert found == expected
    assert severity_of("core-dark") is Severity.INFO
    _, plain = checked(study)
    assert numbers is not None
    assert plain is not None
    assert ((numbers.core_ml or 0) > (plain.core_ml or 0) + 10) == (delay_s > 4)


def with_hole(study: Study, hole: np.ndarray, names: tuple[Input, ...], mark: float = 0.0) -> Study:
    changed = {}
    for name in names:
        data = np.array(study[name].data)
        data[hole] = mark
        changed[name] = dataclasses.replace(study[name], data=data)
    return study | changed


@pytest.mark.parametrize("mark", [0.0, np.nan, -1.0])
def test_blanked_core_has_no_number(study: Study, mark: float) -> None:
    """Before, the core was 0 mL and the mismatch ratio unknown, without a flag."""
    core = studies.ball((-38, -15, 20), 18)
    codes, numbers = checked(with_hole(study, core, (Input.TMAX, Input.CBF), mark))
    assert codes == {"core-blanked"}
    assert numbers is not None
    assert set(numbers.model_dump().values()) == {None}


def test_core_blanked_in_cbf_keeps_the_volumes_of_tmax(study: Study) -> None:
    core = studies.ball((-38, -15, 20), 18)
    codes, numbers = checked(with_hole(study, core, (Input.CBF,)))
    assert codes == {"core-blanked"}
    assert numbers is not None
    assert (numbers.core_ml, numbers.mismatch_ml) == (None, None)
    assert numbers.tmax6_ml is not None


def test_csf_within_delayed_tissue_is_no_blanked_core(study: Study) -> None:
    """An old infarct inside the lesion has no data in the maps and the density of CSF on the CT."""
    hole = studies.ball((-38, -15, 20), 15)
    dark = np.array(study[Input.NCCT].data)
    dark[hole] = 8
    old = with_hole(study, hole, (Input.TMAX, Input.CBF))
    old[Input.NCCT] = dataclasses.replace(study[Input.NCCT], data=dark)
    codes, numbers = checked(old)
    assert codes == set()
    assert numbers is not None
    assert numbers.core_ml is not None


def test_large_hole_without_delay_is_told(study: Study) -> None:
    codes, numbers = checked(with_hole(study, studies.ball((40, -30, 25), 22), (Input.TMAX, Input.CBF)))
    assert codes == {"map-hole"}
    assert severity_of("map-hole") is Severity.INFO
    assert numbers is not None
    assert numbers.core_ml is not None


@pytest.mark.parametrize("name", ["background -1", "background NaN", "background 4095 and 60 s", "slab of 160 mm"])
def test_background_does_not_change_the_numbers(study: Study, name: str) -> None:
    _, plain = checked(study)
    _, found = checked(perfusion_maps.VALID[name](dict(study), np.random.default_rng(0)))
    assert plain is not None
    assert found is not None
    assert found.model_dump() == pytest.approx(plain.model_dump())


def test_refusal_says_what_to_do(study: Study) -> None:
    tenths = dataclasses.replace(study[Input.TMAX], data=study[Input.TMAX].data * 10)
    with pytest.raises(ImplausibleModality, match=r"in seconds \(not tenths\)") as refusal:
        map_check.check(study | {Input.TMAX: tenths}, MNI, studies.ct_of(study))
    assert refusal.value.errors[0].field == Input.TMAX
    with pytest.raises(ImplausibleModality, match="ctp_interval_s") as refusal:
        map_check.check({Input.TMAX: tenths}, MNI, studies.ct_of(study), computed=True)
    assert refusal.value.errors[0].field == Input.CTP


def test_nan_in_a_file_of_a_map_is_no_data(tmp_path: Path) -> None:
    """Before, NaN became the lowest delay of the map, which is normal tissue."""
    values = np.full((6, 6, 6), np.nan, np.float32)
    values[1:5, 1:5, 1:5] = np.arange(64).reshape(4, 4, 4) + 2
    affine = np.diag([20.0, 20, 20, 1])
    affine[:3, 3] = -60, -70, -50
    nifti.write(tmp_path / "tmax.nii", values, affine)
    assert nifti.read(tmp_path / "tmax.nii", field=Input.TMAX).values()[0, 0, 0] == 0
    assert nifti.read(tmp_path / "tmax.nii", field=Input.CTA).values()[0, 0, 0] == 2


def test_constant_map_is_not_taken_for_background() -> None:
    volume = Volume(np.full((8, 8, 8), 3.0, np.float32), np.eye(4))
    cleaned, flags = background.clean(volume, Input.TMAX)
    assert np.array_equal(cleaned.data, volume.data)
    assert flags == ()
