"""Kinds of result objects, and the failure of a delivery; needs no DICOM library."""

from __future__ import annotations

from enum import StrEnum

__all__ = ["ObjectKind", "SendFailed"]


class ObjectKind(StrEnum):
    """Kind of a result object, as it is named in the API."""

    REPORT = "report"
    SEGMENTATION = "segmentation"
    ATTRIBUTION = "attribution"
    KEY_IMAGES = "key-images"
    DOCUMENT = "document"


class SendFailed(Exception):
    """A try failed; the message is a short reason without text of the other side."""
