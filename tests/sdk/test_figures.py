"""Figures and the report are drawn after the answer; the client waits for them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from app.sdk import FiguresNotReady
from tests.sdk.scripted_server import Response, ScriptedServer


def test_figure_is_waited_for_until_it_is_drawn(
    connect: Callable[..., Any], server: ScriptedServer, tmp_path: Path
) -> None:
    early = Response.problem(FiguresNotReady(), Retry_After="0")
    server.respond_with(early, early, Response(b"png"), early, early, Response(b"zip"))
    client = connect()
    assert client.figure("01", "waterfall.png", tmp_path).read_bytes() == b"png"
    with pytest.raises(FiguresNotReady):
        client.report("01", tmp_path, wait=0)
    assert [path.name for path in tmp_path.iterdir()] == ["waterfall.png"]
    assert client.dicom("01", tmp_path).read_bytes() == b"zip"
