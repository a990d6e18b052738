"""The peers of `bench.serve`, each as its own documentation shows it: one process tree, one port, one model.

``python -m bench.serving PEER PORT FOLDER``: FOLDER is a model version. All of them answer the body's raw float32 image
and clinical vector with the calibrated probability, by torch eager in float32 on as many threads as there are cores.
What a peer knows about concurrency is left as it comes.
"""

from __future__ import annotations

import importlib
import os
import sys
import tempfile
from pathlib import Path

import numpy as np

LIVENESS = {"fastapi": "/livez", "litserve": "/health", "bentoml": "/livez", "ray": "/-/healthz"}
NEEDS = {"fastapi": "fastapi", "litserve": "litserve", "bentoml": "bentoml", "ray": "ray.serve"}


class Model:
    """The folds as they were trained, one after the other."""

    def __init__(self, folder: Path) -> None:
        import torch
        from safetensors.torch import load_file

        from app.network.daft import build
        from app.registry.manifest import Manifest

        self.torch = torch
        torch.set_num_threads(len(os.sched_getaffinity(0)))
        self.manifest = Manifest.model_validate_json((folder / "manifest.json").read_bytes())
        self.shape = (1, len(self.manifest.channels), *self.manifest.grid.shape)
        self.folds = []
        for fold in self.manifest.folds:
            network = build(self.manifest.architecture).eval()
            network.load_state_dict(load_file(folder / fold.file))
            self.folds.append(network)

    def __call__(self, body: bytes) -> dict[str, float]:
        torch, voxels = self.torch, int(np.prod(self.shape))
        values = torch.from_numpy(np.frombuffer(body, np.float32).copy())
        image, clinical = values[:voxels].view(self.shape), values[None, voxels:]
        with torch.no_grad():
            logit = torch.stack([fold(image, clinical)[0, 0] for fold in self.folds]).double().mean()
        calibration = self.manifest.calibration
        return {"probability": float(torch.sigmoid(calibration.slope * logit + calibration.intercept))}

    def study(self, files: dict[str, bytes]) -> dict[str, float]:
        """The usual pipeline on two uploads (.nii.gz), the record unknown."""
        from bench.study import usual_image

        with tempfile.TemporaryDirectory() as name:
            paths = {field: Path(name) / f"{field}.nii.gz" for field in files}
            for field, path in paths.items():
                path.write_bytes(files[field])
            image = usual_image(paths, self.manifest)
        return self(image.tobytes() + np.zeros(self.manifest.architecture.clinical_size, np.float32).tobytes())


def fastapi(port: int, folder: Path) -> None:
    import uvicorn
    from fastapi import FastAPI, Request
    from fastapi.concurrency import run_in_threadpool

    app, model = FastAPI(), Model(folder)

    async def predict(request: Request) -> dict[str, float]:
        return await run_in_threadpool(model, await request.body())

    async def study(request: Request) -> dict[str, float]:
        form = await request.form()
        return await run_in_threadpool(model.study, {name: await form[name].read() for name in ("ncct", "cta")})

    async def livez() -> dict[str, str]:
        return {}

    predict.__annotations__["request"] = study.__annotations__["request"] = Request
    app.post("/predict", response_model=None)(predict)
    app.post("/study", response_model=None)(study)
    app.get("/livez", response_model=None)(livez)
    uvicorn.run(app, port=port, log_level="warning")


def litserve(port: int, folder: Path) -> None:
    os.environ["BENCH_FOLDER"] = str(folder)
    import litserve as ls

    from bench.lit import Api

    server = ls.LitServer(Api(), accelerator="cpu", timeout=300)
    server.run(port=port, generate_client_file=False, log_level="warning")


def bentoml(port: int, folder: Path) -> None:
    os.environ["BENCH_FOLDER"] = str(folder)
    arguments = ["bentoml", "serve", "bench.bento:Service", "--port", str(port), "--host", "127.0.0.1"]
    os.execv(str(Path(sys.executable).with_name("bentoml")), arguments)


def ray(port: int, folder: Path) -> None:
    import time

    import ray as engine
    from ray import serve
    from starlette.requests import Request

    engine.init(num_cpus=len(os.sched_getaffinity(0)), include_dashboard=False, log_to_driver=False)

    @serve.deployment(max_ongoing_requests=100)
    class Api:
        def __init__(self) -> None:
            self.model = Model(folder)

        async def __call__(self, request: Request) -> dict[str, float]:
            return self.model(await request.body())

    serve.start(http_options={"port": port, "host": "127.0.0.1"})
    serve.run(Api.bind(), route_prefix="/predict")
    while True:
        time.sleep(60)


def there(peer: str) -> bool:
    """Whether a peer is installed."""
    try:
        importlib.import_module(NEEDS[peer])
    except ImportError:
        return False
    return True


if __name__ == "__main__":
    globals()[sys.argv[1]](int(sys.argv[2]), Path(sys.argv[3]))
