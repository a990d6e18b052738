"""Blobs in an S3 bucket, each fetched once to a local folder: for workers and API replicas on many machines.

Notable choices:
- A blob is in the bucket before anybody is told its name, and its bytes are hashed again whenever they arrive here.
- The local folder is a cache and may be lost: whatever is missing is fetched again. The least recently used go once it
  holds more than its room, but nothing that was touched within ten minutes: somebody may be reading it.
- Workbenches stay local. A worker elsewhere that takes over a job finds its step's bytes gone, and runs the step again.
- Committing bytes that are kept already writes them again, so that an object's time is the last time anybody stored it,
  as in a folder. What a folder's lock holds apart, storing and deleting the same orphan in the same instant, S3 cannot:
  `delete` looks at the time and then deletes. The grace (an hour for sweeps) makes that window as good as never met.
- Retries are obstore's; credentials and region come from the usual AWS_ variables, which it reads itself.
- This is the only file that imports obstore, and only an ``s3://`` storage imports this file.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path

import obstore
from obstore.exceptions import BaseError, NotFoundError
from obstore.store import S3Store

from app.sdk.errors import InternalError, Unavailable
from app.storage.local import GRACE, Storage, Writer

IN_USE = 600.0
"""Seconds since its last use for which a cached blob is not evicted."""

_DIGEST = re.compile(r"[0-9a-f]{64}")
_PIECE = 8 * 1024 * 1024
_RETRIES = {
    "max_retries": 5,
    "retry_timeout": timedelta(seconds=30),
    "backoff": {"base": 2, "init_backoff": timedelta(milliseconds=100), "max_backoff": timedelta(seconds=5)},
}


class BucketStorage(Storage):
    """The blobs under ``s3://bucket/prefix``, with ``folder`` as their cache.

    :param endpoint: of an S3 that is not Amazon's; ``http://`` is taken for what it is: unencrypted
    :param room: bytes that the cache may hold
    """

    def __init__(self, url: str, folder: Path, *, endpoint: str = "", room: int = 20 * 2**30) -> None:
        super().__init__(folder)
        self._room = room
        options: dict[str, object] = {"endpoint": endpoint} if endpoint else {}
        plain = {"allow_http": True} if endpoint.startswith("http://") else {}
        self._bucket = S3Store.from_url(url, client_options=plain, retry_config=_RETRIES, **options)  # type: ignore[arg-type]

    def writer(self) -> Writer:
        return _BucketWriter(self)

    def path(self, digest: str) -> Path:
        """The blob's local copy, fetched where there is none. Where the bucket has none either, nothing lies there."""
        local = self._local(digest)
        if not local.exists():
            with suppress(FileNotFoundError):
                self._fetch(digest)
        else:
            with suppress(FileNotFoundError):  # its last use; the time of its change stays
                os.utime(local, (time.time(), local.stat().st_mtime))
        return local

    def exists(self, digest: str) -> bool:
        with _spoken(), suppress(FileNotFoundError):
            obstore.head(self._bucket, _key(digest))
            return True
        return False

    def verify(self, digest: str) -> bool:
        """As in a folder; a damaged local copy is thrown away and fetched once more."""
        if super().verify(digest):
            return True
        self._local(digest).unlink(missing_ok=True)
        try:
            self._fetch(digest)
        except (FileNotFoundError, InternalError):
            return False
        return True

    def digests(self) -> Iterator[str]:
        return (digest for digest, _ in self._listed())

    def older_than(self, age: float) -> Iterator[str]:
        before = time.time() - age
        return (digest for digest, stored in self._listed() if stored < before)

    def delete(self, digest: str, *, grace: float = GRACE) -> bool:
        with _spoken():
            try:
                stored = obstore.head(self._bucket, _key(digest))["last_modified"].timestamp()
            except FileNotFoundError:
                stored = 0.0
            if time.time() - stored < grace:
                return False
            if stored:
                obstore.delete(self._bucket, _key(digest))
        self._local(digest).unlink(missing_ok=True)
        return True

    def quarantine(self, digest: str) -> None:
        with _spoken(), suppress(FileNotFoundError):
            obstore.copy(self._bucket, _key(digest), f".quarantine/{digest}.{secrets.token_hex(4)}")
            obstore.delete(self._bucket, _key(digest))
        self._local(digest).unlink(missing_ok=True)

    def sweep_incoming(self, *, older_than: float) -> int:
        self._evict()
        return super().sweep_incoming(older_than=older_than)

    def probe(self) -> None:
        super().probe()
        self.exists("0" * 64)

    def upload(self, digest: str, file: Path) -> None:
        """Puts a local file's bytes into the bucket. Raises Unavailable."""
        with _spoken():
            obstore.put(self._bucket, _key(digest), file)

    def _fetch(self, digest: str) -> None:
        """Brings a blob here, checked. Raises FileNotFoundError, InternalError, Unavailable."""
        part = self._incoming / secrets.token_hex(16)
        hashed = hashlib.sha256()
        try:
            with _spoken(), part.open("xb") as file:
                for piece in obstore.get(self._bucket, _key(digest)).stream(min_chunk_size=_PIECE):
                    hashed.update(piece)
                    file.write(piece)
            if hashed.hexdigest() != digest:
                raise InternalError("A stored file is damaged; the operator can mend it with `rlvo fsck`")
            part.replace(self._place(digest))
        finally:
            part.unlink(missing_ok=True)

    def _listed(self) -> Iterator[tuple[str, float]]:
        """Every blob, and when it was last stored."""
        with _spoken():
            for page in obstore.list(self._bucket):
                for item in page:
                    shard, _, digest = item["path"].rpartition("/")
                    if _DIGEST.fullmatch(digest) and shard == digest[:2]:
                        yield digest, item["last_modified"].timestamp()

    def _evict(self) -> None:
        """Drops what was longest not used, until the rest fits."""
        cached = sorted((path.stat().st_atime, path.stat().st_size, path) for path in self._cached())
        excess, before = sum(size for _, size, _ in cached) - self._room, time.time() - IN_USE
        for used, size, path in cached:
            if excess <= 0 or used > before:
                break
            path.unlink(missing_ok=True)
            excess -= size

    def _cached(self) -> Iterator[Path]:
        for shard in self.folder.glob("[0-9a-f][0-9a-f]"):
            yield from (path for path in shard.iterdir() if _DIGEST.fullmatch(path.name))


class _BucketWriter(Writer):
    def __init__(self, storage: BucketStorage) -> None:
        self._storage = storage
        super().__init__(storage.incoming(), storage._place)  # noqa: SLF001 - the writer is half of the storage

    def commit(self) -> tuple[str, int]:
        self._storage.upload(self._hash.hexdigest(), self._temporary)
        return super().commit()


def _key(digest: str) -> str:
    return f"{digest[:2]}/{digest}"


@contextmanager
def _spoken() -> Iterator[None]:
    """Turns obstore's errors into ours; what is not there is FileNotFoundError, as in a folder."""
    try:
        yield
    except (NotFoundError, FileNotFoundError) as error:
        raise FileNotFoundError from error
    except BaseError as error:
        raise Unavailable("The bucket of the stored files cannot be reached just now", retry_after=5) from error
