"""Training of the vessel segmenter on phantoms: patches and the written version."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from app.network.unet import VesselNet
from app.registry.manifest import SegmenterManifest
from app.training import segmenter


@pytest.fixture(scope="module")
def version_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("store") / "1.0.0"
    segmenter.train(out, steps=2, patients=1)
    return out


def test_version_is_complete(version_folder: Path) -> None:
    manifest = SegmenterManifest.model_validate_json((version_folder / "manifest.json").read_bytes())
    content = (version_folder / manifest.file).read_bytes()
    assert hashlib.sha256(content).hexdigest() == manifest.sha256
    assert VesselNet.from_bytes(content, manifest.filters)(np.zeros((8, 8, 8), np.float32)).shape == (8, 8, 8)
    assert "phantoms" in (version_folder / "card.md").read_text()


def test_version_is_never_overwritten(version_folder: Path) -> None:
    before = {path.name: path.read_bytes() for path in version_folder.iterdir()}
    with pytest.raises(FileExistsError):
        segmenter.train(version_folder, steps=1, patients=1)
    assert before == {path.name: path.read_bytes() for path in version_folder.iterdir()}


def test_patch_shows_the_vessel_that_the_mask_marks() -> None:
    """A vessel through the centre is bright inside the mask; the same patch gives the same image."""
    hu = np.full((64, 64, 64), 40, np.float32)
    cover = np.zeros_like(hu)
    cover[30:34, 30:34, :] = 1
    hu[cover > 0] = 400
    patch = segmenter.draw(np.random.default_rng(2), np.full(3, 32.0))
    image, truth = segmenter.cut(hu, cover, patch)
    assert image.shape == truth.shape == (segmenter.EDGE,) * 3
    inside = hu.min() - 200  # outside the volume there is air
    assert truth.sum() > 20
    assert image[truth > 0].mean() > image[(truth == 0) & (image > inside)].mean() + 0.3
    assert np.array_equal(image, segmenter.cut(hu, cover, patch)[0])
