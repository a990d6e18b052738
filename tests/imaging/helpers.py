"""Helpers for the tests of reading: a complete stream check in one call, and nibabel as the reference."""

from __future__ import annotations

import io
from collections.abc import Iterable
from typing import Any

import nibabel as nib
import numpy as np

from app.imaging.io.header import Header
from app.imaging.io.limits import DEFAULT, Limits
from app.imaging.io.stream_check import StreamCheck
from app.sdk.types import Input


def chunks(data: bytes, size: int) -> Iterable[bytes]:
    return (data[start : start + size] for start in range(0, len(data), size))


def check_stream(
    data: bytes, sent_as: Input = Input.CTA, *, size: int = 1 << 16, limits: Limits = DEFAULT
) -> tuple[bytes, Header]:
    """The bytes to store and the header of one upload that arrives in chunks of ``size`` bytes."""
    check = StreamCheck(sent_as, limits)
    stored = b"".join(piece for chunk in chunks(data, size) for piece in check.feed(chunk))
    return stored, check.finish()


def read_by_nibabel(data: bytes) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Stored voxels, real values and affine of a plain file, as nibabel reads them."""
    kind = nib.Nifti2Image if data[:4] in (b"\x1c\x02\0\0", b"\0\0\x02\x1c") else nib.Nifti1Image
    image = kind.from_stream(io.BytesIO(data))
    return np.asarray(image.dataobj.get_unscaled()), image.get_fdata(), image.affine
