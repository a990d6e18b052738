"""Backends: the same answers as torch, nothing imported that is not used, nothing reported to anybody."""

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


def loaded(folder: Path, backend: Backend, precision: Precision = Precision.FLOAT32) -> ModelVersion:
    manifest = Manifest.model_validate_json((folder / "manifest.json").read_bytes())
    return ModelVersion.load(folder, manifest, "cpu", backend=backend, precision=precision)


@pytest.mark.parametrize("fusion", list(Fusion))
def test_openvino_gives_torchs_answer(tmp_path: Path, fusion: Fusion) -> None:
    folder = tiny_version(tmp_path, fusion=fusion, location=Location.BLOCK_INPUT)
    torch_, openvino = loaded(folder, Backend.TORCH), loaded(folder, Backend.OPENVINO)
    for seed in range(3):
        case = tiny_case(torch_.manifest, seed=seed)
        assert openvino.predict(case).probability == pytest.approx(torch_.predict(case).probability, abs=1e-5)
    openvino.verify_golden_cases(folder)


def test_an_explanation_adds_up_to_what_the_backend_predicted(tmp_path: Path) -> None:
    version = loaded(tiny_version(tmp_path), Backend.OPENVINO, Precision.BFLOAT16)
    case = tiny_case(version.manifest, seed=1)
    why, _ = version.explain(case)
    assert why.total == pytest.approx(version.predict(case).log_odds, abs=1e-5)
    parts = sum(part.contribution for part in (*why.clinical, *why.imaging))
    assert why.base + parts == pytest.approx(why.total, abs=1e-6)


def test_a_normalisation_that_is_not_folded_in_is_not_passed_over() -> None:
    network, shape = random_network(tiny_manifest().architecture, 0), (2, 16, 16, 16)
    with pytest.raises(ValueError, match="fold it in"):
        backends.pick(Backend.OPENVINO, torch.device("cpu"), [network], shape)


def test_two_answers_do_not_share_memory(tmp_path: Path) -> None:
    version = loaded(tiny_version(tmp_path), Backend.OPENVINO)
    assert isinstance(version.committee, NetworkFolds)
    ensemble = version.committee.ensemble
    first = ensemble.features(torch.from_numpy(tiny_case(version.manifest, seed=1).image))
    kept = [part.clone() for part in first]
    ensemble.features(torch.from_numpy(tiny_case(version.manifest, seed=2).image))
    assert all(torch.equal(now, then) for now, then in zip(first, kept, strict=True))


@pytest.mark.parametrize("precision", list(Precision))
def test_the_trained_version_answers_alike_on_every_backend(precision: Precision) -> None:
    entry = ModelStore(ROOT / "model_store").resolve("rlvo-synthetic")
    version = ModelVersion.load(entry.folder, entry.manifest, "cpu", backend=Backend.OPENVINO, precision=precision)
    version.verify_golden_cases(entry.folder)
    assert version.precision is precision


def test_a_version_that_answers_otherwise_than_its_manifest_says_is_refused(tmp_path: Path) -> None:
    folder = tiny_version(tmp_path)
    version = loaded(folder, Backend.TORCH)
    golden = version.manifest.golden[0]
    off = golden.model_copy(update={"logits": tuple(np.asarray(golden.logits) + 0.01)})
    version.manifest = version.manifest.model_copy(update={"golden": (off,)})
    with pytest.raises(ModelNotReady, match="golden cases"):
        version.verify_golden_cases(folder)


def test_auto_is_torch_where_openvino_is_missing_and_asking_for_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "find_spec", lambda _: None)
    shape = (1, 16, 16, 16)
    assert backends.pick(Backend.AUTO, torch.device("cpu"), [], shape) is None
    with pytest.raises(ModelNotReady, match="openvino"):
        backends.pick(Backend.OPENVINO, torch.device("cpu"), [], shape)


@pytest.mark.parametrize("backend", ["torch", "openvino"])
def test_nothing_is_imported_that_is_not_used_and_nothing_is_reported(tmp_path: Path, backend: str) -> None:
    tiny_version(tmp_path)
    code = (
        "import sys; from pathlib import Path; from app.predictor import Predictor;"
        f"Predictor(Path({str(tmp_path)!r}), 'cpu', backend={backend!r}).version('tiny', '1.0.0');"
        "loaded = [name for name in sys.modules if name.startswith('openvino') and sys.modules[name] is not None];"
        "print('\\n'.join(loaded))"
    )
    home = {"HOME": str(tmp_path), "PATH": ""}
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=home, capture_output=True, text=True, check=True)
    modules = ran.stdout.split()
    assert ("openvino" in modules) == (backend == "openvino")
    assert not any(name.startswith("openvino_telemetry") for name in modules)
    assert not (tmp_path / "intel").exists()  # where the reporting package keeps its client's number
