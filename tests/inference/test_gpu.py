"""On a CUDA device (`make test-gpu`): results as on the CPU, weights within a budget, released memory.

Skipped without a CUDA device.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from app.inference.ensemble_predictor import NetworkFolds
from app.inference.model_cache import ModelCache
from app.inference.model_version import ModelVersion, save
from app.network.backends import Backend, Precision
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


def test_trained_version_gives_the_results_of_the_cpu() -> None:
    entry = ModelStore(ROOT / "model_store").resolve("rlvo-synthetic")
    gpu, cpu = (ModelVersion.load(entry.folder, entry.manifest, device) for device in ("cuda", "cpu"))
    gpu.verify_golden_cases(entry.folder)
    golden = tiny_case(entry.manifest, seed=3)
    assert gpu.predict(golden).probability == pytest.approx(cpu.predict(golden).probability, abs=1e-2)
    attribution, _ = gpu.explain(golden)
    assert attribution.total == pytest.approx(gpu.predict(golden).log_odds, abs=1e-4)


def test_unloading_releases_gpu_memory(store: Path) -> None:
    model_cache = ModelCache(store)
    torch.ones(8, 8, device="cuda") @ torch.ones(8, 8, device="cuda")  # the workspace of cuBLAS stays allocated
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
