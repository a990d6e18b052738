"""The model as a BentoML service, for `bench.serving`."""

from __future__ import annotations

import os
from pathlib import Path

import bentoml

from bench.serving import Model


@bentoml.service(traffic={"timeout": 300})
class Service:
    def __init__(self) -> None:
        self.model = Model(Path(os.environ["BENCH_FOLDER"]))

    @bentoml.api
    def predict(self, content: Path) -> dict[str, float]:
        return self.model(content.read_bytes())
