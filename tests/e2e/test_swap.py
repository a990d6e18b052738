"""Promotion and rollback under load: no request fails, and each response comes from one version."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest

from app.sdk import ModelNotReady
from tests.factory import tiny_version

from .service_process import RunningService

pytestmark = pytest.mark.xdist_group("e2e")


def test_promotion_under_load_fails_no_request(
    service: RunningService, study: dict[str, Any], model_store: Path
) -> None:
    tiny_version(model_store, version="1.1.0", seed=3)  # added to the store of the running service
    damaged = tiny_version(model_store, version="1.2.0", seed=4)
    (damaged / "fold-0.safetensors").write_bytes(b"x")
    answered: list[tuple[float, str, float]] = []
    failed: list[BaseException] = []
    finished = threading.Event()

    def send_requests() -> None:
        with service.client(retries=0) as client:
            while not finished.is_set():
                try:
                    prediction = client.predict(**study, explain=False)
                except BaseException as error:  # noqa: BLE001 - no error of any kind may happen
                    failed.append(error)
                    return
                assert prediction.probability is not None
                answered.append((time.monotonic(), prediction.model.version, prediction.probability))

    with service.client() as client:
        client.registry.promote("tiny", "1.0.0")  # tiny_version moved the alias to its last version
        threads = [threading.Thread(target=send_requests) for _ in range(2)]
        for thread in threads:
            thread.start()
        try:
            wait_for_version(answered, "1.0.0")
            client.registry.promote("tiny", "1.1.0")
            wait_for_version(answered, "1.1.0", since=time.monotonic())
            with pytest.raises(ModelNotReady):
                client.registry.promote("tiny", "1.2.0")
            wait_for_version(answered, "1.1.0", since=time.monotonic())
            client.registry.rollback("tiny")
            wait_for_version(answered, "1.0.0", since=time.monotonic())
        finally:
            finished.set()
            for thread in threads:
                thread.join()
        assert client.registry.alias("tiny").version == "1.0.0"
    assert failed == []
    assert {version for _, version, _ in answered} == {"1.0.0", "1.1.0"}
    for version in ("1.0.0", "1.1.0"):
        assert len({probability for _, which, probability in answered if which == version}) == 1


def wait_for_version(answered: list[tuple[float, str, float]], version: str, since: float = 0.0) -> None:
    """Wait until a response came from this version after ``since``."""
    end = time.monotonic() + 60
    while not any(which == version and received > since for received, which, _ in answered):
        assert time.monotonic() < end, f"no response from version {version}"
        time.sleep(0.02)
