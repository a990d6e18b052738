"""Where the blobs are, by the settings: a folder, or a bucket with a folder as its cache."""

from __future__ import annotations

from app.core.config import Settings
from app.storage.local import Storage


def storage_of(settings: Settings) -> Storage:
    """The storage that the settings name."""
    if not settings.storage_url.startswith("s3://"):
        return Storage(settings.blobs)
    from app.storage.s3 import BucketStorage  # only here: a folder needs no S3

    return BucketStorage(settings.storage_url, settings.blobs, endpoint=settings.s3_endpoint, room=settings.cache_bytes)
