"""The model behind a plain FastAPI handler, with a second handler that runs the usual pipeline on a study."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import uvicorn
from fastapi import FastAPI, Request
from fastapi.concurrency import run_in_threadpool

from bench.eager_model import EagerModel
from bench.usual_pipeline import usual_image


def predict_study(model: EagerModel, files: dict[str, bytes]) -> dict[str, float]:
    """Run the usual pipeline on two volumes (.nii.gz) with an empty clinical record."""
    with tempfile.TemporaryDirectory() as name:
        paths = {field: Path(name) / f"{field}.nii.gz" for field in files}
        for field, path in paths.items():
            path.write_bytes(files[field])
        image = usual_image(paths, model.manifest)
    return model.predict(image.tobytes() + np.zeros(model.manifest.architecture.clinical_size, np.float32).tobytes())


def create_app(model: EagerModel) -> FastAPI:
    app = FastAPI()

    @app.post("/predict", response_model=None)
    async def predict(request: Request) -> dict[str, float]:
        return await run_in_threadpool(model.predict, await request.body())

    @app.post("/study", response_model=None)
    async def study(request: Request) -> dict[str, float]:
        form = await request.form()
        files = {name: await form[name].read() for name in ("ncct", "cta")}
        return await run_in_threadpool(predict_study, model, files)

    @app.get("/livez", response_model=None)
    async def livez() -> dict[str, str]:
        return {}

    return app


def start(port: int, folder: Path) -> None:
    uvicorn.run(create_app(EagerModel(folder)), port=port, log_level="warning")
