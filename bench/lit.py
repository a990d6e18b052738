"""The model as a LitServe API, for `bench.serving`; its workers are spawned, and import it from here."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import litserve
from fastapi import Request

from bench.serving import Model


class Api(litserve.LitAPI):
    """It takes JSON or a form, no raw body: the tensors come as a form's file."""

    def setup(self, device: str) -> None:  # noqa: ARG002
        self.model = Model(Path(os.environ["BENCH_FOLDER"]))

    def decode_request(self, request: Request) -> bytes:
        content: Any = request
        return bytes(content["content"].file.read())

    def predict(self, body: bytes) -> dict[str, float]:
        return self.model(body)

    def encode_response(self, output: dict[str, float]) -> dict[str, float]:
        return output


Api.decode_request.__annotations__["request"] = Request  # it looks for the class, not for its name
