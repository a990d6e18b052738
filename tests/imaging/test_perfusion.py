"""Volumes and ratios of maps whose true values are counts of voxels."""

from __future__ import annotations

import numpy as np
import pytest

from app.imaging.io.nifti import Volume
from app.imaging.perfusion.summary import PerfusionMeasurement, measure, summarise
from app.imaging.registration import brain_mask
from app.sdk.clinical import Side
from app.sdk.types import Input

SHAPE = (40, 40, 20)
VOXEL_ML = 0.1
EDGES_MM = (4.0, 5.0, 5.0)
LEFT, RIGHT = slice(0, 20), slice(20, 40)


def measured(**changed: np.ndarray | None) -> PerfusionMeasurement:
    """A stroke on the left: 1000 voxels with Tmax > 6 s, 400 of them > 10 s, of which 200 are core."""
    maps: dict[str, np.ndarray | None] = {
        "tmax": np.full(SHAPE, 2.0),
        "cbf": np.full(SHAPE, 50.0),
        "cbv": np.full(SHAPE, 4.0),
    }
    tmax, cbf, cbv = (maps[name] for name in ("tmax", "cbf", "cbv"))
    assert tmax is not None
    assert cbf is not None
    assert cbv is not None
    tmax[4:16, 8:20, 4:16] = 5.0
    tmax[5:15, 9:19, 5:15] = 7.0
    tmax[5:15, 9:19, 5:9] = 12.0
    cbf[5:15, 9:19, 5:15] = 25.0
    cbf[5:15, 9:19, 5:7] = 10.0
    cbv[5:15, 9:19, 5:15] = 3.0
    cbf[0:2] = 5.0  # an old infarct: low flow and no delay
    maps |= changed
    x = np.broadcast_to(np.arange(SHAPE[0])[:, None, None] - 19.5, SHAPE)
    return measure(**maps, brain=np.ones(SHAPE, bool), mni_x_mm=x, voxel_ml=VOXEL_ML, edges_mm=EDGES_MM)


def test_masks_have_the_stated_volumes() -> None:
    found = measured()
    for mask, volume_ml in ((found.core, found.summary.core_ml), (found.delayed, found.summary.tmax6_ml)):
        assert mask is not None
        assert mask.sum() * VOXEL_ML == pytest.approx(volume_ml)
    assert measured(cbf=None).core is None
    assert measured(tmax=None).delayed is None


def test_all_volumes_and_ratios() -> None:
    found = measured()
    assert found.side is Side.LEFT
    assert found.reference_cbf == pytest.approx(50)
    assert found.summary.model_dump() == pytest.approx(
        {
            "core_ml": 20.0,
            "tmax4_ml": 172.8,
            "tmax6_ml": 100.0,
            "tmax8_ml": 40.0,
            "tmax10_ml": 40.0,
            "mismatch_ml": 80.0,
            "mismatch_ratio": 5.0,
            "hypoperfusion_intensity_ratio": 0.4,
            "cbv_index": 0.75,
        }
    )


def test_units_of_cbf_and_cbv_do_not_matter() -> None:
    plain = measured()
    cbf, cbv = np.full(SHAPE, 50.0), np.full(SHAPE, 4.0)
    cbf[5:15, 9:19, 5:15], cbf[5:15, 9:19, 5:7], cbf[0:2] = 25.0, 10.0, 5.0
    cbv[5:15, 9:19, 5:15] = 3.0
    assert measured(cbf=cbf * 17, cbv=cbv / 100).summary.model_dump() == pytest.approx(plain.summary.model_dump())


def test_without_tmax_low_flow_is_core() -> None:
    found = measured(tmax=None)
    assert found.summary.tmax6_ml is None
    assert found.summary.mismatch_ml is None
    assert found.summary.core_ml == pytest.approx(20.0 + 2 * 40 * 20 * VOXEL_ML)  # and the old infarct


def test_without_cbf_there_is_no_core() -> None:
    found = measured(cbf=None)
    assert found.summary.core_ml is None
    assert found.summary.mismatch_ratio is None
    assert found.summary.tmax6_ml == pytest.approx(100.0)
    assert found.reference_cbf is None


def test_normal_brain_has_no_ratios() -> None:
    found = measured(tmax=np.full(SHAPE, 2.0), cbf=np.full(SHAPE, 50.0))
    assert found.side is None
    assert found.summary.core_ml == found.summary.tmax6_ml == found.summary.mismatch_ml == 0
    assert found.summary.mismatch_ratio is None
    assert found.summary.hypoperfusion_intensity_ratio is None
    assert found.summary.cbv_index is None


def test_islands_are_dropped() -> None:
    tmax = np.full(SHAPE, 2.0)
    tmax[30:32, 30:32, 5:7] = 9.0  # 0.8 mL
    assert measured(tmax=tmax).summary.tmax6_ml == 0
    tmax[30:32, 30:32, 5:8] = 9.0  # 1.2 mL
    assert measured(tmax=tmax).summary.tmax6_ml == pytest.approx(1.2)


def test_right_sided_lesion_is_on_the_right() -> None:
    tmax = np.full(SHAPE, 2.0)
    tmax[25:35, 9:19, 5:15] = 8.0
    assert measured(tmax=tmax).side is Side.RIGHT


