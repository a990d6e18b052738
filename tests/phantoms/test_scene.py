from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from app.phantoms import anatomy, biology, scene
from app.phantoms.biology import Patient

PATIENT = replace(
    biology.draw(1, 1)[0],
    left=True,
    site="m1",
    truncal=True,
    clot_length_mm=10.0,
    clot_hu=55.0,
    calcified=False,
    tmax6_ml=120.0,
    intensity=0.5,
    core_ml=25.0,
)


def drawn(patient: Patient = PATIENT, index: int = 0) -> scene.Scene:
    return scene.build(patient, scene.draw_variation(5, index))


def clot_mm(found: scene.Scene, branch: str) -> float:
    """Length of the clot within a branch of the left side."""
    tree = anatomy.arteries()
    arcs = tree.arc_mm[tree.of(f"left/{branch}") & found.clot]
    return float(np.ptp(arcs)) if len(arcs) else 0.0


def test_arteries_follow_the_anatomy() -> None:
    tree = anatomy.arteries()
    world = np.stack(np.unravel_index(tree.index, anatomy.SHAPE), -1) + anatomy.ORIGIN_MM
    m1 = world[tree.of("right/m1")]
    assert m1[:, 0].min() == pytest.approx(15, abs=2.5)
    assert m1[:, 0].max() == pytest.approx(38, abs=1.3)  # measured 1.0 mm
    assert (world[tree.of("left/m1")][:, 0] < 0).all()
    assert len(np.unique(tree.index)) == len(tree.index)


def test_truncal_clot_spares_the_bifurcation() -> None:
    found = drawn()
    assert clot_mm(found, "m1") == pytest.approx(10, abs=0.533)  # measured 0.409 mm
    assert clot_mm(found, "m2-superior") == 0
    tree = anatomy.arteries()
    beyond = tree.of("left/m2-superior") & (tree.arc_mm < 5)
    assert found.enhancement[beyond].min() == pytest.approx(0.9)


def test_branching_site_clot_covers_the_bifurcation() -> None:
    found = drawn(replace(PATIENT, truncal=False))
    assert clot_mm(found, "m2-superior") > 1
    assert clot_mm(found, "m2-inferior") > 1
    assert clot_mm(found, "m1") == pytest.approx(7, abs=0.23)  # measured 0.176 mm


def test_other_side_is_unchanged() -> None:
    found = drawn()
    tree = anatomy.arteries()
    right = np.isin(tree.branch, [n for n, name in enumerate(tree.names) if name.startswith("right")])
    assert not found.clot[right].any()
    assert (found.enhancement[right] == 1).all()


def test_poor_collaterals_give_less_enhancement() -> None:
    tree = anatomy.arteries()
    far = tree.of("left/m2-inferior") & (tree.arc_mm > 30)
    good, poor = (drawn(replace(PATIENT, intensity=value)).enhancement[far].mean() for value in (0.2, 0.7))
    assert good - poor == pytest.approx(0.675)


def test_calcified_clot_is_dense() -> None:
    plain, hard = drawn(), drawn(replace(PATIENT, calcified=True))
    assert plain.density[plain.clot].max() < 20
    assert hard.density.max() >= anatomy.PLAQUE


@pytest.mark.parametrize("site", biology.SITES)
@pytest.mark.parametrize("left", [True, False])
def test_lesion_volumes_equal_the_truth(site: str, left: bool) -> None:
    patient = replace(PATIENT, site=site, left=left)
    ranks = scene.ranks_ml(drawn(patient))
    tmax, flow = scene.tmax_s(ranks, patient), scene.flow(ranks, patient)
    voxel = scene.LATTICE_STEP**3 / 1000
    assert (tmax > 6).sum() * voxel == pytest.approx(120)
    assert (tmax > 10).sum() * voxel == pytest.approx(60)
    assert ((flow < 0.3) & (tmax > 4)).sum() * voxel == pytest.approx(25)
    side = scene.lattice().xyz[tmax > 6, 0]
    assert (side < 0).all() if left else (side > 0).all()


def test_variations_differ_between_patients_and_repeat() -> None:
    first, again, other = (scene.draw_variation(5, index) for index in (0, 0, 1))
    assert first.bolus == again.bolus != other.bolus
    assert np.array_equal(first.waves, again.waves)
