"""From a patient's volumes to the tensor: alignment, missing channels, masks, maps, refusals."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from app.imaging import resample
from app.imaging.io.nifti import Volume
from app.imaging.model_grid import ChannelSpec, Grid
from app.imaging.preprocess import PreprocessedImages, prepare
from app.imaging.registration import brain_mask
from app.sdk.errors import GeometryMismatch, ImplausibleModality, InvalidVolume, MissingInput
from app.sdk.types import Channel, Flag, Input, PerfusionSummary
from tests.imaging import heads

GRID = Grid(shape=(48, 56, 48), affine=((4, 0, 0, -94), (0, 4, 0, -128), (0, 0, 4, -76), (0, 0, 0, 1)))
CHANNELS = (
    ChannelSpec(name=Channel.NCCT, window=(0, 80), mean=30, std=15),
    ChannelSpec(name=Channel.CTA, window=(0, 600), mean=60, std=90),
    ChannelSpec(name=Channel.VESSELS, window=(0, 1), mean=0.02, std=0.1),
    ChannelSpec(name=Channel.TMAX, window=(0, 12), mean=1.5, std=2),
    ChannelSpec(name=Channel.RCBF, window=(0, 2), mean=0.5, std=0.5),
)
INDEX = {channel.name: index for index, channel in enumerate(CHANNELS)}
MAPS_SHAPE, MAPS_SPACING = (90, 100, 20), (2.0, 2.0, 6.0)


@pytest.fixture(scope="module")
def drawn() -> heads.Angiogram:
    return heads.angiogram((158, 184, 158), (1.2, 1.2, 1.2))


@pytest.fixture(scope="module")
def maps() -> dict[Input, Volume]:
    """Tmax and CBF in MNI space: a lesion of 35 mm radius on the left, with a core of 20 mm radius."""
    affine = heads.grid(MAPS_SHAPE, MAPS_SPACING)
    affine[2, 3] += 15
    labels = heads.territories(affine, MAPS_SHAPE)
    tmax = np.array([0, 2, 8, 12], np.float32)[labels]
    cbf = np.array([0, 50, 20, 5], np.float32)[labels]
    return {Input.TMAX: Volume(np.asfortranarray(tmax), affine), Input.CBF: Volume(np.asfortranarray(cbf), affine)}


@pytest.fixture(scope="module")
def study(drawn: heads.Angiogram, maps: dict[Input, Volume]) -> dict[Input, Volume]:
    mask = Volume(np.asfortranarray(drawn.vessels, dtype=np.uint8), drawn.cta.affine)
    return {Input.CTA: drawn.cta, Input.NCCT: drawn.ncct, Input.VESSELS: mask, **maps}


@pytest.fixture(scope="module")
def whole(study: dict[Input, Volume]) -> PreprocessedImages:
    return prepare(study, GRID, CHANNELS)


def codes(prepared: PreprocessedImages) -> set[str]:
    return {flag.code for flag in prepared.flags}


def raw(prepared: PreprocessedImages, channel: Channel) -> np.ndarray:
    """The channel before normalisation."""
    spec = CHANNELS[INDEX[channel]]
    return prepared.image[INDEX[channel]] * spec.std + spec.mean


def moved(volume: Volume, by: np.ndarray) -> Volume:
    return dataclasses.replace(volume, affine=by @ volume.affine)


def test_all_volumes_sent(whole: PreprocessedImages) -> None:
    assert whole.image.shape == (5, *GRID.shape)
    assert whole.image.dtype == np.float32
    assert whole.presence.all()
    assert np.isfinite(whole.image).all()
    assert set(whole.grids) == set(Channel)
    assert set(whole.volumes) == {"vessels", *(f"aligned-{channel}" for channel in Channel)}
    assert codes(whole) == set()


def test_channels_are_windowed_and_normalised(whole: PreprocessedImages) -> None:
    for channel, spec in zip(Channel, CHANNELS, strict=True):
        values = raw(whole, channel)
        assert values.min() >= spec.window[0] - 1e-3
        assert values.max() <= spec.window[1] + 1e-3


def test_brain_is_at_the_position_of_the_template(whole: PreprocessedImages) -> None:
    """Brain of 35 HU inside a skull of 1000 HU: in the NCCT channel it is within 3 mm of the template."""
    depth = brain_mask.distance(np.array(GRID.affine), GRID.shape, np.eye(4))
    values = raw(whole, Channel.NCCT)
    assert np.abs(values[depth < -10] - heads.TISSUE).max() < 6.6  # measured 5.06 HU
    assert values[(depth > 7) & (depth < 9)].mean() == pytest.approx(80)  # the upper end of the window


def test_maps_are_resampled_and_measured(whole: PreprocessedImages, maps: dict[Input, Volume]) -> None:
    labels = heads.territories(maps[Input.TMAX].affine, MAPS_SHAPE)
    voxel_ml = float(np.prod(MAPS_SPACING)) / 1000
    assert whole.perfusion is not None
    assert whole.perfusion.core_ml == pytest.approx((labels == heads.CORE).sum() * voxel_ml)
    assert whole.lesions["core"].data.sum() * voxel_ml == pytest.approx(whole.perfusion.core_ml)
    assert whole.lesions["tmax6"].data.sum() * voxel_ml == pytest.approx(whole.perfusion.tmax6_ml)
    assert whole.perfusion.tmax6_ml == pytest.approx((labels >= heads.PENUMBRA).sum() * voxel_ml)
    on_grid = heads.territories(np.array(GRID.affine), GRID.shape)
    assert raw(whole, Channel.TMAX)[on_grid == heads.CORE].mean() == pytest.approx(12, abs=0.79)  # measured 0.61
    assert raw(whole, Channel.RCBF)[on_grid == heads.NORMAL].mean() == pytest.approx(1, abs=0.225)  # measured 0.173


@pytest.mark.parametrize(
    ("edge", "parts", "flagged"),
    [(2.0, 2, False), (2.4, 2, True), (5.0, 2, True), (5.0, 1, False), (6.0, 2, False)],  # 6 mm: slice-thickness
)
def test_slices_thicker_than_the_parts_of_a_version_are_said(edge: float, parts: int, flagged: bool) -> None:
    shape = (160, 184, round(160 / edge))
    ncct = heads.ct(heads.grid(shape, (1.0, 1.0, edge)), shape, noise=5)
    channels = [spec.model_copy(update={"parts": parts}) for spec in CHANNELS if spec.name is Channel.NCCT]
    details = [
        flag.detail for flag in prepare({Input.NCCT: ncct}, GRID, channels).flags if flag.code == "density-averaged"
    ]
    assert [detail.startswith(f"ncct: slices of {edge:.1f} mm; ") for detail in details] == [True] * flagged


def test_missing_channels_are_zero_and_flagged(drawn: heads.Angiogram) -> None:
    found = prepare({Input.NCCT: drawn.ncct}, GRID, CHANNELS)
    assert found.presence.tolist() == [True, False, False, False, False]
    assert not found.image[1:].any()
    assert found.perfusion is None
    missing = [flag.detail.split(":")[0] for flag in found.flags if flag.code == "missing-modality"]
    assert missing == ["CTA", "vessel mask", "Tmax", "relative CBF"]


def test_the_model_chooses_its_channels(study: dict[Input, Volume]) -> None:
    found = prepare(study, GRID, [CHANNELS[3], CHANNELS[0]])
    assert found.image.shape == (2, *GRID.shape)
    assert set(found.grids) == {Channel.TMAX, Channel.NCCT}
    assert "vessels" not in found.volumes


def test_origin_of_the_scan_does_not_change_the_tensor(study: dict[Input, Volume], whole: PreprocessedImages) -> None:
    """The scanner table is a metre away, so only the origin differs."""
    away = np.eye(4)
    away[:3, 3] = 300, -700, 1000
    found = prepare({name: moved(volume, away) for name, volume in study.items()}, GRID, CHANNELS)
    for channel in Channel:
        one, two = raw(whole, channel), raw(found, channel)
        assert np.corrcoef(one.ravel(), two.ravel())[0, 1] > 0.99993, channel  # measured 0.99995


def test_image_on_the_grid_returns_to_the_patient(whole: PreprocessedImages, study: dict[Input, Volume]) -> None:
    """The CTA on the MNI grid, resampled to the patient's voxels, shows brain tissue inside the brain."""
    grid = whole.grids[Channel.CTA]
    assert grid.shape == study[Input.CTA].shape
    back = resample.to_patient(whole.volumes["aligned-cta"].data, GRID, grid.affine, grid.shape, grid.mni_from_world)
    inside = brain_mask.distance(grid.affine, grid.shape, grid.mni_from_world) < -15
    assert np.median(back[inside]) == pytest.approx(heads.TISSUE, abs=0.169)  # measured 0.130 HU


