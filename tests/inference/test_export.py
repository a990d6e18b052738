"""Export to other runtimes: equal probabilities, or no file."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from app.cli.__main__ import app as command_line
from app.inference import export as export_module
from app.inference.export import GraphFormat, export
from app.inference.model_version import ModelVersion
from app.network.architecture import Fusion
from app.registry.manifest import Manifest
from app.registry.model_store import ModelStore
from app.sdk.errors import InvalidRequest, ModelNotReady
from tests.factory import tiny_case, tiny_version

ROOT = Path(__file__).resolve().parents[2]


def load_version(folder: Path) -> ModelVersion:
    return ModelVersion.load(folder, Manifest.model_validate_json((folder / "manifest.json").read_bytes()), "cpu")


@pytest.mark.parametrize("graph_format", list(GraphFormat))
@pytest.mark.parametrize("fusion", [Fusion.DAFT, Fusion.FILM])
def test_exported_graph_gives_the_same_probability(tmp_path: Path, graph_format: GraphFormat, fusion: Fusion) -> None:
    folder = tiny_version(tmp_path / "store", fusion=fusion)
    version = load_version(folder)
    written = export(version, folder, graph_format, tmp_path / "out")
    assert written.difference < 1e-5
    assert written.cases == 2
    case = tiny_case(version.manifest, seed=5)  # not one of the compared cases
    assert probability(graph_format, written.path, case.image[None], case.clinical[None]) == pytest.approx(
        version.predict(case).probability, abs=1e-5
    )
    description = json.loads(written.path.with_suffix(".json").read_text())
    assert description["model"] == "tiny@1.0.0"
    assert description["digest"] == version.digest
    assert "Research use only" in description["notice"]


def probability(graph_format: GraphFormat, path: Path, image: np.ndarray, clinical: np.ndarray) -> float:
    """Run a graph by the names of its inputs and outputs."""
    if graph_format is GraphFormat.ONNX:
        import onnxruntime

        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        return float(session.run(["probability"], {"image": image, "clinical": clinical})[0][0])
    if graph_format is GraphFormat.OPENVINO:
        from app.network.openvino import import_openvino

        graph = import_openvino().compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        return float(graph({"image": image, "clinical": clinical})["probability"][0])
    import torch

    # torch warns about TorchScript, but this format's runtimes need it.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return float(torch.jit.load(path)(torch.from_numpy(image), torch.from_numpy(clinical))[0])


def test_trained_version_can_be_exported(tmp_path: Path) -> None:
    entry = ModelStore(ROOT / "model_store").resolve("rlvo-synthetic")
    assert export(load_version(entry.folder), entry.folder, GraphFormat.OPENVINO, tmp_path).difference < 1e-5


def test_command_writes_the_graph_and_reports_the_comparison(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_version(tmp_path / "store")
    monkeypatch.setenv("RLVO_MODEL_STORE", str(tmp_path / "store"))
    ran = CliRunner().invoke(command_line, ["models", "export", "tiny", "--format", "onnx", "--to", str(tmp_path)])
    assert ran.exit_code == 0, ran.output
    assert "2 golden cases agree" in ran.output
    assert (tmp_path / "tiny-1.0.0.onnx").exists()
    assert CliRunner().invoke(command_line, ["models", "export", "tiny", "--format", "tflite"]).exit_code == 2


def test_differing_graph_is_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny_version(tmp_path / "store")
    monkeypatch.setattr(export_module, "TOLERANCE", -1.0)
    for graph_format in GraphFormat:
        with pytest.raises(ModelNotReady, match="differ"):
            export(load_version(folder), folder, graph_format, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_export_refusals_name_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logistic = tiny_version(tmp_path / "logistic", kind="logistic")
    with pytest.raises(InvalidRequest, match="coefficients"):
        export(load_version(logistic), logistic, GraphFormat.ONNX, tmp_path / "out")
    folder = tiny_version(tmp_path / "store")
    export(load_version(folder), folder, GraphFormat.TORCHSCRIPT, tmp_path / "out")
    with pytest.raises(InvalidRequest, match="already"):
        export(load_version(folder), folder, GraphFormat.TORCHSCRIPT, tmp_path / "out")
    monkeypatch.setattr(export_module, "find_spec", lambda _: None)
    with pytest.raises(InvalidRequest, match="pip install onnx"):
        export(load_version(folder), folder, GraphFormat.ONNX, tmp_path / "out")
