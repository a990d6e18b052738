"""The model that every peer server calls: the folds of one version, one after the other, by torch eager in float32."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from app.inference.explain import network_image, presence_bits
from app.inference.fold_files import load_reference
from app.inference.model_input import ModelInput
from app.inference.occlusion_side import compare, shown_sides
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
        self.reference = load_reference(folder, self.manifest)

    def seen(self, image: Tensor, clinical: Tensor) -> Tensor:
        """Return what the folds see of an image (1, c, x, y, z), as rlvo computes it from prepared tensors."""
        if self.reference is None:
            return image
        values, presence = image[0].numpy(), clinical[0, presence_bits(self.manifest)].numpy() > 0
        shown = shown_sides(values, presence, self.manifest.channels, self.manifest.grid)
        case = ModelInput(values, presence, clinical[0].numpy(), affected=compare(None, shown)[0])
        return torch.from_numpy(network_image(case, self.reference))[None]

    def predict(self, body: bytes) -> dict[str, float]:
        """Return the calibrated probability for an image (c, x, y, z) and then a clinical vector (v), raw float32."""
        voxels = int(np.prod(self.shape))
        values = torch.from_numpy(np.frombuffer(body, np.float32).copy())
        image, clinical = values[:voxels].view(self.shape), values[None, voxels:]
        with torch.no_grad():
            seen = self.seen(image, clinical)
            logit = torch.stack([fold(seen, clinical)[0, 0] for fold in self.folds]).double().mean()
        calibration = self.manifest.calibration
        return {"probability": float(torch.sigmoid(calibration.slope * logit + calibration.intercept))}
