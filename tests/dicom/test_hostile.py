"""Damaged and hostile files end in a clear refusal or are kept out; nothing crashes, hangs or takes much memory."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from app.dicom import dataset
from app.dicom.convert import convert, read_choices
from app.dicom.errors import DicomLimits, Unreadable
from app.dicom.files import open_files
from app.dicom.instance import read_instance
from app.dicom.pixels import decode
from app.dicom.writing import Syntax
from app.phantoms.dicom_series import DOSE_SR, files
from app.sdk.errors import DecompressedTooLarge, InvalidDicom, PatientMismatch, RlvoError
from tests.dicom.studies import contents, converted, plan, volume, voxels, write

SMALL = DicomLimits(max_files=100, max_file_bytes=200_000, max_study_bytes=2_000_000)


def one(syntax: Syntax = Syntax.EXPLICIT) -> bytes:
    return next(files(plan(), "study", syntax=syntax))


def replaced(content: bytes, tag: tuple[int, int], value: bytes) -> bytes:
    """The file with another value of equal length for a short explicit attribute."""
    at = content.index(struct.pack("<HH", *tag))
    return content[: at + 8] + value + content[at + 8 + len(value) :]


def deep(levels: int) -> bytes:
    """A private sequence of undefined length, nested."""
    start = struct.pack("<HH2sHI", 0x0009, 0x1010, b"SQ", 0, 0xFFFFFFFF) + struct.pack(
        "<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF
    )
    end = struct.pack("<HHI", 0xFFFE, 0xE00D, 0) + struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
    return start * levels + end * levels


def with_sequence(levels: int) -> bytes:
    content = one()
    at = content.index(struct.pack("<HH", 0x0010, 0x0010))
    return content[:at] + deep(levels) + content[at:]


def deflated_bomb() -> bytes:
    content = one(Syntax.DEFLATED)
    at = content.index(Syntax.DEFLATED.uid.encode())
    start = at + len(Syntax.DEFLATED.uid) + 1
    while content[start : start + 2] == b"\x02\x00":
        start += 8 + int.from_bytes(content[start + 6 : start + 8], "little")
    pack = zlib.compressobj(9, zlib.DEFLATED, -15)
    return content[:start] + pack.compress(bytes(5_000_000)) + pack.flush()


def hostile() -> Iterator[tuple[str, bytes]]:
    content = one()
    for size in (0, 1, 131, 132, 140, 300, len(content) // 2, len(content) - 10):
        yield f"truncated to {size}", content[:size]
    yield "wrong group length", content[:140] + b"\xff\xff\xff\x7f" + content[144:]
    yield "65535 rows", replaced(content, (0x0028, 0x0010), b"\xff\xff")
    yield "65535 columns", replaced(content, (0x0028, 0x0011), b"\xff\xff")
    yield "no rows", replaced(content, (0x0028, 0x0010), b"\0\0")
    yield "32 bits", replaced(content, (0x0028, 0x0100), b"\x40\0")
    yield "sequence of depth 300", with_sequence(300)
    yield "sequence of depth 5000", with_sequence(5000)
    yield "deflate bomb", deflated_bomb()
    yield "text", b"hello" * 100
    yield "mark only", bytes(128) + b"DICM"
    rng = np.random.default_rng(0)
    for syntax in Syntax:
        whole = one(syntax)
        for _ in range(8):
            flipped = bytearray(whole)
            for place in rng.integers(132, len(whole), 30):
                flipped[place] = rng.integers(256)
            yield f"random bytes in {syntax}", bytes(flipped)


def test_hostile_files_are_read_or_kept_out() -> None:
    kept_out = 0
    for _, content in hostile():
        try:
            read_instance(content, 0, SMALL)
            for frame in decode(content, SMALL):
                assert frame.ndim == 2
        except Unreadable:
            kept_out += 1
    assert kept_out > 20


@pytest.mark.parametrize("kind", [b"FD", b"AT", b"SQ", b"OB", b"DS"])
def test_a_uid_of_another_kind_is_read_or_missing(kind: bytes) -> None:
    content = one()
    uid = read_instance(content, 0).study_uid
    at = content.index(struct.pack("<HH2s", 0x0020, 0x000D, b"UI"))
    damaged = content[: at + 4] + kind + content[at + 6 :]
    with suppress(Unreadable):
        assert uid in (read_instance(damaged, 0).study_uid, uid)


def test_sequence_of_usual_depth_is_read() -> None:
    assert read_instance(with_sequence(10), 0).frames


def test_many_private_attributes_cost_nothing() -> None:
    content = one()
    at = content.index(struct.pack("<HH", 0x0010, 0x0010))
    private = b"".join(struct.pack("<HH2sH4s", 0x0009, number, b"LO", 4, b"abcd") for number in range(0x1000, 0xFFFF))
    data = content[:at] + private + content[at:]
    read = dataset.read(data, (0x00100010,))
    assert len(read) == 2  # with the character set


def test_frames_that_are_not_there_are_kept_out() -> None:
    content = one()
    at = content.index(struct.pack("<HH", 0x0028, 0x0010))
    lie = content[:at] + struct.pack("<HH2sH4s", 0x0028, 0x0008, b"IS", 4, b"9999") + content[at:]
    with pytest.raises(Unreadable):
        read_instance(lie, 0)


def test_size_in_a_compressed_frame_must_be_that_of_the_header() -> None:
    content = one(Syntax.JPEG2000)
    at = content.index(b"\xff\x4f\xff\x51")
    grown = content[: at + 8] + struct.pack(">II", 60_000, 60_000) + content[at + 16 :]
    with pytest.raises(Unreadable, match="another size"):
        list(decode(grown))


def test_damaged_file_is_counted_and_its_missing_slice_is_named(tmp_path: Path) -> None:
    written = contents(plan())
    written[5] = written[5][:-100]
    with pytest.raises(InvalidDicom, match="Slices are missing at"):
        converted(tmp_path, written)
    _, flags = read_choices(open_files(tmp_path / "study"))
    assert [flag.code for flag in flags] == ["files-kept-out"]


def test_other_files_and_objects_beside_the_series_are_kept_out(tmp_path: Path) -> None:
    report = contents(plan(number=9, sop_class=DOSE_SR, modality="SR", description="Dose report"))
    conversion = converted(tmp_path, [*contents(plan()), b"a text", *report])
    np.testing.assert_array_equal(volume(conversion)[0], voxels())
    assert [(each.rule, each.images) for each in conversion.series] == [("words-ncct", 16), ("dose-report", 1)]
    assert conversion.flags == ()


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [(b"SYNTHETIC ", b"SOMEONEEL ", "patient id"), (b"SYNTHETIC^PHANTOM", b"SYNTHETIC^ANOTHER", "name")],
)
def test_files_of_two_patients_are_refused_as_a_whole(tmp_path: Path, old: bytes, new: bytes, named: str) -> None:
    written = contents(plan())
    assert old in written[3]
    written[3] = written[3].replace(old, new)
    with pytest.raises(PatientMismatch, match=named) as refusal:
        converted(tmp_path, written)
    assert new.decode() not in str(refusal.value)


def test_name_in_another_spelling_is_the_same_patient(tmp_path: Path) -> None:
    written = contents(plan())
    written[3] = written[3].replace(b"SYNTHETIC^PHANTOM", b"Synthetic^Phantom")
    converted(tmp_path, written)


def archive(path: Path, members: dict[str, bytes], **options: object) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, **options) as made:
        for name, content in members.items():
            made.writestr(name, content)
    return path


def test_archive_is_read_by_content_and_not_by_names(tmp_path: Path) -> None:
    members = {f"../../{number}/x": content for number, content in enumerate(contents(plan()))}
    conversion = convert(archive(tmp_path / "study.zip", members), tmp_path)
    np.testing.assert_array_equal(volume(conversion)[0], voxels())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ncct.nii", "study.zip"]


@pytest.mark.parametrize("kind", ["no archive", "bomb", "many files", "large study", "empty", "no DICOM"])
def test_archive_that_cannot_be_used_is_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "study.zip"
    if kind == "no archive":
        path.write_bytes(b"PK\x03\x04" + bytes(100))
    else:
        inner = io.BytesIO()
        with zipfile.ZipFile(inner, "w") as made:
            made.writestr("x", one())
        members = {
            "bomb": {"x": bytes(10_000_000)},
            "many files": {str(number): b"" for number in range(101)},
            "large study": {str(number): one() + bytes(190_000) for number in range(12)},
            "empty": {},
            "no DICOM": {"inner.zip": inner.getvalue()},
        }[kind]
        archive(path, members)
    with pytest.raises((InvalidDicom, DecompressedTooLarge)) as refusal:
        convert(path, tmp_path, limits=SMALL)
    assert isinstance(refusal.value, RlvoError)
    assert str(tmp_path) not in str(refusal.value)


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_damaged_member_of_an_archive_is_kept_out(tmp_path: Path, compression: int) -> None:
    content = np.random.default_rng(1).integers(0, 4, 5000, np.uint8).tobytes()
    path = tmp_path / "study.zip"
    with zipfile.ZipFile(path, "w", compression) as made:
        made.writestr("0", content)
    damaged = bytearray(path.read_bytes())
    damaged[40:400] = bytes(360)
    whole, broken = open_files(path), tmp_path / "damaged.zip"
    assert whole.read(0) == content
    broken.write_bytes(damaged)
    with pytest.raises(Unreadable):
        open_files(broken).read(0)


def test_links_in_a_folder_are_not_followed(tmp_path: Path) -> None:
    folder = write(tmp_path / "study", contents(plan()))
    (folder / "link").symlink_to("/etc/passwd")
    assert len(open_files(folder)) == 16
