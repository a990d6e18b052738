"""A version for other runtimes: it answers there as here, or it is not written at all."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from app.cli.__main__ import app as command_line
from app.inference import export as graphs
from app.inference.export import GraphFormat, export
from app.inference.model_version import ModelVersion
from app.network.architecture import Fusion
from app.registry.manifest import Manifest
from app.registry.model_store import ModelStore
from app.sdk.errors import InvalidRequest, ModelNotReady
from tests.factory import tiny_case, tiny_version

ROOT = Path(__file__).resolve().parents[2]


def opened(folder: Path) -> ModelVersion:
    return ModelVersion.load(folder, Manifest.model_validate_json((folder / "manifest.json").read_bytes()), "cpu")


@pytest.mark.parametrize("form", list(GraphFormat))
@pytest.mark.parametrize("fusion", [Fusion.DAFT, Fusion.FILM])
def test_another_runtime_gives_our_probability(tmp_path: Path, form: GraphFormat, fusion: Fusion) -> None:
    folder = tiny_version(tmp_path / "store", fusion=fusion)
    version = opened(folder)
    written = export(version, folder, form, tmp_path / "out")
    assert written.difference < 1e-5
    assert written.cases == 2
    case = tiny_case(version.manifest, seed=5)  # one that the export has not seen
    assert probability(form, written.path, case.image[None], case.clinical[None]) == pytest.approx(
        version.predict(case).probability, abs=1e-5
    )
    about = json.loads(written.path.with_suffix(".json").read_text())
    assert about["model"] == "tiny@1.0.0"
    assert about["digest"] == version.digest
    assert "Research use only" in about["notice"]


def probability(form: GraphFormat, path: Path, image: np.ndarray, clinical: np.ndarray) -> float:
    """By names, as another house would ask."""
    if form is GraphFormat.ONNX:
        import onnxruntime

        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        return float(session.run(["probability"], {"image": image, "clinical": clinical})[0][0])
    if form is GraphFormat.OPENVINO:
        from app.network.openvino import library

        graph = library().compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        return float(graph({"image": image, "clinical": clinical})["probability"][0])
    import torch

    # torch would have its newer format used; what this one's readers load is TorchScript.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return float(torch.jit.load(path)(torch.from_numpy(image), torch.from_numpy(clinical))[0])


def test_the_trained_version_can_be_taken_elsewhere(tmp_path: Path) -> None:
    entry = ModelStore(ROOT / "model_store").resolve("rlvo-synthetic")
    assert export(opened(entry.folder), entry.folder, GraphFormat.OPENVINO, tmp_path).difference < 1e-5


def test_the_command_writes_and_says_how_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_version(tmp_path / "store")
    monkeypatch.setenv("RLVO_MODEL_STORE", str(tmp_path / "store"))
    ran = CliRunner().invoke(command_line, ["models", "export", "tiny", "--format", "onnx", "--to", str(tmp_path)])
    assert ran.exit_code == 0, ran.output
    assert "2 cases answered alike" in ran.output
    assert (tmp_path / "tiny-1.0.0.onnx").exists()
    assert CliRunner().invoke(command_line, ["models", "export", "tiny", "--format", "tflite"]).exit_code == 2


def test_what_answers_otherwise_is_not_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny_version(tmp_path / "store")
    monkeypatch.setattr(graphs, "TOLERANCE", -1.0)
    for form in GraphFormat:
        with pytest.raises(ModelNotReady, match="differ"):
            export(opened(folder), folder, form, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_what_cannot_be_exported_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logistic = tiny_version(tmp_path / "logistic", kind="logistic")
    with pytest.raises(InvalidRequest, match="coefficients"):
        export(opened(logistic), logistic, GraphFormat.ONNX, tmp_path / "out")
    folder = tiny_version(tmp_path / "store")
    export(opened(folder), folder, GraphFormat.TORCHSCRIPT, tmp_path / "out")
    with pytest.raises(InvalidRequest, match="already"):
        export(opened(folder), folder, GraphFormat.TORCHSCRIPT, tmp_path / "out")
    monkeypatch.setattr(graphs, "find_spec", lambda _: None)
    with pytest.raises(InvalidRequest, match="pip install onnx"):
        export(opened(folder), folder, GraphFormat.ONNX, tmp_path / "out")
