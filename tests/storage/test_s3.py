"""Blobs in a bucket of a local S3 server have the guarantees of a local folder."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from app.core.config import Settings
from app.sdk.errors import Unavailable
from app.storage.factory import storage_of
from app.storage.s3 import BucketStorage
from tests.conftest import CREDENTIALS


@pytest.fixture
def here(bucket: str, s3: str, tmp_path: Path) -> BucketStorage:
    return BucketStorage(bucket, tmp_path / "here", endpoint=s3)


@pytest.fixture
def there(bucket: str, s3: str, tmp_path: Path) -> BucketStorage:
    """The same bucket with another cache, as on another machine."""
    return BucketStorage(bucket, tmp_path / "there", endpoint=s3)


def test_another_machine_reads_a_stored_blob(here: BucketStorage, there: BucketStorage) -> None:
    digest = here.put(b"volume" * 1000)
    assert there.exists(digest)
    assert there.read(digest) == b"volume" * 1000
    assert there.path(digest).is_file()
    assert there.verify(digest)
    assert list(there.digests()) == [digest]
    with there.open(digest) as file:
        assert file.read(6) == b"volume"
    assert not there.exists("0" * 64)
    assert not there.verify("0" * 64)
    with pytest.raises(FileNotFoundError):
        there.open("0" * 64)


def test_uncommitted_blob_is_not_stored(here: BucketStorage, there: BucketStorage) -> None:
    with here.writer() as writer:
        writer.write(b"half a volume")
    here.probe()
    assert list(there.digests()) == []
    assert list((here.folder / ".incoming").iterdir()) == []


def test_damaged_local_copy_is_downloaded_again(here: BucketStorage, there: BucketStorage) -> None:
    digest = here.put(b"volume")
    there.path(digest).write_bytes(b"damage")
    assert there.verify(digest)
    assert there.read(digest) == b"volume"


def test_damaged_object_is_not_served(here: BucketStorage, there: BucketStorage) -> None:
    import obstore

    digest = here.put(b"volume")
    obstore.put(here._bucket, f"{digest[:2]}/{digest}", b"damage")
    assert not there.verify(digest)
    assert not there._local(digest).exists()
    there.quarantine(digest)
    assert not here.exists(digest)


def test_orphan_is_deleted_and_recent_upload_is_kept(here: BucketStorage, there: BucketStorage) -> None:
    digest = here.put(b"volume")
    there.path(digest)
    assert not there.delete(digest)
    assert there.exists(digest)
    assert list(there.older_than(3600)) == []
    time.sleep(1.1)  # S3 times are whole seconds
    assert list(there.older_than(0.5)) == [digest]
    here.put(b"volume")  # a repeated upload: it is no orphan any more
    assert not there.delete(digest, grace=60)
    assert there.delete(digest, grace=0)
    assert not here.exists(digest)
    assert there.delete(digest)


def test_cache_evicts_the_least_recently_used_blobs(bucket: str, s3: str, tmp_path: Path) -> None:
    storage = BucketStorage(bucket, tmp_path / "small", endpoint=s3, cache_bytes=2500)
    digests = [storage.put(bytes([number]) * 1000) for number in range(4)]
    for age, digest in enumerate(reversed(digests)):
        os.utime(storage._local(digest), (time.time() - 5000 - age, time.time()))
    storage.path(digests[0])  # the first one is used again
    storage.sweep_incoming(older_than=3600)
    assert [storage._local(digest).exists() for digest in digests] == [True, False, False, True]
    assert storage.read(digests[1]) == bytes([1]) * 1000


def test_unreachable_bucket_raises_unavailable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from datetime import timedelta

    from app.storage import s3 as module

    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setitem(module._RETRIES, "retry_timeout", timedelta(seconds=1))
    monkeypatch.setitem(module._RETRIES, "max_retries", 1)
    storage = BucketStorage("s3://nowhere/x", tmp_path, endpoint="http://127.0.0.1:9")
    with pytest.raises(Unavailable):
        storage.put(b"volume")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_setting_selects_the_storage_and_a_folder_loads_no_s3_library(bucket: str, s3: str, tmp_path: Path) -> None:
    storage = storage_of(Settings(data_dir=tmp_path, storage_url=bucket, s3_endpoint=s3))
    assert isinstance(storage, BucketStorage)
    assert storage.folder == tmp_path / "blobs"
    code = (
        "import sys; from app.core.config import Settings; from app.storage.factory import storage_of;"
        f"storage_of(Settings(data_dir={str(tmp_path)!r})); sys.exit('obstore' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
