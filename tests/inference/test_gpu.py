"""On a CUDA device (`make test-gpu`): results as on the CPU, weights within a budget, released memory.

Skipped without a CUDA device, and needs few packages (docs/gpu.md).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from app.inference.ensemble_predictor import EXACT_METHOD, ExplanationMethod, NetworkFolds
from app.inference.explain import presence_bits
from app.inference.model_cache import ModelCache
from app.inference.model_version import TOLERANCE, ModelVersion, save
from app.network.backends import Backend, Precision
from app.network.ensemble import Ensemble, forbid_tf32
from app.registry.model_store import ModelStore
from app.sdk.errors import ModelNotReady
from tests.factory import random_network, tiny_case, tiny_manifest

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Two versions of about 70 MB each."""
    for seed, version in enumerate(("1.0.0", "2.0.0")):
        manifest = tiny_manifest(version=version)
        architecture = manifest.architecture.model_copy(update={"filters": 32})
        manifest = manifest.model_copy(update={"architecture": architecture})
        folds = [random_network(architecture, 10 * seed + fold) for fold in range(2)]
        save(tmp_path / "tiny" / version, manifest, folds, golden=[tiny_case(manifest)])
    return tmp_path


def test_auto_uses_the_gpu_in_bfloat16_and_channels_last(store: Path) -> None:
    model_cache = ModelCache(store)
    assert model_cache.device == "cuda"
    version = model_cache.version("tiny", "1.0.0")
    assert version.precision is Precision.BFLOAT16
    assert isinstance(version.predictor, NetworkFolds)
    weights = [weight for fold in version.predictor.ensemble.folds for weight in fold.parameters() if weight.dim() == 5]
    assert all(weight.is_cuda for weight in weights)
    assert all(weight.is_contiguous(memory_format=torch.channels_last_3d) for weight in weights)


@pytest.mark.parametrize("precision", list(Precision))
@pytest.mark.parametrize("version", ["1.0.0", "2.3.0"])
def test_trained_version_gives_the_results_of_the_cpu(version: str, precision: Precision) -> None:
    entry = ModelStore(ROOT / "model_store").resolve(f"rlvo-synthetic@{version}")
    gpu = ModelVersion.load(entry.folder, entry.manifest, "cuda", precision=precision)
    cpu = ModelVersion.load(entry.folder, entry.manifest, "cpu")
    assert gpu.precision is precision
    gpu.verify_golden_cases(entry.folder)
    case = tiny_case(entry.manifest, seed=3)
    assert gpu.predict(case).probability == pytest.approx(cpu.predict(case).probability, abs=TOLERANCE[precision])
    for method in (None, EXACT_METHOD):
        attribution, _ = gpu.explain(case, method=method)
        assert attribution.total == pytest.approx(gpu.predict(case).log_odds, abs=1e-4)


def test_map_is_equal_on_both_devices() -> None:
    forbid_tf32()
    manifest = tiny_manifest()
    networks = [random_network(manifest.architecture, seed) for seed in (1, 2)]
    shape = (len(manifest.channels), *manifest.grid.shape)
    case, bits = tiny_case(manifest, seed=3), presence_bits(manifest)
    present = range(len(manifest.channels))
    cpu, gpu = (NetworkFolds(Ensemble(networks, device), shape) for device in ("cpu", "cuda"))
    # Integrated gradients use bfloat16 on the GPU; the rescale rule is float32 everywhere.
    for method, tolerance in ((ExplanationMethod(), 1e-4), (EXACT_METHOD, 2e-2)):
        want, found = (each.image_shares(case.image, case.clinical, bits, present, method) for each in (cpu, gpu))
        assert want.voxels is not None
        assert found.voxels is not None
        assert found.channels == pytest.approx(want.channels, abs=tolerance * max(1, np.abs(want.channels).max()))
        assert np.corrcoef(want.voxels.flatten(), found.voxels.flatten())[0, 1] > 1 - tolerance


def test_unloading_releases_gpu_memory(store: Path) -> None:
    model_cache = ModelCache(store)
    # Each thread that computes keeps a workspace of cuBLAS, so the baseline is taken after a load in the same thread.
    model_cache.version("tiny", "1.0.0")
    model_cache.unload("tiny", "1.0.0")
    before = torch.cuda.memory_reserved()
    size = model_cache.version("tiny", "1.0.0").bytes
    assert torch.cuda.memory_allocated() >= size
    model_cache.unload("tiny", "1.0.0")
    assert torch.cuda.memory_reserved() <= before


def test_budget_limits_gpu_memory(store: Path) -> None:
    size = ModelCache(store).version("tiny", "1.0.0").bytes
    model_cache = ModelCache(store, budget=size)
    for version in ("1.0.0", "2.0.0", "1.0.0"):
        model_cache.version("tiny", version)
        assert [ref.version for ref in model_cache.loaded()] == [version]
    assert model_cache.bytes() == size


def test_openvino_is_refused_on_a_gpu(store: Path) -> None:
    with pytest.raises(ModelNotReady, match="needs a CPU"):
        ModelCache(store, backend=Backend.OPENVINO).version("tiny", "1.0.0")
