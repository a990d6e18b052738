"""The numbers of maps whose answer is a count of voxels."""

from __future__ import annotations

import numpy as np
import pytest

from app.imaging.io.nifti import Volume
from app.imaging.perfusion.summary import Perfusion, measure, summarise
from app.imaging.registration import brain_mask
from app.sdk.clinical import Side
from app.sdk.types import Input

SHAPE = (40, 40, 20)
VOXEL_ML = 0.1
LEFT, RIGHT = slice(0, 20), slice(20, 40)


def measured(**changed: np.ndarray | None) -> Perfusion:
    """A left-sided stroke: 1000 voxels with Tmax > 6 s, 400 of them > 10 s, of which 200 are core."""
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
    cbf[0:2] = 5.0  # an old scar: low flow and no delay
    maps |= changed
    x = np.broadcast_to(np.arange(SHAPE[0])[:, None, None] - 19.5, SHAPE)
    return measure(**maps, brain=np.ones(SHAPE, bool), mni_x_mm=x, voxel_ml=VOXEL_ML)


def test_every_number() -> None:
    found = measured()
    assert found.side is Side.LEFT
    assert found.reference_cbf == pytest.approx(50)
    assert found.summary.model_dump() == pytest.approx({
        "core_ml": 20.0,
        "tmax4_ml": 172.8,
        "tmax6_ml": 100.0,
        "tmax8_ml": 40.0,
        "tmax10_ml": 40.0,
        "mismatch_ml": 80.0,
        "mismatch_ratio": 5.0,
        "hypoperfusion_intensity_ratio": 0.4,
        "cbv_index": 0.75,
    })  # fmt: skip


def test_the_units_of_flow_and_volume_do_not_matter() -> None:
    plain = measured()
    cbf, cbv = np.full(SHAPE, 50.0), np.full(SHAPE, 4.0)
    cbf[5:15, 9:19, 5:15], cbf[5:15, 9:19, 5:7], cbf[0:2] = 25.0, 10.0, 5.0
    cbv[5:15, 9:19, 5:15] = 3.0
    assert measured(cbf=cbf * 17, cbv=cbv / 100).summary.model_dump() == pytest.approx(plain.summary.model_dump())


def test_without_tmax_low_flow_alone_is_core() -> None:
    found = measured(tmax=None)
    assert found.summary.tmax6_ml is None
    assert found.summary.mismatch_ml is None
    assert found.summary.core_ml == pytest.approx(20.0 + 2 * 40 * 20 * VOXEL_ML)  # the scar cannot be told from it


def test_without_flow_there_is_no_core() -> None:
    found = measured(cbf=None)
    assert found.summary.core_ml is None
    assert found.summary.mismatch_ratio is None
    assert found.summary.tmax6_ml == pytest.approx(100.0)
    assert found.reference_cbf is None


def test_a_healthy_brain_has_no_ratios() -> None:
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


def test_the_other_side() -> None:
    tmax = np.full(SHAPE, 2.0)
    tmax[25:35, 9:19, 5:15] = 8.0
    assert measured(tmax=tmax).side is Side.RIGHT


def test_large_vessels_do_not_raise_the_reference() -> None:
    cbf = np.full(SHAPE, 50.0)
    cbf[30:32, 30:32] = 400.0
    assert measured(cbf=cbf).reference_cbf == pytest.approx(50)


def test_what_the_software_left_out_is_not_tissue() -> None:
    """CBF of 0 or NaN: ventricles, vessels, skull."""
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


@pytest.mark.parametrize("shear", [0.0, 0.3])
def test_maps_on_grids_of_their_own(shear: float) -> None:
    """Tmax at 4 mm and CBF at 5 mm, sheared or not: volumes in mL are those of the world, 64 mL."""
    maps = {Input.TMAX: on_brain(4, 2, 12, shear), Input.CBF: on_brain(5, 50, 5)}
    found = summarise(maps, np.eye(4))
    assert found.side is Side.LEFT
    assert found.reference_cbf == pytest.approx(50, rel=0.05)  # the rim of the brain is blurred with 0
    assert found.summary.tmax6_ml == pytest.approx(64, rel=0.05)
    assert found.summary.core_ml == pytest.approx(64, rel=0.25)  # sampled at 5 mm