# Vessels -----------------------------------------------------------------------------------------------------------


def test_mask_is_computed_if_none_was_sent(study: dict[Input, Volume], drawn: heads.Angiogram) -> None:
    found = prepare({Input.CTA: study[Input.CTA], Input.NCCT: study[Input.NCCT]}, GRID, CHANNELS)
    assert "vessels-computed" in codes(found)
    mask = found.volumes["vessels"].data > 0
    reach = brain_mask.distance(drawn.cta.affine, drawn.cta.shape, np.eye(4)) < 3
    truth = drawn.vessels & reach
    assert 2 * (mask & truth).sum() / ((mask & reach).sum() + truth.sum()) > 0.899  # measured 0.922


def test_sent_mask_is_used(whole: PreprocessedImages, study: dict[Input, Volume]) -> None:
    assert np.array_equal(whole.volumes["vessels"].data, study[Input.VESSELS].data)


def test_segmenter_is_not_called_if_a_mask_was_sent(study: dict[Input, Volume]) -> None:
    def never(cta: Volume, mni_from_world: np.ndarray, bone: Volume | None = None) -> Volume:
        raise AssertionError

    found = prepare({name: study[name] for name in (Input.CTA, Input.VESSELS)}, GRID, CHANNELS, segmenter=never)
    assert "vessels-computed" not in codes(found)


