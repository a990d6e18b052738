"""A bucket behind a real proxy: each fault of the network or of the service is StorageUnavailable, and never a loss."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path

import pytest

from app.sdk.errors import RlvoError, StorageFull, StorageUnavailable
from app.storage import s3 as module
from app.storage.erasure_ledger import EntryKind, LedgerEntry
from app.storage.s3 import BucketLedger, BucketStorage
from tests.disks import fill
from tests.tcp_proxy import Fault, TcpProxy, http

DATA = b"volume" * 20_000


def error(code: str) -> str:
    return f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>no</Message></Error>"


FAULTS: dict[str, tuple[Fault, bytes]] = {
    "refused": (Fault.REFUSED, b""),
    "silent": (Fault.SILENT, b""),
    "throttled": (Fault.ANSWERED, http("503 Slow Down", error("SlowDown"))),
    "internal error": (Fault.ANSWERED, http("500 Internal Server Error", error("InternalError"))),
    "expired credentials": (Fault.ANSWERED, http("403 Forbidden", error("ExpiredToken"))),
    "wrong region": (Fault.ANSWERED, http("400 Bad Request", error("AuthorizationHeaderMalformed"))),
    "moved": (Fault.ANSWERED, http("301 Moved Permanently", error("PermanentRedirect"), "x-amz-bucket-region: eu")),
    "missing bucket": (Fault.ANSWERED, http("404 Not Found", error("NoSuchBucket"))),
    "a captive portal": (Fault.ANSWERED, http("302 Found", "log in", "Location: http://127.0.0.1:9/")),
}


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short pauses and timeouts, so that a fault takes a second."""
    monkeypatch.setitem(module._RETRIES, "max_retries", 1)
    monkeypatch.setitem(module._RETRIES, "retry_timeout", timedelta(seconds=2))
    monkeypatch.setitem(module._TIMEOUTS, "read_timeout", timedelta(seconds=1))


@pytest.fixture
def storage(bucket: str, proxy: TcpProxy, quick: None, tmp_path: Path) -> BucketStorage:
    return BucketStorage(bucket, tmp_path / "cache", endpoint=f"http://127.0.0.1:{proxy.port}")


@pytest.fixture
def ledger(bucket: str, proxy: TcpProxy, quick: None) -> BucketLedger:
    return BucketLedger(f"{bucket}/.erasures", endpoint=f"http://127.0.0.1:{proxy.port}")


def uncached(storage: BucketStorage, digest: str) -> str:
    storage._local(digest).unlink(missing_ok=True)
    return digest


OPERATIONS: dict[str, Callable[[BucketStorage, str], object]] = {
    "put": lambda storage, _: storage.put(b"another" + DATA),
    "read": lambda storage, digest: storage.read(uncached(storage, digest)),
    "verify": lambda storage, digest: storage.verify(uncached(storage, digest)),
    "exists": lambda storage, digest: storage.exists(digest),
    "probe": lambda storage, _: storage.probe(),
    "list": lambda storage, _: list(storage.digests()),
    "delete": lambda storage, digest: storage.delete(digest, grace=0),
    "quarantine": lambda storage, digest: storage.quarantine(digest),
}
ENTRY = LedgerEntry(EntryKind.KEY, "3f9a1c04", at="2026-03-04T05:06:07.000+00:00", actor="operator", why="request")
LEDGER_OPERATIONS: dict[str, Callable[[BucketLedger], object]] = {
    "add": lambda ledger: ledger.add(ENTRY),
    "names": lambda ledger: ledger.names(),
    "read": lambda ledger: ledger.read(ENTRY.name),
}


def outcome_of(call: Callable[[], object]) -> str:
    try:
        return repr(call())[:80]
    except RlvoError as error:
        return type(error).__name__
    except OSError as error:
        return type(error).__name__


@pytest.mark.parametrize("name", FAULTS)
def test_each_operation_tells_a_fault_from_a_missing_blob_and_works_after_it(
    storage: BucketStorage, proxy: TcpProxy, name: str
) -> None:
    digest = storage.put(DATA)
    fault, answer = FAULTS[name]
    expected = "BucketMissing" if name == "missing bucket" else "StorageUnavailable"
    wrong = {}
    for operation, call in OPERATIONS.items():
        with proxy.outage(fault, answer):
            if (outcome := outcome_of(partial(call, storage, digest))) != expected:
                wrong[operation] = outcome
    assert wrong == {}
    assert storage.read(uncached(storage, digest)) == DATA
    assert storage.put(b"another" + DATA)
    assert list((storage.folder / ".incoming").iterdir()) == []


@pytest.mark.parametrize("name", FAULTS)
def test_each_operation_of_the_ledger_tells_a_fault_from_a_missing_entry(
    ledger: BucketLedger, proxy: TcpProxy, name: str
) -> None:
    fault, answer = FAULTS[name]
    expected = "BucketMissing" if name == "missing bucket" else "StorageUnavailable"
    assert ledger.read(ENTRY.name) == b""
    wrong = {}
    for operation, call in LEDGER_OPERATIONS.items():
        with proxy.outage(fault, answer):
            if (outcome := outcome_of(partial(call, ledger))) != expected:
                wrong[operation] = outcome
    assert wrong == {}
    assert ledger.names() == set()
    ledger.add(ENTRY)
    assert ledger.read(ENTRY.name) == ENTRY.content()


def test_missing_blob_of_a_working_bucket_is_no_fault(storage: BucketStorage) -> None:
    assert storage.delete("0" * 64)
    storage.quarantine("0" * 64)
    assert not storage.exists("0" * 64)
    assert not storage.verify("0" * 64)
    with pytest.raises(FileNotFoundError):
        storage.open("0" * 64)


def test_slow_bucket_is_no_fault_as_long_as_bytes_arrive(storage: BucketStorage, proxy: TcpProxy) -> None:
    digest = storage.put(DATA)
    proxy.rate = len(DATA) / 3  # three times the read timeout in all
    with proxy.outage(Fault.SLOW):
        assert storage.read(uncached(storage, digest)) == DATA


def test_download_that_is_cut_is_no_damage(storage: BucketStorage, proxy: TcpProxy) -> None:
    digest = storage.put(DATA)
    cut = http("200 OK").replace(b"Content-Length: 0", b"Content-Length: %d" % len(DATA)) + DATA[:1000]
    with proxy.outage(Fault.ANSWERED, cut), pytest.raises(StorageUnavailable):
        storage.verify(uncached(storage, digest))
    assert storage.verify(digest)


@pytest.mark.parametrize("data", [DATA, b"less than a buffer"])
def test_full_cache_is_told_as_full(bucket: str, s3: str, small_disk: Path, tmp_path: Path, data: bytes) -> None:
    digest = BucketStorage(bucket, tmp_path, endpoint=s3).put(data)
    storage = BucketStorage(bucket, small_disk / "cache", endpoint=s3)
    filler = fill(small_disk)
    for call in (storage.verify, storage.read, storage.path):
        with pytest.raises(StorageFull):
            call(digest)
    filler.unlink()
    assert storage.read(digest) == data


def test_local_copy_that_cannot_be_deleted_is_a_fault_of_the_storage(bucket: str, s3: str, tmp_path: Path) -> None:
    storage = BucketStorage(bucket, tmp_path / "cache", endpoint=s3)
    for call in (partial(storage.delete, grace=0), storage.quarantine):
        digest = storage.put(DATA)
        storage._local(digest).unlink()
        storage._local(digest).mkdir()
        with pytest.raises(StorageUnavailable):
            call(digest)
        storage._local(digest).rmdir()
