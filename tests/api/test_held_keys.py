"""The idempotency key of a request in progress stays reserved, and is free soon after its process was killed."""

from __future__ import annotations

import os
import signal
import time
from datetime import datetime, timedelta
from pathlib import Path

import httpx
import pytest
from sqlalchemy import select

from app.api.held_keys import HeldKeys
from app.database import idempotency
from app.database.session import Database
from app.database.tables import IdempotencyRow
from app.sdk.errors import RequestInProgress
from tests.api.conftest import volume
from tests.api.raw_client import connect, head
from tests.api.server import started
from tests.deployment import wait

LEASE = 3.0  # a third of it passes between two renewals, and a busy machine can delay each
FORM = "Content-Type: multipart/form-data; boundary=X"
BODY = b'--X\r\nContent-Disposition: form-data; name="cta"; filename="a.nii.gz"\r\n\r\n' + volume() + b"\r\n--X--\r\n"
HEADERS = ("Idempotency-Key: study-1", "Prefer: respond-async")


def submit(url: str) -> httpx.Response:
    headers = {"Idempotency-Key": "study-1", "Prefer": "respond-async"}
    return httpx.post(f"{url}/v1/predictions", files={"cta": ("a.nii.gz", volume())}, headers=headers, timeout=60)


def reserved(database: Database) -> bool:
    with database.reading() as session:
        found = session.scalar(select(IdempotencyRow.key)) is not None
    database.close()
    return found


def held_until(database: Database) -> datetime:
    with database.reading() as session:
        end = session.scalars(select(IdempotencyRow.expires)).one()
    database.close()
    return end


def test_key_of_a_killed_service_is_free_after_the_lease(tmp_path: Path, model_store: Path) -> None:
    """Another process answers the repeated study; while the first one lives, a slow upload keeps its key."""
    with (
        started(tmp_path, model_store, lease=str(LEASE)) as first,
        started(tmp_path, model_store, lease=str(LEASE)) as second,
        connect(first) as upload,
    ):
        upload.sendall(head("POST /v1/predictions", FORM, f"Content-Length: {len(BODY)}", *HEADERS) + BODY[:-100])
        wait(lambda: reserved(first.database()))
        end = held_until(first.database())
        wait(lambda: held_until(first.database()) - end > timedelta(seconds=LEASE))  # without renewal it would be free
        refused = submit(second.url)
        assert (refused.status_code, refused.json()["code"]) == (409, "request-in-progress")
        os.kill(first.pid, signal.SIGKILL)
        killed = time.monotonic()
        wait(lambda: submit(second.url).status_code == 202)
        assert time.monotonic() - killed < LEASE + 5
        assert submit(second.url).headers["Idempotency-Replayed"] == "true"


@pytest.mark.anyio
async def test_only_keys_that_are_still_reserved_are_renewed(database: Database) -> None:
    keys = HeldKeys(database, lease=60, longest=60)
    with database.session() as session:
        held, released, other = (
            idempotency.reserve(session, "local", name, lease=0) for name in ("held", "released", "other")
        )
        idempotency.release(session, released)
    keys.add(held.token)
    keys.add(released.token)
    await keys.renew()
    with database.session() as session:
        with pytest.raises(RequestInProgress):
            idempotency.reserve(session, "local", "held", lease=60)
        assert idempotency.reserve(session, "local", "other", lease=60).token != other.token
        assert idempotency.reserve(session, "local", "released", lease=60).token


@pytest.mark.anyio
async def test_key_of_a_request_that_hangs_is_renewed_for_a_time_only(database: Database) -> None:
    keys = HeldKeys(database, lease=60, longest=0)
    with database.session() as session:
        hanging = idempotency.reserve(session, "local", "hangs", lease=0)
    keys.add(hanging.token)
    await keys.renew()
    with database.session() as session:
        assert idempotency.reserve(session, "local", "hangs", lease=60).token
