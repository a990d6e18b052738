"""What a service has loaded at its start is not searched by the garbage collector again and again."""

from __future__ import annotations

import gc
from types import SimpleNamespace
from typing import Any

import pytest

from app.cli import serve
from app.core.config import Settings


def test_objects_of_the_start_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def server(_service: Any, _config: Any, started: Any) -> Any:
        return SimpleNamespace(run=lambda sockets: (started(), sockets[0].close()), started=True)

    monkeypatch.setattr(serve, "_server", server)
    monkeypatch.setattr(serve.signal, "signal", lambda *_: None)
    before = gc.get_freeze_count()
    try:
        serve._listen(SimpleNamespace(), Settings(port=0), None, None)  # type: ignore[arg-type]
        assert gc.get_freeze_count() > before + 10_000
    finally:
        gc.unfreeze()
