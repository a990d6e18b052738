"""Creates the blob storage, the ledger of erasures and the reserve for erasures from the settings."""

from __future__ import annotations

from contextlib import suppress

from app.core.config import Settings
from app.core.disk_reserve import DiskReserve
from app.core.filesystem import make_private, private_folder
from app.storage.erasure_ledger import ErasureLedger, FolderLedger
from app.storage.local import Storage


def storage_of(settings: Settings) -> Storage:
    """Return the storage that ``settings.storage_url`` names: a local folder, or an S3 bucket with a local cache."""
    if not settings.storage_url.startswith("s3://"):
        return Storage(settings.blobs)
    from app.storage.s3 import BucketStorage  # here: a local folder needs no S3 library

    cache = settings.blobs
    return BucketStorage(settings.storage_url, cache, endpoint=settings.s3_endpoint, cache_bytes=settings.cache_bytes)


def ledger_of(settings: Settings) -> ErasureLedger:
    """Return the ledger of erasures that ``settings.ledger`` names: a folder, or a prefix of an S3 bucket."""
    if settings.ledger_folder is not None:
        return FolderLedger(settings.ledger_folder)
    from app.storage.s3 import BucketLedger

    return BucketLedger(settings.ledger, endpoint=settings.s3_endpoint)


def reserve_of(settings: Settings) -> DiskReserve:
    """Return the reserve for erasures, on the local disks that an erasure writes to: those of SQLite and the ledger."""
    folders = [settings.sqlite_file.parent] if settings.sqlite_file is not None else []
    if settings.ledger_folder is not None:
        folders.append(settings.ledger_folder)
    return DiskReserve(folders, settings.reserve_bytes)


def secure(settings: Settings) -> None:
    """Create the folders of records, and take the permissions of other users from them and from the SQLite file."""
    for path in settings.private_paths.values():
        if path == settings.sqlite_file:
            make_private(path)
        else:
            with suppress(OSError):  # the first write to the folder raises the error and says what to do
                private_folder(path)