def test_contrast_is_judged_where_the_mask_lies_on_arteries_only(drawn: heads.Angiogram) -> None:
    weak = heads.angiogram(drawn.cta.shape[:3], drawn.cta.spacing_mm, contrast=150)
    beside = Volume(np.asfortranarray(np.roll(drawn.vessels, 9, axis=0), dtype=np.uint8), drawn.cta.affine)
    on_arteries = Volume(np.asfortranarray(weak.vessels, dtype=np.uint8), weak.cta.affine)
    found = codes(prepare({Input.CTA: drawn.cta, Input.VESSELS: beside}, GRID, CHANNELS))
    assert "vessels-misplaced" in found
    assert "contrast-weak" not in found
    assert "contrast-weak" in codes(prepare({Input.CTA: weak.cta, Input.VESSELS: on_arteries}, GRID, CHANNELS))
    assert "contrast-weak" not in codes(prepare({Input.CTA: drawn.cta}, GRID, CHANNELS))


def test_labels_that_decode_to_almost_one_are_vessels(study: dict[Input, Volume], whole: PreprocessedImages) -> None:
    """int16 with slope and intercept: 1.000015 inside, and 0.000015 outside."""
    mask = study[Input.VESSELS]
    stored = np.where(mask.data > 0, 0, -32767).astype(np.int16)
    scaled = Volume(stored, mask.affine, slope=1 / 32767, inter=1.000015)
    found = prepare({**study, Input.VESSELS: scaled}, GRID, CHANNELS)
    assert np.array_equal(found.volumes["vessels"].data, whole.volumes["vessels"].data)


def test_mask_on_every_second_slice_is_accepted(study: dict[Input, Volume], whole: PreprocessedImages) -> None:
    mask = study[Input.VESSELS]
    thinned = np.asfortranarray(mask.data[:, :, ::2])
    coarse = Volume(thinned, mask.affine @ np.diag([1.0, 1.0, 2.0, 1.0]))
    found = prepare({**study, Input.VESSELS: coarse}, GRID, CHANNELS)
    one, two = raw(whole, Channel.VESSELS), raw(found, Channel.VESSELS)
    assert np.corrcoef(one.ravel(), two.ravel())[0, 1] > 0.9827  # measured 0.9867


