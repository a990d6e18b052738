"""Blobs in an S3 bucket with a local cache, for workers and API replicas on several machines (docs/decisions/0041).

Design notes:
- A blob is uploaded before any row names it, and its digest is verified after each download.
- The local folder is a cache: missing blobs are downloaded again, and the least recently used are evicted.
- Scratch folders stay local. A worker on another machine that takes over a job computes the missing results again.
- obstore does the retries and reads credentials and region from the AWS_ variables. Only this module imports obstore.
- A bucket that is slow is no error as long as bytes arrive. A bucket that refuses, throttles or is missing is
  StorageUnavailable, and a blob counts as missing only if the bucket itself exists.
- No decision rests on a complete listing: a listed blob is asked for before it is deleted.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path

import obstore
from obstore.exceptions import BaseError, NotFoundError
from obstore.store import S3Store

from app.sdk.errors import BucketMissing, InternalError, InvalidRequest, StorageUnavailable
from app.storage.erasure_ledger import LedgerEntry
from app.storage.errors import RETRY_AFTER, storage_errors
from app.storage.local import GRACE, Storage, Writer

IN_USE = 600.0  # seconds since its last use for which a cached blob is not evicted
_DIGEST = re.compile(r"[0-9a-f]{64}")
_PIECE = 8 * 1024 * 1024
_AWAY = "The bucket of the stored files cannot be reached at the moment"
_TIMEOUTS = {
    "connect_timeout": timedelta(seconds=5),
    "read_timeout": timedelta(seconds=20),  # without a byte
    "timeout": timedelta(minutes=30),  # of a whole request; a large volume over a slow line takes minutes
}
_PARALLEL_ENTRIES = 16  # of the ledger
_PARALLEL_PARTS = 2  # of one upload; more parts at the same time would each be too slow over a slow line
_RETRIES = {
    "max_retries": 5,
    "retry_timeout": timedelta(seconds=30),
    "backoff": {"base": 2, "init_backoff": timedelta(milliseconds=100), "max_backoff": timedelta(seconds=5)},
}


class BucketStorage(Storage):
    """Blobs under ``s3://bucket/prefix``, cached in ``folder`` up to ``cache_bytes``.

    ``endpoint`` is the URL of an S3 service other than Amazon's; with ``http://`` the connection is unencrypted.
    """

    def __init__(self, url: str, folder: Path, *, endpoint: str = "", cache_bytes: int = 20 * 2**30) -> None:
        super().__init__(folder)
        self._cache_bytes = cache_bytes
        self._bucket = _connect(url, endpoint)

    def writer(self) -> Writer:
        """Return a writer of one new blob; its commit uploads the blob first."""
        return _BucketWriter(self)

    def adopt(self, path: Path) -> tuple[str, int]:
        """Store a file; its bytes are uploaded first."""
        with storage_errors():
            return self._copy(path)

    def path(self, digest: str) -> Path:
        """Return the path of the local copy, downloaded if needed; it does not exist if the bucket lacks the blob."""
        local = self._local(digest)
        with storage_errors(missing=True), suppress(FileNotFoundError):
            if not local.exists():
                self._fetch(digest)
            else:  # record the access time; keep the modification time
                os.utime(local, (time.time(), local.stat().st_mtime))
        return local

    def exists(self, digest: str) -> bool:
        """Whether the bucket has the blob."""
        try:
            with _obstore_errors():
                obstore.head(self._bucket, _key(digest))
        except FileNotFoundError:
            _check_bucket(self._bucket)
            return False
        return True

    def verify(self, digest: str) -> bool:
        """Whether the blob is stored and intact; a damaged local copy is deleted and downloaded again."""
        if super().verify(digest):
            return True
        self._forget(digest)
        try:
            self._fetch(digest)
        except (FileNotFoundError, InternalError):
            return False
        return True

    def digests(self) -> Iterator[str]:
        """Yield the digests of all blobs of the bucket."""
        return (digest for digest, _ in self._listed())

    def older_than(self, age: float) -> Iterator[str]:
        """Yield the digests of the blobs that were not uploaded within the last ``age`` seconds."""
        before = time.time() - age
        return (digest for digest, stored in self._listed() if stored < before)

    def delete(self, digest: str, *, grace: float = GRACE) -> bool:
        """Delete a blob that no row names, unless it was uploaded within the last ``grace`` seconds."""
        try:
            with _obstore_errors():
                stored = obstore.head(self._bucket, _key(digest))["last_modified"].timestamp()
                if time.time() - stored < grace:
                    return False
                obstore.delete(self._bucket, _key(digest))
        except FileNotFoundError:
            _check_bucket(self._bucket)
        self._forget(digest)
        return True

    def quarantine(self, digest: str) -> None:
        """Move a damaged blob to ``.quarantine/`` of the bucket and delete the local copy."""
        try:
            with _obstore_errors():
                obstore.copy(self._bucket, _key(digest), f".quarantine/{digest}.{secrets.token_hex(4)}")
                obstore.delete(self._bucket, _key(digest))
        except FileNotFoundError:
            _check_bucket(self._bucket)
        self._forget(digest)

    @storage_errors()
    def sweep_incoming(self, *, older_than: float) -> int:
        """Evict blobs from the cache, then delete the temporary files of interrupted uploads."""
        self._evict()
        return super().sweep_incoming(older_than=older_than)

    def probe(self) -> None:
        """Write one byte to the cache and send one request to the bucket, to raise the errors of an upload."""
        super().probe()
        _check_bucket(self._bucket)

    def upload(self, digest: str, file: Path) -> None:
        """Upload a local file to the bucket; raises StorageUnavailable, and BucketMissing, which is one."""
        with _bucket_errors():
            obstore.put(self._bucket, _key(digest), file, max_concurrency=_PARALLEL_PARTS)

    def _fetch(self, digest: str) -> None:
        """Download a blob to the cache and verify its digest."""
        part = self._incoming / secrets.token_hex(16)
        hashed = hashlib.sha256()
        try:
            with storage_errors():
                file = part.open("xb", buffering=0)  # a close that fails to write would raise an OSError
            with file:
                for piece in self._pieces(digest):
                    hashed.update(piece)
                    rest = memoryview(piece)
                    with storage_errors():
                        while rest:
                            rest = rest[file.write(rest) :]
            if hashed.hexdigest() != digest:
                raise InternalError("A stored file is damaged; the operator can run `rlvo fsck --deep`")
            with storage_errors():
                part.replace(self._target(digest))
        finally:
            with suppress(OSError):
                part.unlink(missing_ok=True)

    def _pieces(self, digest: str) -> Iterator[obstore.Bytes]:
        """Yield the bytes of a blob; a missing blob raises FileNotFoundError."""
        try:
            with _obstore_errors():
                yield from obstore.get(self._bucket, _key(digest)).stream(min_chunk_size=_PIECE)
        except FileNotFoundError:
            _check_bucket(self._bucket)
            raise

    def _forget(self, digest: str) -> None:
        """Delete the local copy of a blob."""
        with storage_errors():
            self._local(digest).unlink(missing_ok=True)

    def _listed(self) -> Iterator[tuple[str, float]]:
        """Yield each blob of the bucket and the time of its last upload."""
        with _bucket_errors():
            for page in obstore.list(self._bucket):
                for item in page:
                    shard, _, digest = item["path"].rpartition("/")
                    if _DIGEST.fullmatch(digest) and shard == digest[:2]:
                        yield digest, item["last_modified"].timestamp()

    def _evict(self) -> None:
        """Delete the least recently used local copies until the cache fits its limit."""
        cached = sorted((path.stat().st_atime, path.stat().st_size, path) for path in self._cached())
        excess, before = sum(size for _, size, _ in cached) - self._cache_bytes, time.time() - IN_USE
        for used, size, path in cached:
            if excess <= 0 or used > before:
                break
            path.unlink(missing_ok=True)
            excess -= size

    def _cached(self) -> Iterator[Path]:
        for shard in self.folder.glob("[0-9a-f][0-9a-f]"):
            yield from (path for path in shard.iterdir() if _DIGEST.fullmatch(path.name))


class BucketLedger:
    """Ledger of erasures under ``s3://bucket/prefix``, one object per entry."""

    def __init__(self, url: str, *, endpoint: str = "") -> None:
        self._bucket = _connect(url, endpoint)

    def add(self, entry: LedgerEntry) -> None:
        # Not a conditional put: some services other than Amazon's refuse it, and an erasure must not depend on it.
        try:
            with _obstore_errors():
                obstore.head(self._bucket, entry.name)
        except FileNotFoundError:
            with _bucket_errors():
                obstore.put(self._bucket, entry.name, entry.content())

    def add_all(self, entries: Sequence[LedgerEntry]) -> None:
        with ThreadPoolExecutor(_PARALLEL_ENTRIES, thread_name_prefix="ledger") as pool:
            for added in [pool.submit(self.add, entry) for entry in entries]:
                added.result()

    def names(self) -> set[str]:
        with _bucket_errors():
            return {item["path"] for page in obstore.list(self._bucket) for item in page}

    def read(self, name: str) -> bytes:
        try:
            with _obstore_errors():
                return bytes(obstore.get(self._bucket, name).bytes())
        except FileNotFoundError:
            _check_bucket(self._bucket)
            return b""


