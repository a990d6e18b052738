"""The model that every peer server calls: the folds of one version, one after the other, by torch eager in float32."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from app.network.daft import build
from app.registry.manifest import Manifest


class EagerModel:
    """The folds of the model version in a folder, on as many threads as the process has cores."""

    def __init__(self, folder: Path) -> None:
        torch.set_num_threads(len(os.sched_getaffinity(0)))
        self.manifest = Manifest.model_validate_json((folder / "manifest.json").read_bytes())
        self.shape = (1, len(self.manifest.channels), *self.manifest.grid.shape)
        self.folds = []
        for fold in self.manifest.folds:
            network = build(self.manifest.architecture).eval()
            network.load_state_dict(load_file(folder / fold.file))
            self.folds.append(network)

    def predict(self, body: bytes) -> dict[str, float]:
        """Return the calibrated probability for an image (c, x, y, z) and then a clinical vector (v), raw float32."""
        voxels = int(np.prod(self.shape))
        values = torch.from_numpy(np.frombuffer(body, np.float32).copy())
        image, clinical = values[:voxels].view(self.shape), values[None, voxels:]
        with torch.no_grad():
            logit = torch.stack([fold(image, clinical)[0, 0] for fold in self.folds]).double().mean()
        calibration = self.manifest.calibration
        return {"probability": float(torch.sigmoid(calibration.slope * logit + calibration.intercept))}