def test_mask_of_half_the_head_is_refused(study: dict[Input, Volume]) -> None:
    mask = study[Input.VESSELS]
    half = dataclasses.replace(mask, data=np.asfortranarray(mask.data[:, :, :79]))
    with pytest.raises(GeometryMismatch, match=r"CTA is 158x184x158, vessels 158x184x79.*resample"):
        prepare({**study, Input.VESSELS: half}, GRID, CHANNELS)


def test_other_segmenter_is_used(drawn: heads.Angiogram) -> None:
    def nothing(cta: Volume, mni_from_world: np.ndarray, bone: Volume | None = None) -> Volume:
        assert bone is None
        return Volume(np.zeros(cta.shape, np.uint8), cta.affine)

    found = prepare({Input.CTA: drawn.cta}, GRID, CHANNELS, segmenter=nothing)
    assert raw(found, Channel.VESSELS).max() == pytest.approx(0, abs=1e-6)
    assert found.presence[INDEX[Channel.VESSELS]]


# Perfusion ---------------------------------------------------------------------------------------------------------


def test_maps_are_computed_from_a_ctp_series(drawn: heads.Angiogram) -> None:
    series, labels = heads.series()
    found = prepare({Input.CTA: drawn.cta, Input.CTP: series}, GRID, CHANNELS)
    assert "perfusion-computed" in codes(found)
    assert found.perfusion is not None
    voxel_ml = abs(np.linalg.det(series.affine[:3, :3])) / 1000
    truth_ml = (labels >= heads.PENUMBRA).sum() * voxel_ml
    assert found.perfusion.tmax6_ml == pytest.approx(truth_ml, rel=0.0238)  # measured 0.0183
    assert found.presence[INDEX[Channel.TMAX]]
    assert found.presence[INDEX[Channel.RCBF]]


def test_series_beside_maps_is_not_read(study: dict[Input, Volume]) -> None:
    """A doubt about its time step does not concern the answer, because the maps that were sent are used."""
    doubt = Flag(code="time-step-default", detail="ctp: no step")
    series = dataclasses.replace(heads.series(frames=14)[0], time_step_s=1.0, flags=(doubt,))
    found = prepare({**study, Input.CTP: series}, GRID, CHANNELS)
    assert not {"time-step-default", "perfusion-computed"} & codes(found)
    with pytest.raises(InvalidVolume, match="shorter than a bolus"):
        prepare(
            {name: volume for name, volume in study.items() if name is not Input.CBF} | {Input.CTP: series},
            GRID,
            CHANNELS,
        )


def test_background_of_another_number_is_not_drawn_or_measured(
    study: dict[Input, Volume], whole: PreprocessedImages
) -> None:
    """CBF with 4095 and Tmax with 60 s outside the brain: the network and the numbers get the brain only."""
    marked = {
        name: dataclasses.replace(study[name], data=np.where(study[Input.CBF].data > 0, study[name].data, mark))
        for name, mark in ((Input.TMAX, np.float32(60)), (Input.CBF, np.float32(4095)))
    }
    found = prepare({**study, **marked}, GRID, CHANNELS)
    assert codes(found) == {"map-background"}
    assert found.perfusion == whole.perfusion
    assert np.array_equal(found.image, whole.image)
    assert found.sources[Channel.TMAX].upload is None


def test_blanked_core_is_no_core_of_zero(study: dict[Input, Volume]) -> None:
    labels = heads.territories(study[Input.TMAX].affine, MAPS_SHAPE)
    blanked = {
        name: dataclasses.replace(study[name], data=np.where(labels == heads.CORE, np.float32(0), study[name].data))
        for name in (Input.TMAX, Input.CBF)
    }
    found = prepare({**study, **blanked}, GRID, CHANNELS)
    assert codes(found) == {"core-blanked"}
    assert found.perfusion is not None
    assert found.perfusion.core_ml is None
    assert "core" not in found.lesions


def test_exchanged_tmax_and_cbf_are_refused(study: dict[Input, Volume]) -> None:
    swapped = {Input.TMAX: study[Input.CBF], Input.CBF: study[Input.TMAX]}
    with pytest.raises(ImplausibleModality, match="not seconds of Tmax"):
        prepare({**study, **swapped}, GRID, CHANNELS)


