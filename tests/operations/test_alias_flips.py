"""A weights file with one flipped bit is refused: 100 flips in `make test`, 1000 in `make soak`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from app.inference.model_version import ModelVersion
from app.registry.manifest import Manifest
from app.sdk.errors import ModelNotReady
from tests.factory import tiny_version


@pytest.mark.parametrize("flips", [100, pytest.param(1000, marks=pytest.mark.soak)])
def test_every_flipped_bit_is_refused(tmp_path: Path, flips: int) -> None:
    folder = tiny_version(tmp_path)
    manifest = Manifest.model_validate_json((folder / "manifest.json").read_bytes())
    rng = np.random.default_rng(7)
    refused = 0
    for _ in range(flips):
        file = folder / manifest.folds[rng.integers(len(manifest.folds))].file
        good = file.read_bytes()
        bit = int(rng.integers(8 * len(good)))
        flipped = bytearray(good)
        flipped[bit // 8] ^= 1 << bit % 8
        file.write_bytes(flipped)
        try:
            ModelVersion.load(folder, manifest, "cpu")
        except ModelNotReady:
            refused += 1
        file.write_bytes(good)
    assert refused == flips
    ModelVersion.load(folder, manifest, "cpu")
