"""Kinds of result objects; needs no DICOM library."""

from __future__ import annotations

from enum import StrEnum

__all__ = ["ObjectKind"]


class ObjectKind(StrEnum):
    """Kind of a result object, as it is named in the API."""

    REPORT = "report"
    SEGMENTATION = "segmentation"
    ATTRIBUTION = "attribution"
    KEY_IMAGES = "key-images"
    DOCUMENT = "document"
