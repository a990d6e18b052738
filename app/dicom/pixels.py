"""Decode the stored pixels of a DICOM file, frame by frame.

Design notes:
- A compressed frame states its own size. It is compared with the header before a decoder allocates memory.
- pydicom selects the decoder: pylibjpeg-openjpeg, pyjpegls, python-gdcm or its own RLE decoder.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
from pydicom.datadict import tag_for_keyword
from pydicom.dataset import Dataset
from pydicom.encaps import generate_frames
from pydicom.pixels.decoders.base import get_decoder
from pydicom.uid import UID, ImplicitVRLittleEndian

from app.dicom.dataset import PIXEL_DATA, read
from app.dicom.errors import DEFAULT, DicomLimits, Unreadable

__all__ = ["TAGS", "decode", "decode_parsed"]

_KEYWORDS = [
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "PlanarConfiguration",
    "NumberOfFrames",
    "Rows",
    "Columns",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
    "ExtendedOffsetTable",
    "ExtendedOffsetTableLengths",
    "SpecificCharacterSet",
]
TAGS = (*(tag for name in _KEYWORDS if (tag := tag_for_keyword(name)) is not None), PIXEL_DATA)
_JPEG2000 = b"\xff\x4f\xff\x51"
_START_OF_FRAME = (*range(0xC0, 0xC4), *range(0xC5, 0xC8), *range(0xC9, 0xCC), *range(0xCD, 0xD0), 0xF7)


def decode(data: bytes, limits: DicomLimits = DEFAULT) -> Iterator[np.ndarray[Any, Any]]:
    """Yield the stored values (rows, columns) of each frame in turn, as integers.

    Args:
        data: the whole file.
        limits: largest size of an inflated file.

    Yields:
        The frame; its values are not rescaled.

    Raises:
        Unreadable: the pixels are damaged, or their encoding is not supported.
    """
    yield from decode_parsed(read(data, TAGS, limits))


def decode_parsed(dataset: Dataset) -> Iterator[np.ndarray[Any, Any]]:
    """Yield the frames of a data set with the attributes ``TAGS``; as ``decode``."""
    syntax = UID(str(getattr(dataset.file_meta, "TransferSyntaxUID", ImplicitVRLittleEndian)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            if syntax.is_encapsulated:
                _check_sizes(dataset)
            # With indices: without them, pydicom cannot correct the sign of JPEG-LS and JPEG 2000 values.
            indices = range(int(dataset.get("NumberOfFrames") or 1))
            for frame, _ in get_decoder(syntax).iter_array(dataset, raw=True, indices=indices):
                if frame.shape != (int(dataset.Rows), int(dataset.Columns)):
                    raise Unreadable("has pixels of another size than its header says")
                yield frame
        except (Unreadable, GeneratorExit):
            raise
        except Exception as error:
            raise Unreadable("has pixels that cannot be decoded") from error


def _check_sizes(dataset: Dataset) -> None:
    count = int(dataset.get("NumberOfFrames") or 1)
    for stream in generate_frames(dataset.PixelData, number_of_frames=count):
        stated = _stated_size(stream)
        if stated is not None and stated != (int(dataset.Rows), int(dataset.Columns)):
            raise Unreadable("has pixels of another size than its header says")


def _stated_size(stream: bytes) -> tuple[int, int] | None:
    """Rows and columns in a JPEG, JPEG-LS or JPEG 2000 stream; None for another encoding."""
    at = stream.find(_JPEG2000, 0, 512)  # a JP2 file has boxes before its stream
    if at >= 0:
        size = [int.from_bytes(stream[at + 8 + 4 * n : at + 12 + 4 * n], "big") for n in range(4)]
        return size[1] - size[3], size[0] - size[2]
    if stream[:2] != b"\xff\xd8":
        return None
    at = 2
    while at + 9 <= len(stream) and stream[at] == 0xFF:
        if stream[at + 1] in _START_OF_FRAME:
            return int.from_bytes(stream[at + 5 : at + 7], "big"), int.from_bytes(stream[at + 7 : at + 9], "big")
        at += 2 + int.from_bytes(stream[at + 2 : at + 4], "big")
    raise Unreadable("has a damaged compressed frame")