def test_nan_in_maps_is_no_tissue(study: dict[Input, Volume], whole: PreprocessedImages) -> None:
    """Some perfusion software writes NaN outside tissue."""
    tmax = np.array(study[Input.TMAX].data)
    tmax[tmax == 0] = np.nan
    found = prepare({**study, Input.TMAX: Volume(tmax, study[Input.TMAX].affine)}, GRID, CHANNELS)
    assert np.isfinite(found.image).all()
    assert found.perfusion is not None
    assert whole.perfusion is not None
    assert found.perfusion.tmax6_ml == pytest.approx(whole.perfusion.tmax6_ml)


def test_maps_outside_the_head_are_refused(study: dict[Input, Volume]) -> None:
    away = np.eye(4)
    away[2, 3] = 800
    outside = {name: moved(study[name], away) for name in (Input.TMAX, Input.CBF)}
    with pytest.raises(GeometryMismatch, match="tmax map does not lie in the head"):
        prepare({**study, **outside}, GRID, CHANNELS)


def test_maps_partly_outside_the_head_are_flagged(study: dict[Input, Volume]) -> None:
    shift = np.eye(4)
    shift[0, 3] = 90
    shifted = {name: moved(study[name], shift) for name in (Input.TMAX, Input.CBF)}
    found = prepare({**study, **shifted}, GRID, CHANNELS)
    assert "perfusion-misplaced" in codes(found)
    assert found.perfusion == PerfusionSummary()  # before, the core was 0 mL as if it was measured
    assert found.lesions == {}


# Refusals and odd sizes --------------------------------------------------------------------------------------------


def test_maps_without_a_ct_are_refused(maps: dict[Input, Volume]) -> None:
    with pytest.raises(MissingInput, match="cta or an ncct"):
        prepare(maps, GRID, CHANNELS)


def test_mask_sent_as_ncct_is_refused(study: dict[Input, Volume]) -> None:
    with pytest.raises(ImplausibleModality):
        prepare({**study, Input.NCCT: study[Input.VESSELS]}, GRID, CHANNELS)


@pytest.mark.parametrize(("edge", "spacing"), [(16, 13.0), (24, 9.0), (32, 7.0)])
def test_small_volumes_are_prepared(edge: int, spacing: float, maps: dict[Input, Volume]) -> None:
    """Small volumes, as in the tests of other packages, give finite channels."""
    shape = (edge, edge, edge)
    cta, ncct = (heads.ct(heads.grid(shape, (spacing,) * 3), shape, noise=3, seed=seed) for seed in (0, 1))
    tmax = Volume(np.full(shape, 3.0, np.float32), cta.affine)
    found = prepare({Input.CTA: cta, Input.NCCT: ncct, Input.TMAX: tmax}, GRID, CHANNELS)
    assert np.isfinite(found.image).all()
    assert found.presence[:4].all()


def test_field_of_view_without_vertex_is_flagged(drawn: heads.Angiogram) -> None:
    cut = dataclasses.replace(drawn.cta, data=np.asfortranarray(drawn.cta.data[:, :, :100]))
    assert "coverage" in codes(prepare({Input.CTA: cut}, GRID, CHANNELS))


def test_failed_alignment_is_flagged(drawn: heads.Angiogram) -> None:
    """A brain without skull cannot be aligned to the CTA or to MNI space: its centre is used, with flags."""
    shape = (80, 95, 80)
    affine = heads.grid(shape, (2.5, 2.5, 2.5))
    bare = np.where(brain_mask.distance(affine, shape, np.eye(4)) < 0, 35, 0)
    noise = np.random.default_rng(0).normal(0, 5, shape) * (bare > 0)
    ncct = Volume(np.asfortranarray(bare + noise, dtype=np.float32), affine)
    mask = Volume(drawn.vessels.astype(np.uint8), drawn.cta.affine)
    found = prepare({Input.CTA: drawn.cta, Input.NCCT: ncct, Input.VESSELS: mask}, GRID, CHANNELS)
    details = [flag.detail for flag in found.flags if flag.code == "alignment-poor"]
    assert len(details) == 2
    assert "could not be aligned to the cta" in details[0]
    assert "to MNI space is poor" in details[1]
