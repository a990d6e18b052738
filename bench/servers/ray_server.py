"""The model as a Ray Serve deployment."""

from __future__ import annotations

import os
import time
from pathlib import Path

import ray
from ray import serve
from starlette.requests import Request

from bench.eager_model import EagerModel


@serve.deployment(max_ongoing_requests=100)
class EagerModelDeployment:
    def __init__(self, folder: Path) -> None:
        self.model = EagerModel(folder)

    async def __call__(self, request: Request) -> dict[str, float]:
        return self.model.predict(await request.body())


def start(port: int, folder: Path) -> None:
    ray.init(num_cpus=len(os.sched_getaffinity(0)), include_dashboard=False, log_to_driver=False)
    serve.start(http_options={"port": port, "host": "127.0.0.1"})
    serve.run(EagerModelDeployment.bind(folder), route_prefix="/predict")
    while True:
        time.sleep(60)
