"""The version that serves is replaced under load: nobody's request fails, and each is answered by one version whole."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest

from app.sdk import ModelNotReady
from tests.factory import tiny_version

from .house import House

pytestmark = pytest.mark.xdist_group("journeys")


def test_a_swap_under_load_fails_nobody(house: House, study: dict[str, Any], model_store: Path) -> None:
    tiny_version(model_store, version="1.1.0", seed=3)  # dropped in beside the one that serves
    damaged = tiny_version(model_store, version="1.2.0", seed=4)
    (damaged / "fold-0.safetensors").write_bytes(b"x")
    answered: list[tuple[float, str, float]] = []
    failed: list[BaseException] = []
    over = threading.Event()

    def ask() -> None:
        with house.client(retries=0) as client:
            while not over.is_set():
                try:
                    prediction = client.predict(**study, explain=False)
                except BaseException as error:  # noqa: BLE001 - whatever it is, it is what must not happen
                    failed.append(error)
                    return
                assert prediction.probability is not None
                answered.append((time.monotonic(), prediction.model.version, prediction.probability))

    with house.client() as client:
        client.registry.promote("tiny", "1.0.0")  # the factory's last one took the alias without asking
        askers = [threading.Thread(target=ask) for _ in range(2)]
        for value_function in askers:
            value_function.start()
        try:
            served(answered, "1.0.0")
            client.registry.promote("tiny", "1.1.0")
            flipped = time.monotonic()
            served(answered, "1.1.0", since=flipped)
            with pytest.raises(ModelNotReady):
                client.registry.promote("tiny", "1.2.0")
            served(answered, "1.1.0", since=time.monotonic())
            client.registry.rollback("tiny")
            back = time.monotonic()
            served(answered, "1.0.0", since=back)
        finally:
            over.set()
            for value_function in askers:
                value_function.join()
        assert client.registry.alias("tiny").version == "1.0.0"
    assert failed == []
    assert {version for _, version, _ in answered} == {"1.0.0", "1.1.0"}
    for version in ("1.0.0", "1.1.0"):
        assert len({probability for _, which, probability in answered if which == version}) == 1


def served(answered: list[tuple[float, str, float]], version: str, since: float = 0.0) -> None:
    """Waits until an answer came from this version after ``since``."""
    end = time.monotonic() + 60
    while not any(which == version and moment > since for moment, which, _ in answered):
        assert time.monotonic() < end, f"{version} does not answer"
        time.sleep(0.02)
