"""The model as a BentoML service."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import bentoml

from bench.eager_model import EagerModel


@bentoml.service(traffic={"timeout": 300})
class EagerModelService:
    def __init__(self) -> None:
        self.model = EagerModel(Path(os.environ["BENCH_FOLDER"]))

    @bentoml.api
    def predict(self, content: Path) -> dict[str, float]:
        return self.model.predict(content.read_bytes())


def start(port: int, folder: Path) -> None:
    """Replace this process by the `bentoml` command."""
    os.environ["BENCH_FOLDER"] = str(folder)
    arguments = ["bentoml", "serve", f"{__name__}:EagerModelService", "--port", str(port), "--host", "127.0.0.1"]
    os.execv(str(Path(sys.executable).with_name("bentoml")), arguments)
