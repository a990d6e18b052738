"""The UIDs at the start of a file are read without decoding it, whatever the file is."""

from __future__ import annotations

import io
import struct

import pydicom
import pytest

from app.dicom.errors import Unreadable
from app.dicom.head import MAX_HEAD_BYTES, Head, read_head
from app.dicom.writing import Syntax
from tests.dicom.studies import contents, plan

META = b"\0" * 128 + b"DICM"


def head(data: bytes) -> Head:
    return read_head(io.BytesIO(data))


def element(tag: int, vr: bytes, value: bytes) -> bytes:
    start = struct.pack("<HH", tag >> 16, tag & 0xFFFF) + vr
    size = struct.pack("<HI", 0, len(value)) if vr in (b"SQ", b"UN") else struct.pack("<H", len(value))
    return start + size + value


def uid(tag: int, value: bytes) -> bytes:
    return element(tag, b"UI", value + b"\0" * (len(value) % 2))


def file(*elements: bytes, syntax: bytes = b"1.2.840.10008.1.2.1") -> bytes:
    return META + uid(0x00020010, syntax) + b"".join(elements)


UIDS = [uid(0x00080016, b"1.2.1"), uid(0x00080018, b"1.2.2"), uid(0x0020000D, b"1.2.3"), uid(0x0020000E, b"1.2.4")]


@pytest.mark.parametrize("syntax", list(Syntax))
def test_the_uids_are_those_that_pydicom_reads(syntax: Syntax) -> None:
    data = contents(plan(), syntax=syntax)[0]
    read, expected = head(data), pydicom.dcmread(io.BytesIO(data))
    assert read.study_uid == expected.StudyInstanceUID
    assert read.series_uid == expected.SeriesInstanceUID
    assert read.sop_uid == expected.SOPInstanceUID
    assert read.sop_class_uid == expected.SOPClassUID
    assert read.syntax == expected.file_meta.TransferSyntaxUID


@pytest.mark.parametrize("nested", [0, 1, 40])
def test_sequences_before_the_uids_are_skipped(nested: int) -> None:
    begin = struct.pack("<HH2sHI", 0x0008, 0x1140, b"SQ", 0, 0xFFFFFFFF) + struct.pack(
        "<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF
    )
    end = struct.pack("<HHI", 0xFFFE, 0xE00D, 0) + struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
    inner = uid(0x0020000D, b"9.9")  # a UID inside of a sequence is not that of the file
    sequence = begin * (nested // 2 + 1) + inner + end * (nested // 2 + 1)
    assert head(file(*UIDS[:2], sequence, *UIDS[2:])).study_uid == "1.2.3"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"not DICOM" * 100,
        META,
        file(),
        file(*UIDS[:3]),
        file(*UIDS[:2], UIDS[3], UIDS[2]),
        file(*UIDS[:3], uid(0x0020000E, b"1.2.x")),
        file(*UIDS[:3], uid(0x0020000E, b"1" * 66)),
        file(*UIDS[:3], UIDS[3][:9]),
        file(element(0x00080008, b"UN", b"")[:8] + b"\xfe\xff\xff\x7f", *UIDS),
        file(struct.pack("<HH2sHI", 0x0008, 0x0006, b"SQ", 0, 0xFFFFFFFF) * 100_000, *UIDS),
        file(struct.pack("<HH2sHI", 0x0008, 0x0006, b"SQ", 0, 0xFFFFFFFF), *UIDS),
        file(element(0x00080008, b"UN", b"\0" * MAX_HEAD_BYTES), *UIDS),
        file(b"\xff" * 100, syntax=b"1.2.840.10008.1.2.1.99"),
        META + uid(0x00020003, b"1.9") + uid(0x00020010, b"1.2.840.10008.1.2.1") + b"".join(UIDS),
    ],
    ids=range(15),
)
def test_a_file_without_readable_uids_is_unreadable(data: bytes) -> None:
    with pytest.raises(Unreadable):
        head(data)


def test_the_smallest_file_with_uids_is_read() -> None:
    assert head(file(*UIDS)) == Head("1.2.3", "1.2.4", "1.2.1", "1.2.2", "1.2.840.10008.1.2.1", len(file()))
