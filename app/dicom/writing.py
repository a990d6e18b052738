"""Write DICOM instances from attributes and pixels, in any lossless transfer syntax that this package reads."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from enum import StrEnum
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)

__all__ = ["Syntax", "encode"]


class Syntax(StrEnum):
    """Transfer syntax."""

    IMPLICIT = "implicit"
    EXPLICIT = "explicit"
    BIG_ENDIAN = "big-endian"
    DEFLATED = "deflated"
    RLE = "rle"
    JPEG2000 = "jpeg-2000"
    JPEG_LS = "jpeg-ls"

    @property
    def uid(self) -> UID:
        """Its UID."""
        return _UIDS[self]


_UIDS = {
    Syntax.IMPLICIT: ImplicitVRLittleEndian,
    Syntax.EXPLICIT: ExplicitVRLittleEndian,
    Syntax.BIG_ENDIAN: ExplicitVRBigEndian,
    Syntax.DEFLATED: DeflatedExplicitVRLittleEndian,
    Syntax.RLE: RLELossless,
    Syntax.JPEG2000: JPEG2000Lossless,
    Syntax.JPEG_LS: JPEGLSLossless,
}


def encode(
    attributes: Mapping[str, Any], pixels: NDArray[Any] | None = None, syntax: Syntax = Syntax.EXPLICIT
) -> bytes:
    """Write one instance.

    Args:
        attributes: values by keyword; a sequence is a list of such mappings.
        pixels: stored values (rows, columns), (frames, rows, columns), or uint8 with a last axis of 3 for colours.
        syntax: transfer syntax.

    Returns:
        The file, with preamble and file meta information.
    """
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = UID(str(attributes["SOPClassUID"]))
    meta.MediaStorageSOPInstanceUID = UID(str(attributes["SOPInstanceUID"]))
    compressed = syntax.uid.is_encapsulated
    meta.TransferSyntaxUID = ExplicitVRLittleEndian if compressed else syntax.uid
    out = BytesIO()
    dataset = Dataset()
    dataset.file_meta = meta
    _fill(dataset, attributes)
    if pixels is not None:
        _set_pixels(dataset, pixels, big=syntax is Syntax.BIG_ENDIAN)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if compressed and pixels is not None:
            dataset.compress(syntax.uid, generate_instance_uid=False)
        dataset.save_as(out, enforce_file_format=True)
    return out.getvalue()


def _fill(dataset: Dataset, attributes: Mapping[str, Any]) -> None:
    for name, value in attributes.items():
        if isinstance(value, list) and value and isinstance(value[0], Mapping):
            items = []
            for each in value:
                item = Dataset()
                _fill(item, each)
                items.append(item)
            value = items
        setattr(dataset, name, value)


def _set_pixels(dataset: Dataset, pixels: NDArray[Any], *, big: bool) -> None:
    colour = pixels.dtype == np.uint8 and pixels.shape[-1] == 3 and pixels.ndim > 2
    shape = pixels.shape[:-1] if colour else pixels.shape
    dataset.Rows, dataset.Columns = shape[-2:]
    if len(shape) == 3:
        dataset.NumberOfFrames = shape[0]
    dataset.SamplesPerPixel = 3 if colour else 1
    dataset.PhotometricInterpretation = "RGB" if colour else "MONOCHROME2"
    if colour:
        dataset.PlanarConfiguration = 0
    bits = 8 * pixels.dtype.itemsize
    dataset.BitsAllocated = dataset.BitsStored = bits
    dataset.HighBit = bits - 1
    dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    ordered = pixels.astype(pixels.dtype.newbyteorder(">")) if big else pixels
    data = np.ascontiguousarray(ordered).tobytes()
    dataset.PixelData = data + bytes(len(data) % 2)
    dataset["PixelData"].VR = "OW" if bits > 8 else "OB"
