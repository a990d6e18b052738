"""A vessel segmenter taught on phantoms, from its patches to the version that a model names."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from app.network.unet import VesselNet
from app.registry.manifest import SegmenterManifest
from app.training import segmenter


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("store") / "1.0.0"
    segmenter.train(out, steps=2, patients=1)
    return out


def test_a_version_is_complete(taught: Path) -> None:
    manifest = SegmenterManifest.model_validate_json((taught / "manifest.json").read_bytes())
    content = (taught / manifest.file).read_bytes()
    assert hashlib.sha256(content).hexdigest() == manifest.sha256
    assert VesselNet.from_bytes(content, manifest.filters)(np.zeros((8, 8, 8), np.float32)).shape == (8, 8, 8)
    assert "phantoms" in (taught / "card.md").read_text()


def test_a_version_is_never_overwritten(taught: Path) -> None:
    before = {path.name: path.read_bytes() for path in taught.iterdir()}
    with pytest.raises(FileExistsError):
        segmenter.train(taught, steps=1, patients=1)
    assert before == {path.name: path.read_bytes() for path in taught.iterdir()}


def test_a_patch_shows_what_it_is_cut_from() -> None:
    """A vessel through the middle: bright where the truth says vessel, tissue elsewhere, the same patch again."""
    hu = np.full((64, 64, 64), 40, np.float32)
    cover = np.zeros_like(hu)
    cover[30:34, 30:34, :] = 1
    hu[cover > 0] = 400
    patch = segmenter.draw(np.random.default_rng(2), np.full(3, 32.0))
    image, truth = segmenter.cut(hu, cover, patch)
    assert image.shape == truth.shape == (segmenter.EDGE,) * 3
    inside = hu.min() - 200  # outside of the canvas is air
    assert truth.sum() > 20
    assert image[truth > 0].mean() > image[(truth == 0) & (image > inside)].mean() + 0.3
    assert np.array_equal(image, segmenter.cut(hu, cover, patch)[0])
