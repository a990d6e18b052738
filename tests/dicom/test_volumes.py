"""A volume that was written as DICOM and read again has the same voxels at the same places, or is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from app.dicom.pixels import decode
from app.dicom.writing import Syntax
from app.phantoms.dicom_series import CT, ENHANCED_CT, SeriesPlan
from app.sdk.errors import InvalidDicom
from app.sdk.types import Input
from tests.dicom.studies import REGULAR, TILT, TILTED, contents, converted, plan, volume, voxels

PLACES_MM = [0, 1, 3, 8, 15, 22, 27, 29, 34, 41, 46, 48, 49, 55, 62, 69]  # distances of 1 to 7 mm


@pytest.mark.parametrize("syntax", list(Syntax))
@pytest.mark.parametrize("kind", [CT, ENHANCED_CT])
def test_every_transfer_syntax_gives_the_same_voxels(tmp_path: Path, syntax: Syntax, kind: str) -> None:
    data, affine = volume(converted(tmp_path, contents(plan(TILTED, sop_class=kind), syntax=syntax)))
    np.testing.assert_array_equal(data, voxels())
    np.testing.assert_allclose(affine, TILTED, atol=1e-5)


def test_lossless_jpeg_gives_the_same_voxels(tmp_path: Path) -> None:
    gdcm = pytest.importorskip("gdcm")
    reader, change, writer = gdcm.ImageReader(), gdcm.ImageChangeTransferSyntax(), gdcm.ImageWriter()
    plain, packed = str(tmp_path / "plain"), str(tmp_path / "packed")
    Path(plain).write_bytes(contents(plan())[4])
    reader.SetFileName(plain)
    assert reader.Read()
    change.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.JPEGLosslessProcess14_1))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer.SetFileName(packed)
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    assert writer.Write()
    np.testing.assert_array_equal(next(decode(Path(packed).read_bytes())).T.astype(int) - 1024, voxels()[:, :, 4])


def test_gantry_tilt_stays_a_shear(tmp_path: Path) -> None:
    _, affine = volume(converted(tmp_path, contents(plan(TILTED))))
    normal = np.cross(affine[:3, 0], affine[:3, 1])
    along = affine[:3, 2] @ normal / np.linalg.norm(normal) / np.linalg.norm(affine[:3, 2])
    assert along == pytest.approx(np.cos(TILT), abs=1e-6)


def test_shuffled_and_doubled_files_give_the_same_volume(tmp_path: Path) -> None:
    written = contents(plan(TILTED))
    again = [replace(plan(TILTED), number=3)]
    order = np.random.default_rng(1).permutation(len(written))
    data, affine = volume(converted(tmp_path, [written[k] for k in order] + contents(*again)))
    np.testing.assert_array_equal(data, voxels())
    np.testing.assert_allclose(affine, TILTED, atol=1e-5)


def test_each_slice_has_its_own_rescaling(tmp_path: Path) -> None:
    halves = [plan(slope=2.0, intercept=-2048.0), plan()]
    first, second = (contents(each) for each in halves)
    data, _ = volume(converted(tmp_path, first[:8] + second[8:]))
    np.testing.assert_allclose(data[:, :, :8], 2.0 * voxels()[:, :, :8])
    np.testing.assert_allclose(data[:, :, 8:], voxels()[:, :, 8:])


def test_uneven_slices_are_interpolated_between_their_true_positions(tmp_path: Path) -> None:
    positions = plan(TILTED).positions
    assert positions is not None
    uneven = positions[0] + np.outer(PLACES_MM, positions[1] - positions[0]) / 8
    conversion = converted(tmp_path, contents(plan(TILTED, positions=uneven, thickness=5.0)))
    data, affine = volume(conversion)
    assert [flag.code for flag in conversion.flags] == ["slices-interpolated"]
    shift = TILTED[:3, 2] / 8
    for number, place in enumerate(PLACES_MM):
        at = (shift * place) @ affine[:3, 2] / (affine[:3, 2] @ affine[:3, 2])  # index of the true position
        below = min(int(at), data.shape[2] - 2)
        np.testing.assert_allclose(affine[:3, 3] + at * affine[:3, 2], TILTED[:3, 3] + shift * place, atol=0.01)
        if abs(at - round(at)) < 1e-3:
            np.testing.assert_allclose(data[:, :, round(at)], voxels()[:, :, number], atol=0.2)
        else:
            assert below >= 0
    by_hand = [
        np.array([np.interp(k * affine[2, 2] / shift[2], PLACES_MM, line) for k in range(data.shape[2])])
        for line in voxels().reshape(-1, 16)[:50]
    ]
    np.testing.assert_allclose(data.reshape(-1, data.shape[2])[:50], by_hand, atol=1e-3)


def test_missing_slices_are_refused_with_their_positions(tmp_path: Path) -> None:
    written = contents(plan())
    with pytest.raises(InvalidDicom, match=r"missing at .*-12\.00, -4\.00 mm|missing at .*4\.00, 12\.00 mm"):
        converted(tmp_path, written[:6] + written[8:])


def test_slices_with_constant_gaps_are_no_hole(tmp_path: Path) -> None:
    data, _ = volume(converted(tmp_path, contents(plan(thickness=4.0))))
    assert data.shape[2] == 16


def test_different_slices_at_one_position_are_refused(tmp_path: Path) -> None:
    written = contents(plan())
    other = replace(plan(data=voxels(1)), number=3)
    with pytest.raises(InvalidDicom, match="Two different files have the same SOP Instance UID"):
        converted(tmp_path, written + contents(other))


def test_localizer_and_other_orientation_inside_the_series_are_kept_apart(tmp_path: Path) -> None:
    side = plan(across=(0.0, 1.0, 0.0), down=(0.0, 0.0, -1.0), image_type=("ORIGINAL", "PRIMARY", "LOCALIZER"))
    strange = [content.replace(b"2.25.", b"2.26.") for content in contents(side)[:1]]  # other SOP Instance UIDs
    series = contents(plan())[0].find(b"2.25.")
    assert series > 0
    conversion = converted(tmp_path, [*contents(plan()), _same_series(strange[0])])
    data, _ = volume(conversion)
    np.testing.assert_array_equal(data, voxels())
    assert {(each.part, each.rule) for each in conversion.series} == {(1, "words-ncct"), (2, "localizer")}


def _same_series(content: bytes) -> bytes:
    """Undo the change of the study and series UID, so that only the instance differs."""
    parts = content.split(b"2.26.")
    return parts[0] + b"2.26." + parts[1] + b"2.26." + b"2.25.".join(parts[2:])


def _perfusion(times: list[float], **changes: object) -> SeriesPlan:
    moving = [voxels() + 10 * point for point in range(len(times))]

    def pixels(number: int, time: int) -> np.ndarray:
        return (moving[time][:, :, number].T + 1024).astype(np.uint16)

    return plan(truth="ctp", description="CTP", times_s=tuple(times), pixels=pixels, **changes)


def test_perfusion_series_is_ordered_by_acquisition_time(tmp_path: Path) -> None:
    times = [1.5 * k for k in range(10)]
    written = contents(_perfusion(times))
    order = np.random.default_rng(2).permutation(len(written))
    conversion = converted(tmp_path, [written[k] for k in order])
    data, affine = volume(conversion, Input.CTP)
    for point in range(10):
        np.testing.assert_array_equal(data[..., point], voxels() + 10 * point)
    np.testing.assert_allclose(affine, REGULAR, atol=1e-5)
    assert conversion.flags == ()


def test_time_points_in_series_of_their_own_are_joined(tmp_path: Path) -> None:
    whole = _perfusion([1.5 * k for k in range(10)])

    def only(point: int) -> SeriesPlan:
        def pixels(number: int, _time: int) -> np.ndarray:
            assert whole.pixels is not None
            return whole.pixels(number, point)

        return replace(whole, number=10 + point, times_s=(1.5 * point,), pixels=pixels)

    conversion = converted(tmp_path, contents(*(only(point) for point in range(10))))
    data, _ = volume(conversion, Input.CTP)
    assert data.shape == (*voxels().shape, 10)
    assert conversion.series[0].images == 160


def test_uneven_times_are_interpolated_on_one_time_axis(tmp_path: Path) -> None:
    times = [0.0, 1.5, 3.0, 4.5, 6.0, 7.5, 9.0, 12.0, 15.0, 18.0]
    conversion = converted(tmp_path, contents(_perfusion(times)))
    data, _ = volume(conversion, Input.CTP)
    assert [flag.code for flag in conversion.flags] == ["times-interpolated"]
    expected = np.interp(1.5 * np.arange(data.shape[3]), times, 10.0 * np.arange(10))
    np.testing.assert_allclose(data[3, 4, 5] - voxels()[3, 4, 5], expected, atol=1e-3)
