"""Parts of two patients in one study are flagged; parts of one patient that lie unusually are not."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from app.imaging import study_check
from app.imaging.io import nifti
from app.imaging.io.nifti import Volume
from app.imaging.preprocess import prepare
from app.imaging.registration import align
from app.inference import defaults
from app.phantoms import biology, scene, volumes
from app.phantoms.scanner import USUAL
from app.phantoms.variant import draw_variant
from app.sdk.flags import Severity
from app.sdk.types import Input
from bench.variations import geometry
from tests.imaging import phantom_studies

Study = dict[Input, Volume]

ATROPHIED = 60  # an anatomy with an atrophy of 4 % along each axis


@pytest.fixture(scope="module")
def study() -> Study:
    return phantom_studies.phantom()


@pytest.fixture(scope="module")
def cta(study: Study) -> align.RegistrationImage:
    return align.RegistrationImage(study[Input.CTA])


def pair(study: Study, cta: align.RegistrationImage) -> bool:
    ncct = align.RegistrationImage(study[Input.NCCT])
    return study_check.is_other_head(align.coregister(ncct, cta, rigid=True))


def map_codes(study: Study, cta: align.RegistrationImage) -> set[str]:
    maps = {name: volume for name, volume in study.items() if name in (Input.TMAX, Input.CBF)}
    return {flag.code for flag in study_check.check_maps(maps, cta.coarse)}


def warnings(study: Study) -> set[str]:
    flags = prepare(study, defaults.GRID, defaults.CHANNELS).flags
    return {flag.code for flag in flags if flag.severity is Severity.WARNING}


def test_study_of_one_patient_has_no_warning(study: Study) -> None:
    assert warnings(study) == set()


def test_ncct_of_another_patient_is_flagged(study: Study) -> None:
    assert "study-mismatch" in warnings(study | {Input.NCCT: phantom_studies.phantom(3)[Input.NCCT]})


@pytest.mark.parametrize("seed", range(4))
def test_another_head_is_found_by_its_skull(study: Study, cta: align.RegistrationImage, seed: int) -> None:
    assert pair(geometry.other_patients_ncct(study, np.random.default_rng(seed)), cta)


@pytest.mark.parametrize("vary", [geometry.patient_moved, geometry.thick_ncct, geometry.gantry_tilt])
def test_two_scans_of_one_head_match(
    study: Study, cta: align.RegistrationImage, vary: Callable[[Study, np.random.Generator], Study]
) -> None:
    assert not pair(vary(study, np.random.default_rng(1)), cta)


@pytest.mark.parametrize("mm", [10, 25])
@pytest.mark.parametrize("seed", range(3))
def test_displaced_maps_are_flagged(study: Study, cta: align.RegistrationImage, mm: float, seed: int) -> None:
    displaced = geometry.maps_displaced(study, np.random.default_rng(seed), mm)
    assert map_codes(displaced, cta) == {"perfusion-misplaced"}


def test_distance_of_displaced_maps_is_measured(study: Study, cta: align.RegistrationImage) -> None:
    assert cta.coarse is not None
    for mm in (5.0, 12.0):
        moved = geometry.maps_displaced(study, np.random.default_rng(0), mm)
        found = study_check.displacement_mm({Input.CBF: moved[Input.CBF]}, cta.coarse)
        assert found == pytest.approx(mm, abs=0.5)


def atrophied(slab_mm: tuple[float, float]) -> tuple[Study, align.RegistrationImage]:
    """Maps of a slab of a brain that is smaller than its skull and has wide sulci, as in old age; and the CTA."""
    variation = scene.draw_variation(3, 1)
    scanner = dataclasses.replace(USUAL, slab_mm=slab_mm)
    variation = dataclasses.replace(variation, variant=draw_variant(ATROPHIED), scanner=scanner)
    drawn = scene.build(biology.draw(2, 3)[1], variation)
    pose = volumes.draw_pose(np.random.default_rng(5))
    series = [one for one in volumes.series(drawn, pose, phantom_studies.SPACING) if one.name in ("cta", "tmax", "cbf")]
    found = {Input(one.name): Volume(np.asfortranarray(one.data), one.affine) for one in series}
    return found, align.RegistrationImage(found[Input.CTA])


def test_maps_of_an_atrophied_brain_are_flagged_only_if_displaced() -> None:
    maps, head = atrophied((-22.0, 57.0))
    assert map_codes(maps, head) == set()
    for seed in range(3):
        displaced = geometry.maps_displaced(maps, np.random.default_rng(seed), 10)
        assert map_codes(displaced, head) == {"perfusion-misplaced"}


def test_thin_slab_of_an_atrophied_brain_passes() -> None:
    assert map_codes(*atrophied((0.0, 40.0))) == set()


def test_maps_of_another_patient_are_flagged(study: Study, cta: align.RegistrationImage) -> None:
    assert map_codes(geometry.other_patients_maps(study, np.random.default_rng(0)), cta) != set()


def test_mirrored_maps_of_a_head_that_lies_askew_are_flagged(study: Study, cta: align.RegistrationImage) -> None:
    assert map_codes(geometry.maps_mirrored(study, np.random.default_rng(0)), cta) == {"perfusion-misplaced"}


@pytest.mark.parametrize("vary", [geometry.maps_moved_2mm, geometry.maps_slab, geometry.maps_eroded])
def test_maps_as_perfusion_software_writes_them_pass(
    study: Study, cta: align.RegistrationImage, vary: Callable[[Study, np.random.Generator], Study]
) -> None:
    for seed in range(3):
        assert map_codes(vary(study, np.random.default_rng(seed)), cta) == set()


def test_maps_beside_a_craniectomy_pass(study: Study) -> None:
    opened = geometry.craniectomy(study, np.random.default_rng(0))
    assert map_codes(opened, align.RegistrationImage(opened[Input.CTA])) == set()


def test_maps_without_background_are_not_judged(study: Study, cta: align.RegistrationImage) -> None:
    full = {Input.TMAX: Volume(np.full(study[Input.TMAX].shape, 3.0, np.float32), study[Input.TMAX].affine)}
    assert map_codes(full, cta) == set()


# Mirror images -----------------------------------------------------------------------------------------------------


def sides(one: Volume, other: Volume) -> tuple[str, ...]:
    ncct, cta = align.RegistrationImage(one), align.RegistrationImage(other)
    pair = align.coregister(ncct, cta, rigid=True)
    found = study_check.check_inside(ncct, cta, pair, align.to_mni(cta).mni_from_world)
    return tuple(flag.code for flag in found)


def test_mirror_image_of_a_real_head_is_flagged(real_images: Path) -> None:
    head = nifti.read(real_images / "ncct_human_ge_deskewed.nii.gz", field=Input.NCCT)
    turn = np.eye(4)
    turn[:3, :3] = align.rotation((6, -4, 9))
    moved = dataclasses.replace(head, affine=turn @ head.affine)
    assert sides(moved, head) == ()
    mirrored = dataclasses.replace(head, affine=np.diag([-1.0, 1.0, 1.0, 1.0]) @ head.affine)
    assert sides(mirrored, head) == ("orientation-doubtful",)


def test_sides_of_a_symmetric_head_are_not_judged(study: Study) -> None:
    assert sides(study[Input.NCCT], study[Input.CTA]) == ()


# Ventricles --------------------------------------------------------------------------------------------------------


def test_ncct_with_other_ventricles_in_the_same_skull_is_flagged(study: Study) -> None:
    for seed in (0, 1):
        assert "study-mismatch" in warnings(geometry.other_ventricles(study, np.random.default_rng(seed)))


@pytest.mark.parametrize("vary", [geometry.noisy, geometry.thick_ncct])
def test_ventricles_of_one_patient_agree_in_unlike_scans(
    study: Study, vary: Callable[[Study, np.random.Generator], Study]
) -> None:
    assert "study-mismatch" not in warnings(vary(study, np.random.default_rng(2)))
