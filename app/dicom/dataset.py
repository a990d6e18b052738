"""Read one DICOM file into a pydicom data set, safely: any damage is one error, and sizes are bounded.

Design notes:
- Only the attributes in use are parsed, so private tags cost nothing.
- Deflated files are inflated here, because pydicom inflates without a limit.
- pydicom raises many kinds of errors for damaged files, among them RecursionError for deep sequences. All of them mean
  that the file cannot be used.

Sources: DICOM PS3.5 (data structures and encoding), PS3.10 (file format).
"""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Collection
from io import BytesIO

from pydicom import config, dcmread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filereader import read_dataset
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian

from app.dicom.errors import DEFAULT, DicomLimits, Unreadable

__all__ = ["read"]

PIXEL_DATA = 0x7FE00010
_PREAMBLE, _MARK = 128, b"DICM"
_START = 132  # of the first element of a file with a preamble
_FIRST_TAGS = (b"\x02\x00", b"\x08\x00", b"\x00\x08")  # group 0002 or 0008, little or big endian
_LONG = (b"OB", b"OW", b"OF", b"SQ", b"UN", b"UT", b"UC", b"UR", b"OD", b"OL", b"OV", b"SV", b"UV")
_TRANSFER_SYNTAX = b"\x02\x00\x10\x00"


def read(data: bytes, tags: Collection[int], limits: DicomLimits = DEFAULT) -> Dataset:
    """Parse the attributes ``tags`` of a file, and its file meta information.

    Args:
        data: the whole file.
        tags: tags of the attributes to keep; sequences keep all their attributes.
        limits: largest size of an inflated file.

    Returns:
        The data set; values are converted when they are read.

    Raises:
        Unreadable: the bytes are not DICOM, or are damaged.
    """
    if data[_PREAMBLE:_START] != _MARK and data[:2] not in _FIRST_TAGS:
        raise Unreadable("is not DICOM")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            settings = config.settings
            settings.reading_validation_mode = config.IGNORE
            if (start := _deflated_from(data)) is not None:
                return _inflated(data[start:], tags, limits)
            return dcmread(BytesIO(data), force=True, specific_tags=list(tags))
        except Unreadable:
            raise
        except Exception as error:
            raise Unreadable("is damaged") from error


def _deflated_from(data: bytes) -> int | None:
    """Start of the deflated data set, if the file meta information names this transfer syntax; else None."""
    at, syntax = _START, b""
    while data[at : at + 2] == b"\x02\x00" and at + 12 <= len(data):
        tag = data[at : at + 4]
        head = 12 if data[at + 4 : at + 6] in _LONG else 8
        length = int.from_bytes(data[at + 8 : at + 12] if head == 12 else data[at + 6 : at + 8], "little")
        if tag == _TRANSFER_SYNTAX:
            syntax = data[at + head : at + head + length].rstrip(b"\0 ")
        at += head + length
    return at if syntax == DeflatedExplicitVRLittleEndian.encode() else None


def _inflated(packed: bytes, tags: Collection[int], limits: DicomLimits) -> Dataset:
    inflate = zlib.decompressobj(-zlib.MAX_WBITS)
    plain = inflate.decompress(packed, limits.max_file_bytes + 1)
    if len(plain) > limits.max_file_bytes:
        raise Unreadable("inflates to more than the limit")
    dataset = read_dataset(BytesIO(plain), is_implicit_VR=False, is_little_endian=True, specific_tags=list(tags))
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return dataset
