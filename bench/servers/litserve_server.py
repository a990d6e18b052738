"""The model as a LitServe API. LitServe spawns its workers, and they import this module."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import litserve
from fastapi import Request

from bench.eager_model import EagerModel


class EagerModelApi(litserve.LitAPI):
    """LitServe takes JSON or a form, and no raw body. The tensors come as a file of a form."""

    def setup(self, device: str) -> None:  # noqa: ARG002
        self.model = EagerModel(Path(os.environ["BENCH_FOLDER"]))

    def decode_request(self, request: Request) -> bytes:
        content: Any = request
        return bytes(content["content"].file.read())

    def predict(self, body: bytes) -> dict[str, float]:
        return self.model.predict(body)

    def encode_response(self, output: dict[str, float]) -> dict[str, float]:
        return output


# LitServe compares the annotation with the class, and `annotations` from __future__ leaves only its name.
EagerModelApi.decode_request.__annotations__["request"] = Request


def start(port: int, folder: Path) -> None:
    os.environ["BENCH_FOLDER"] = str(folder)
    server = litserve.LitServer(EagerModelApi(), accelerator="cpu", timeout=300)
    server.run(port=port, generate_client_file=False, log_level="warning")
