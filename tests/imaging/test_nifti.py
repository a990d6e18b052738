"""Volumes are read as by nibabel, in every orientation, type and version; maps are written."""

from __future__ import annotations

import gzip
import itertools
import tracemalloc
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from app.imaging.io.nifti import Volume, read, write
from app.sdk.errors import InvalidVolume, RlvoError
from app.sdk.types import Input
from tests.imaging.helpers import check_stream
from tests.imaging.hostile import AFFINE, CODES, build, gz, voxels

AXES = [
    "".join(letters) for order in itertools.permutations(("LR", "PA", "IS")) for letters in itertools.product(*order)
]


def save(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def check(path: Path, sent_as: Input = Input.CTA) -> Volume:
    """Read a file, and compare voxels, values and affine with nibabel."""
    volume = read(path, field=sent_as)
    image = nib.load(path)
    raw = np.asarray(image.dataobj.get_unscaled()).reshape(volume.shape, order="F")
    assert volume.data.dtype.isnative
    assert np.array_equal(volume.data, raw)
    assert np.allclose(volume.values(), image.get_fdata().reshape(volume.shape, order="F"), rtol=1e-6, atol=1e-6)
    assert np.allclose(volume.affine, image.affine, atol=1e-4)
    assert np.allclose(volume.spacing_mm, nib.affines.voxel_sizes(image.affine), atol=1e-5)
    return volume


def test_there_are_48_orientations() -> None:
    assert len(set(AXES)) == 48


@pytest.mark.parametrize("axes", AXES)
@pytest.mark.parametrize("form", ["qform", "sform", "both"])
def test_every_orientation_is_read_as_by_nibabel(tmp_path: Path, axes: str, form: str) -> None:
    base = nib.Nifti1Image(voxels((6, 5, 4)), nib.affines.from_matvec(np.diag([0.5, 0.6, 2.0]), [-12, 30, 4]))
    wanted = nib.orientations.axcodes2ornt(axes)
    turned = base.as_reoriented(nib.orientations.ornt_transform(nib.io_orientation(base.affine), wanted))
    turned.set_qform(turned.affine, code=0 if form == "sform" else 1)
    turned.set_sform(turned.affine, code=0 if form == "qform" else 1)
    turned.header.set_xyzt_units("mm")
    path = tmp_path / "turned.nii"
    nib.save(turned, path)
    volume = check(path)
    assert "".join(nib.aff2axcodes(volume.affine)) == axes
    assert volume.flags == ()
    # The voxel that is farthest to the right, front and top has not moved.
    corner = np.argwhere(volume.data == base.get_fdata()[5, 4, 3])
    assert any(np.allclose(volume.affine @ [*voxel, 1], base.affine @ [5, 4, 3, 1], atol=1e-4) for voxel in corner)


@pytest.mark.parametrize("kind", CODES)
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("version", [1, 2])
def test_every_type_order_and_version_is_read(tmp_path: Path, kind: str, order: str, version: int) -> None:
    for slope, inter in ((1.0, 0.0), (0.25, -1024.0), (-3.5, 7.0), (0.0, 0.0)):
        data = build(voxels(kind=kind), version=version, order=order, scl_slope=slope, scl_inter=inter)
        plain = check(save(tmp_path / "a.nii", data))
        packed = check(save(tmp_path / "a.nii.gz", gz(data)))
        assert np.array_equal(plain.data, packed.data)
        assert plain.data.dtype == np.dtype(kind)


SCALINGS = ((1.0, 0.0), (0.25, -1024.0), (-3.5, 7.0), (0.0, 0.0))
UNITS_PER_MM = {2: 1.0, 1: 1e-3, 3: 1e3, 0: 1.0}
TOGETHER = list(itertools.product(CODES, "<>", (1, 2), SCALINGS, UNITS_PER_MM))


@pytest.mark.parametrize("axes", AXES)
@pytest.mark.parametrize("count", [6, pytest.param(len(TOGETHER), marks=pytest.mark.soak)])
def test_combinations_of_all_properties_are_read(tmp_path: Path, axes: str, count: int) -> None:
    """Compare with nibabel, which ignores units: 6 of the 640 combinations per orientation, all in the soak."""
    directions = np.array(
        [
            {"R": (1, 0, 0), "A": (0, 1, 0), "S": (0, 0, 1), "L": (-1, 0, 0), "P": (0, -1, 0), "I": (0, 0, -1)}[letter]
            for letter in axes
        ],
        float,
    ).T
    affine_mm = nib.affines.from_matvec(directions @ np.diag([0.5, 0.6, 2.0]), [-12, 700, 4])
    chosen = np.random.default_rng(AXES.index(axes)).permutation(len(TOGETHER))[:count]
    for kind, order, version, (slope, inter), units in (TOGETHER[n] for n in chosen):
        stored = affine_mm * UNITS_PER_MM[units]
        data = build(
            voxels((6, 5, 4), kind),
            version=version,
            order=order,
            scl_slope=slope,
            scl_inter=inter,
            xyzt_units=units,
            qform_code=0,
            srow=tuple(stored[:3].ravel()),
            pixdim=(1.0, *(np.array([0.5, 0.6, 2.0]) * UNITS_PER_MM[units]), 0.0, 0.0, 0.0, 0.0),
        )
        path = save(tmp_path / "a.nii", data)
        volume, image = read(path, field=Input.CTA), nib.load(path)
        assert volume.data.dtype == np.dtype(kind)
        assert np.array_equal(volume.data, np.asarray(image.dataobj.get_unscaled()))
        assert np.allclose(volume.values(), image.get_fdata(), rtol=1e-6, atol=1e-6)
        assert np.allclose(volume.affine[:3], image.affine[:3] / UNITS_PER_MM[units], rtol=1e-6, atol=1e-4)
        assert "".join(nib.aff2axcodes(volume.affine)) == axes
        assert [flag.code for flag in volume.flags] == ([] if units else ["units-assumed"])


def test_series_is_read_with_its_time_step(tmp_path: Path) -> None:
    volume = check(save(tmp_path / "a.nii", build(voxels((5, 4, 3, 7)))), Input.CTP)
    assert volume.shape == (5, 4, 3, 7)
    assert volume.time_step_s == 1.5
    assert volume.spacing_mm == pytest.approx((0.5, 0.6, 2.0))


EXPECTED = {
    "ctp_mtt_rgb24.nii.gz": "RGB",
    "dim4_int16_ext.nii.gz": "4-D series",
    "dim5_small.nii": "vector",
    "pair_nifti1.hdr": "pair",
    "pair_nifti1.img": "not NIfTI",
    "perf4d_mr_asl_float32.nii.gz": "4-D series",
    "tiny_7x5x3.nii.gz": "only scales",
}
FLAGGED = {
    "atlas_arterial_territories.nii.gz": ["units-assumed"],
    "ct_abdomen_int32.nii.gz": ["units-assumed"],
    "ct_headphantom_shear_uint8_scaled.nii.gz": ["affine-disagree"],
}


def test_every_real_file_is_read_or_refused_as_expected(real_images: Path, tmp_path: Path) -> None:
    files = sorted(path for path in real_images.iterdir() if path.suffix != ".md")
    assert EXPECTED.keys() | FLAGGED.keys() <= {path.name for path in files}
    for path in files:
        if path.name in EXPECTED:
            with pytest.raises(InvalidVolume, match=EXPECTED[path.name]):
                read(path, field=Input.CTA)
            continue
        volume = check(path)
        assert [flag.code for flag in volume.flags] == FLAGGED.get(path.name, [])
        stored, _ = check_stream(path.read_bytes())
        kept = read(save(tmp_path / "kept", stored), field=Input.CTA)
        assert np.array_equal(kept.data, volume.data)
        assert np.array_equal(kept.affine, volume.affine)
        assert (kept.flags, kept.slope, kept.inter) == (volume.flags, volume.slope, volume.inter)


def test_real_series_are_read_as_ctp(real_images: Path) -> None:
    assert check(real_images / "perf4d_mr_asl_float32.nii.gz", Input.CTP).time_step_s == pytest.approx(4.1)
    assert check(real_images / "dim4_int16_ext.nii.gz", Input.CTP).time_step_s is None  # the header says 2000 s


def test_a_flipped_bit_is_never_read(tmp_path: Path) -> None:
    packed = bytearray(gz(build(voxels((20, 20, 20)))))
    middle = len(packed) // 2
    refused = 0
    for bit in range(64):
        packed[middle + bit // 8] ^= 1 << bit % 8
        with pytest.raises(RlvoError):
            read(save(tmp_path / "a.nii.gz", bytes(packed)), field=Input.CTA)
        packed[middle + bit // 8] ^= 1 << bit % 8
        refused += 1
    assert refused == 64


def test_scaled_labels_decode_near_whole_numbers(real_images: Path) -> None:
    labels = read(real_images / "atlas_arterial_territories.nii.gz", field=Input.VESSELS).values()
    assert not np.array_equal(labels, np.rint(labels))
    assert np.abs(labels - np.rint(labels)).max() < 3.2e-4  # measured 2.4e-4


def test_large_intercept_keeps_every_hounsfield_unit() -> None:
    stored = np.asfortranarray(np.arange(2**31 - 100, 2**31 + 116, dtype=np.uint32).reshape(6, 6, 6))
    volume = Volume(stored, AFFINE, slope=1.0, inter=-float(2**31))
    assert np.array_equal(volume.values().ravel(), np.arange(-100, 116, dtype=np.float32))


@pytest.mark.parametrize("kind", ["f4", "f8"])
@pytest.mark.parametrize("slope", [2.0, -2.0])
@pytest.mark.parametrize("order", ["<", ">"])
def test_non_finite_voxels_take_the_lowest_value(tmp_path: Path, kind: str, slope: float, order: str) -> None:
    data = voxels((128, 128, 80), kind)
    data[:, :, 5:75] = np.nan
    for i, gap in enumerate((np.nan, np.inf, -np.inf, 3e38)):
        data[i, i, i] = gap
    signalling = {"f4": 0x7FA00001, "f8": 0x7FF4000000000001}[kind]
    data.view(kind.replace("f", "u"))[9, 9, 3] = signalling
    values = read(save(tmp_path / "a.nii", build(data, scl_slope=slope, order=order)), field=Input.TMAX).values()
    numbers = np.abs(data) < 1e38
    expected = np.where(numbers, data, 0).astype(np.float64) * slope
    assert np.allclose(values[numbers], expected[numbers], rtol=1e-6)
    assert [values[i, i, i] for i in range(4)] == [np.float32(expected[numbers].min())] * 4


@pytest.mark.parametrize("scale", [(1.0, 0.0), (0.5, -1024.0), (-2.0, 100.0)])
@pytest.mark.parametrize(("lowest", "filled"), [(-480, -1000), (-1024, -1024), (-100, -100), (24, 24)])
def test_air_without_a_number_is_air(tmp_path: Path, lowest: float, filled: float, scale: tuple[float, float]) -> None:
    """Before, the air of a CT that has NaN in its place was at the edge of the skin, and the CT was refused."""
    hu = np.linspace(lowest, 1500, 512, dtype=np.float32).reshape(8, 8, 8)
    data = (hu - scale[1]) / scale[0]
    data[2, 2, 2] = np.nan
    path = save(tmp_path / "a.nii", build(data, scl_slope=scale[0], scl_inter=scale[1]))
    values = read(path, field=Input.CTA).values()
    assert values[2, 2, 2] == pytest.approx(filled, abs=0.01)
    assert values[0, 0, 0] == pytest.approx(lowest, abs=0.01)


@pytest.mark.parametrize("order", ["<", ">"])
def test_reading_needs_one_copy_of_the_voxels(tmp_path: Path, order: str) -> None:
    data = voxels((256, 256, 128))
    path = save(tmp_path / "a.nii.gz", gzip.compress(build(data, order=order), 1))
    tracemalloc.start()
    volume = read(path, field=Input.CTA)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert np.array_equal(volume.data, data)
    assert peak < 1.3 * data.nbytes


@pytest.mark.parametrize("kind", ["u1", "i2", "f4"])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_written_map_is_read_back_and_reproducible(tmp_path: Path, kind: str, suffix: str) -> None:
    sheared = AFFINE.copy()
    sheared[1, 2] = 0.7
    data = voxels((7, 6, 5), kind)
    for affine in (AFFINE, sheared):
        path = tmp_path / f"map{suffix}"
        write(path, data, affine, description="attribution of the cta")
        volume = check(path)
        assert volume.data.dtype == data.dtype
        assert np.array_equal(volume.data, data)
        assert np.allclose(volume.affine, affine, atol=1e-5)
        assert nib.load(path).header["descrip"].item() == b"attribution of the cta"
        first = path.read_bytes()
        write(path, np.ascontiguousarray(data), affine, description="attribution of the cta")
        assert path.read_bytes() == first