def test_large_vessels_do_not_raise_the_reference() -> None:
    cbf = np.full(SHAPE, 50.0)
    cbf[30:32, 30:32] = 400.0
    assert measured(cbf=cbf).reference_cbf == pytest.approx(50)


def test_zero_and_nan_cbf_are_not_tissue() -> None:
    """Perfusion software writes CBF of 0 or NaN in ventricles, vessels and skull."""
    cbf = np.full(SHAPE, 50.0)
    cbf[RIGHT, :10] = 0.0
    cbf[RIGHT, 10:12] = np.nan
    assert measured(cbf=cbf).reference_cbf == pytest.approx(50)


def on_brain(spacing: float, value: float, lesion: float, shear: float = 0.0) -> Volume:
    """A map in MNI space with a cube of 42 mm (40 mm in voxels of 4 mm) in the left hemisphere."""
    shape = tuple(int(n / spacing) for n in (160, 190, 160))
    affine = np.diag([spacing, spacing, spacing, 1.0])
    affine[0, 1] = shear * spacing
    affine[:3, 3] = -80 - shear * 95, -115, -70
    at = np.stack(np.indices(shape), axis=-1) @ affine[:3, :3].T + affine[:3, 3]
    values = np.where(brain_mask.distance(affine, shape, np.eye(4)) < 0, value, 0.0)
    values[np.all(np.abs(at - [-30, -20, 25]) < 21, axis=-1)] = lesion
    return Volume(np.asfortranarray(values, dtype=np.float32), affine)


@pytest.mark.parametrize(("shear", "delayed_error", "core_error"), [(0.0, 1e-6, 1e-6), (0.3, 0.05, 0.065)])
def test_maps_on_different_grids(shear: float, delayed_error: float, core_error: float) -> None:
    """Tmax at 4 mm and CBF at 5 mm, sheared or not: the volume in world space is 64 mL."""
    maps = {Input.TMAX: on_brain(4, 2, 12, shear), Input.CBF: on_brain(5, 50, 5)}
    found = summarise(maps, np.eye(4))
    assert found.side is Side.LEFT
    # Measured relative errors: 0.038 (the edge of the brain is blurred with 0); volumes 0, and 0.05 with shear.
    assert found.reference_cbf == pytest.approx(50, rel=0.0493)
    assert found.summary.tmax6_ml == pytest.approx(64, rel=delayed_error)
    assert found.summary.core_ml == pytest.approx(64, rel=core_error)


def blurred_maps(
    spacing: tuple[float, float, float], slices: int | None = None, *, only_left: bool = False, lesion_mm: float = 40
) -> dict[Input, Volume]:
    """Maps whose brain is mixed with 0 within 4 mm of its surface; flow is 50, in the lesion on the left 10."""
    shape = tuple(int(n / edge) for n, edge in zip((160, 190, 160), spacing, strict=True))
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = -80, -115, -70
    if slices is not None:
        shape, affine[2, 3] = (*shape[:2], slices), 0.0
    at = np.stack(np.indices(shape), axis=-1) @ affine[:3, :3].T + affine[:3, 3]
    share = np.clip(0.5 - brain_mask.distance(affine, shape, np.eye(4)) / 8, 0, 1)
    if only_left:
        share[at[..., 0] > 0] = 0
    lesion = (np.linalg.norm(at - [-40, -20, 15], axis=-1) < lesion_mm) & (at[..., 0] < 0)
    values = {Input.TMAX: np.where(lesion, 12.0, 2.0), Input.CBF: np.where(lesion, 10.0, 50.0)}
    return {name: Volume(np.asfortranarray(share * map_, dtype=np.float32), affine) for name, map_ in values.items()}


@pytest.mark.parametrize(
    "maps",
    [
        pytest.param(blurred_maps((2, 2, 4)), id="whole brain"),
        pytest.param(blurred_maps((1.5, 1.5, 1.5)), id="small voxels"),
        pytest.param(blurred_maps((2, 2, 4), 10), id="slab of 40 mm"),
        pytest.param(blurred_maps((2, 2, 5), 4), id="four slices of 5 mm"),
        pytest.param(blurred_maps((2, 2, 10), 2), id="two slices of 10 mm"),
        pytest.param(blurred_maps((2, 2, 4), lesion_mm=75), id="most of one hemisphere delayed"),
        pytest.param(blurred_maps((2, 2, 4), only_left=True), id="the affected hemisphere only"),
    ],
)
def test_interpolated_surface_of_the_brain_does_not_lower_the_reference(maps: dict[Input, Volume]) -> None:
    assert summarise(maps, np.eye(4)).reference_cbf == pytest.approx(50, rel=1e-3)


def test_scattered_voxels_without_data_leave_a_reference() -> None:
    """Some software writes 0 in every vessel and in noise: no voxel is far from one without data."""
    cbf = np.random.default_rng(0).normal(50, 5, SHAPE)
    cbf[::2, ::2, ::2] = 0
    assert measured(cbf=cbf, tmax=np.full(SHAPE, 2.0)).reference_cbf == pytest.approx(50, rel=0.01)
