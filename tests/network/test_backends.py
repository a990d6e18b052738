"""Backends: equal results, no unused import and no telemetry."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from app.inference.ensemble_predictor import NetworkFolds
from app.inference.model_version import ModelVersion
from app.network import backends
from app.network.architecture import Fusion, Location
from app.network.backends import Backend, Precision
from app.registry.manifest import Manifest
from app.registry.model_store import ModelStore
from app.sdk.errors import ModelNotReady
from tests.factory import random_network, tiny_case, tiny_manifest, tiny_version

ROOT = Path(__file__).resolve().parents[2]


def load_version(folder: Path, backend: Backend, precision: Precision = Precision.FLOAT32) -> ModelVersion:
    manifest = Manifest.model_validate_json((folder / "manifest.json").read_bytes())
    return ModelVersion.load(folder, manifest, "cpu", backend=backend, precision=precision)


@pytest.mark.parametrize("fusion", list(Fusion))
def test_openvino_gives_the_probability_of_torch(tmp_path: Path, fusion: Fusion) -> None:
    folder = tiny_version(tmp_path, fusion=fusion, location=Location.BLOCK_INPUT)
    torch_, openvino = load_version(folder, Backend.TORCH), load_version(folder, Backend.OPENVINO)
    for seed in range(3):
        case = tiny_case(torch_.manifest, seed=seed)
        assert openvino.predict(case).probability == pytest.approx(torch_.predict(case).probability, abs=1e-5)
    openvino.verify_golden_cases(folder)


def test_explanation_sums_to_the_prediction_of_the_backend(tmp_path: Path) -> None:
    version = load_version(tiny_version(tmp_path), Backend.OPENVINO, Precision.BFLOAT16)
    case = tiny_case(version.manifest, seed=1)
    attribution, _ = version.explain(case)
    assert attribution.total == pytest.approx(version.predict(case).log_odds, abs=1e-5)
    parts = sum(part.contribution for part in (*attribution.clinical, *attribution.imaging))
    assert attribution.base + parts == pytest.approx(attribution.total, abs=1e-6)


def test_unfolded_normalisation_is_refused() -> None:
    network, shape = random_network(tiny_manifest().architecture, 0), (2, 16, 16, 16)
    with pytest.raises(ValueError, match="fold it in"):
        backends.select_backend(Backend.OPENVINO, torch.device("cpu"), [network], shape)


def test_two_results_do_not_share_memory(tmp_path: Path) -> None:
    version = load_version(tiny_version(tmp_path), Backend.OPENVINO)
    assert isinstance(version.predictor, NetworkFolds)
    ensemble = version.predictor.ensemble
    first = ensemble.features(torch.from_numpy(tiny_case(version.manifest, seed=1).image))
    copies = [part.clone() for part in first]
    ensemble.features(torch.from_numpy(tiny_case(version.manifest, seed=2).image))
    assert all(torch.equal(now, before) for now, before in zip(first, copies, strict=True))


@pytest.mark.parametrize("precision", list(Precision))
def test_trained_version_gives_its_golden_cases_on_openvino(precision: Precision) -> None:
    entry = ModelStore(ROOT / "model_store").resolve("rlvo-synthetic")
    version = ModelVersion.load(entry.folder, entry.manifest, "cpu", backend=Backend.OPENVINO, precision=precision)
    version.verify_golden_cases(entry.folder)
    assert version.precision is precision


def test_version_that_differs_from_its_golden_cases_is_refused(tmp_path: Path) -> None:
    folder = tiny_version(tmp_path)
    version = load_version(folder, Backend.TORCH)
    golden = version.manifest.golden[0]
    changed = golden.model_copy(update={"logits": tuple(np.asarray(golden.logits) + 0.01)})
    version.manifest = version.manifest.model_copy(update={"golden": (changed,)})
    with pytest.raises(ModelNotReady, match="golden cases"):
        version.verify_golden_cases(folder)


def test_auto_is_torch_without_openvino_and_requesting_openvino_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "find_spec", lambda _: None)
    shape = (1, 16, 16, 16)
    assert backends.select_backend(Backend.AUTO, torch.device("cpu"), [], shape) is None
    with pytest.raises(ModelNotReady, match="openvino"):
        backends.select_backend(Backend.OPENVINO, torch.device("cpu"), [], shape)


@pytest.mark.parametrize("backend", ["torch", "openvino"])
def test_openvino_is_imported_only_if_used_and_without_telemetry(tmp_path: Path, backend: str) -> None:
    tiny_version(tmp_path)
    code = (
        "import sys; from pathlib import Path; from app.inference.model_cache import ModelCache;"
        f"ModelCache(Path({str(tmp_path)!r}), 'cpu', backend={backend!r}).version('tiny', '1.0.0');"
        "loaded = [name for name in sys.modules if name.startswith('openvino') and sys.modules[name] is not None];"
        "print('\\n'.join(loaded))"
    )
    home = {"HOME": str(tmp_path), "PATH": ""}
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=home, capture_output=True, text=True, check=True)
    modules = ran.stdout.split()
    assert ("openvino" in modules) == (backend == "openvino")
    assert not any(name.startswith("openvino_telemetry") for name in modules)
    assert not (tmp_path / "intel").exists()  # the telemetry package stores its client id there
