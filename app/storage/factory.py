"""Creates the blob storage from the settings."""

from __future__ import annotations

from app.core.config import Settings
from app.storage.local import Storage


def storage_of(settings: Settings) -> Storage:
    """Return the storage that ``settings.storage_url`` names: a local folder, or an S3 bucket with a local cache."""
    if not settings.storage_url.startswith("s3://"):
        return Storage(settings.blobs)
    from app.storage.s3 import BucketStorage  # here: a local folder needs no S3 library

    cache = settings.blobs
    return BucketStorage(settings.storage_url, cache, endpoint=settings.s3_endpoint, cache_bytes=settings.cache_bytes)
