"""The life of the tensor server; tests/api/test_inference.py tests its answers."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.inference.model_cache import ModelCache
from app.worker import ipc
from app.worker.tensor_server import TensorServer


@pytest.mark.parametrize("opened", [False, True])
def test_server_is_closed_at_any_time(tmp_path: Path, opened: bool) -> None:
    server = TensorServer(tmp_path, "w", ModelCache(tmp_path / "models", "cpu", 1))
    if opened:
        server.open()
    assert ipc.workers_with_socket(tmp_path) == ({"w"} if opened else set())
    server.close()
    assert ipc.workers_with_socket(tmp_path) == set()