class _BucketWriter(Writer):
    def __init__(self, storage: BucketStorage) -> None:
        self._storage = storage
        super().__init__(storage.incoming(), storage._target)  # noqa: SLF001 - the writer is part of the storage

    def commit(self) -> tuple[str, int]:
        """Upload the blob, then keep the local copy; return its sha-256 (hexadecimal) and its size in bytes."""
        self._storage.upload(self._hash.hexdigest(), self._temporary)
        return super().commit()


def _connect(url: str, endpoint: str) -> S3Store:
    options: dict[str, object] = {"endpoint": endpoint} if endpoint else {}
    client_options = {**_TIMEOUTS, "allow_http": endpoint.startswith("http://")}
    try:
        return S3Store.from_url(url, client_options=client_options, retry_config=_RETRIES, **options)  # type: ignore[arg-type]
    except (BaseError, ValueError) as error:
        raise InvalidRequest(
            "RLVO_STORAGE_URL, RLVO_ERASURE_LEDGER or RLVO_S3_ENDPOINT is wrong: expected s3://bucket/prefix and a URL"
        ) from error


def _check_bucket(bucket: S3Store) -> None:
    """Raise BucketMissing if there is no bucket; a request for an object gives the same 404 for both."""
    with _bucket_errors():
        obstore.list_with_delimiter(bucket, ".probe/")


def _key(digest: str) -> str:
    return f"{digest[:2]}/{digest}"


@contextmanager
def _obstore_errors() -> Iterator[None]:
    """Convert the errors of obstore: a missing object to FileNotFoundError, all others to StorageUnavailable."""
    try:
        yield
    except (NotFoundError, FileNotFoundError, BaseError) as error:
        if "NoSuchBucket" in str(error):  # the code of S3; obstore has no error of its own for it
            raise _missing() from error
        if isinstance(error, NotFoundError | FileNotFoundError):
            raise FileNotFoundError from error
        raise StorageUnavailable(_AWAY, retry_after=RETRY_AFTER) from error


@contextmanager
def _bucket_errors() -> Iterator[None]:
    """Convert the errors of requests that can miss nothing but the bucket itself."""
    try:
        with _obstore_errors():
            yield
    except FileNotFoundError as error:
        raise _missing() from error


def _missing() -> BucketMissing:
    return BucketMissing(
        "The bucket that RLVO_STORAGE_URL or RLVO_ERASURE_LEDGER names does not exist. The operator must create it",
        retry_after=RETRY_AFTER,
    )
