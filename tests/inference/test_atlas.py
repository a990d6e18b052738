"""Atlas regions: mirrored, complete, and region_at the anatomical positions."""

from __future__ import annotations

import numpy as np
import pytest

from app.inference.attribution import atlas
from app.inference.attribution.atlas import (
    INFERIOR,
    NAMES,
    PAIRED,
    SUPERIOR,
    TREE,
    labels,
    region_sums,
    with_vessel_tree,
)
from app.registry.manifest import Manifest

# 4 mm, symmetric about the midline: voxel centres region_at x = -94, -90 ... 94.
SHAPE = (48, 56, 48)
AFFINE = ((4.0, 0.0, 0.0, -94.0), (0.0, 4.0, 0.0, -130.0), (0.0, 0.0, 4.0, -74.0), (0.0, 0.0, 0.0, 1.0))


def region_at(x: float, y: float, z: float) -> str:
    i, j, k = (round((value - AFFINE[axis][3]) / 4) for axis, value in enumerate((x, y, z)))
    return NAMES[int(labels(SHAPE, AFFINE)[i, j, k])]


@pytest.mark.parametrize(
    ("position", "region"),
    [
        ((26, 1, -14), "MCA M1"),
        ((14, -4, -27), "ICA"),
        ((14, 8, -27), "ICA"),  # the siphon
        ((10, 12, -33), "ICA"),
        ((26, -24, -54), "ICA"),
        ((40, 4, 4), "insula"),
        ((20, 6, 4), "basal ganglia"),
        ((6, 40, 30), "ACA"),
        ((10, -86, 4), "PCA"),
        ((10, -18, 6), "PCA"),
        ((12, -11, 7), "PCA"),  # the front of the thalamus, in the ellipsoid of the basal ganglia
        ((22, 0, 4), "basal ganglia"),
        ((54, -12, 34), SUPERIOR),
        ((40, 34, 16), SUPERIOR),
        ((58, -30, -6), INFERIOR),
        ((40, 8, -34), INFERIOR),
    ],
)
def test_known_positions(position: tuple[float, float, float], region: str) -> None:
    x, y, z = position
    assert region_at(x, y, z) == f"right {region}"
    assert region_at(-x, y, z) == f"left {region}"


def test_midline_and_outside() -> None:
    assert region_at(2, -30, -38) == "brainstem and cerebellum"
    assert region_at(-26, -66, -38) == "brainstem and cerebellum"
    assert region_at(0, 90, -60) == "other"
    assert region_at(0, 60, -54) == "other"


def test_hemispheres_mirror_each_other() -> None:
    regions = labels(SHAPE, AFFINE)
    swapped = {NAMES.index(f"left {name}"): NAMES.index(f"right {name}") for name in PAIRED}
    swapped |= {right: left for left, right in swapped.items()}
    mirrored = np.vectorize(lambda label: swapped.get(label, label))(regions[::-1])
    assert np.array_equal(mirrored, regions)


def test_every_region_has_voxels_and_sums_add_up() -> None:
    regions = labels(SHAPE, AFFINE)
    trees = {NAMES.index(f"{side} {TREE}") for side in ("left", "right")}  # only for a patient with known arteries
    assert set(np.unique(regions)) == set(range(len(NAMES))) - trees
    values = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
    by_region = region_sums(values, regions)
    assert by_region.sum() == pytest.approx(values.sum(dtype=np.float64), abs=1e-6)
    insula = regions == NAMES.index("left insula")
    assert by_region[NAMES.index("left insula")] == pytest.approx(values[insula].sum(dtype=np.float64), abs=1e-6)


def test_atlas_covers_the_brain() -> None:
    from nilearn.datasets import load_mni152_brain_mask

    mask = load_mni152_brain_mask(resolution=4)
    brain = np.asarray(mask.dataobj) > 0
    regions = labels(brain.shape, tuple(map(tuple, mask.affine)))
    assert (regions[brain] == NAMES.index("other")).mean() < 0.03
    assert atlas.ATLAS == Manifest.model_fields["regions"].default == "rlvo-regions-3"


def test_vessel_tree_takes_small_arteries_and_keeps_ica_and_m1() -> None:
    regions, lumen = labels(SHAPE, AFFINE), np.zeros(SHAPE, bool)
    lumen[10:40, 20:40, 15:30] = True
    with_tree = with_vessel_tree(regions, lumen, AFFINE)
    for side, region in (("left", SUPERIOR), ("right", "insula")):
        expected = lumen & (regions == NAMES.index(f"{side} {region}"))
        assert expected.any()
        assert (with_tree[expected] == NAMES.index(f"{side} {TREE}")).all()
    kept = np.isin(regions, [NAMES.index(f"{side} {name}") for side in ("left", "right") for name in ("ICA", "MCA M1")])
    assert np.array_equal(with_tree[kept | ~lumen], regions[kept | ~lumen])
    assert np.array_equal(regions, labels(SHAPE, AFFINE))  # the cached atlas is unchanged
