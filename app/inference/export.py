"""A version's whole ensemble as one graph for other runtimes: ONNX, OpenVINO, TorchScript.

Notable choices:
- The graph is image (1, c, x, y, z) and clinical (1, v) to probability (1,) and logits (folds,): prepared tensors in,
  the calibrated answer out. Preparing and explaining stay here.
- What was written is loaded again by its own runtime and must give the manifest's answers for the golden cases, and
  ours for a patient without images. Otherwise nothing is left of it.
- Each runtime is imported only when its format is asked for.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import expit
from torch import Tensor, nn

from app.inference import explain
from app.inference.ensemble_predictor import NetworkFolds
from app.inference.model_version import ModelVersion, golden_cases
from app.network.daft import Network
from app.registry.manifest import Calibration
from app.sdk.errors import InvalidRequest, ModelNotReady
from app.sdk.types import NOTICE

TOLERANCE = 1e-4
"""Of a probability, between what was written and what this version answers."""

Run = Callable[[NDArray[np.float32], NDArray[np.float32]], NDArray[np.float32]]
"""Image (1, c, x, y, z) and clinical (1, v) to the folds' logits, by the runtime of a format."""


class GraphFormat(StrEnum):
    """What can be written; `_NEEDS` are the packages without which it cannot be, or not be checked."""

    ONNX = "onnx"
    OPENVINO = "openvino"
    TORCHSCRIPT = "torchscript"


_NEEDS = {GraphFormat.ONNX: ("onnx", "onnxruntime"), GraphFormat.OPENVINO: ("openvino",), GraphFormat.TORCHSCRIPT: ()}
_SUFFIX = {GraphFormat.ONNX: ".onnx", GraphFormat.OPENVINO: ".xml", GraphFormat.TORCHSCRIPT: ".pt"}


@dataclass(frozen=True)
class ExportedGraph:
    """Where the graph lies, and by how much its probabilities differ at most from the version's own."""

    path: Path
    difference: float
    cases: int


class EnsembleGraph(nn.Module):
    """Every fold and the calibration of their mean, as one graph."""

    def __init__(self, folds: Sequence[Network], calibration: Calibration) -> None:
        super().__init__()
        self.folds = nn.ModuleList(folds)
        self.slope, self.intercept = calibration.slope, calibration.intercept

    def forward(self, image: Tensor, clinical: Tensor) -> tuple[Tensor, Tensor]:
        """Probability (1,) and logits (folds,) of one patient."""
        logits = torch.cat([fold(image, clinical)[:, 0] for fold in self.folds])
        return torch.sigmoid(self.slope * logits.mean(dim=0, keepdim=True) + self.intercept), logits


def export(version: ModelVersion, folder: Path, form: GraphFormat, to: Path) -> ExportedGraph:
    """Writes a version into the folder ``to`` as ``<name>-<version>``, with a JSON file that says what it is.

    :param version: loaded on a CPU
    :param folder: the version's own, for its golden cases
    :raises InvalidRequest: a logistic version has no graph, a package is missing, or there is such a file already
    :raises ModelNotReady: what was written does not answer as the version does
    """
    if not isinstance(version.committee, NetworkFolds):
        raise InvalidRequest("A logistic version is its coefficients; there is no graph to export")
    if missing := [package for package in _NEEDS[form] if find_spec(package) is None]:
        raise InvalidRequest(f"This format needs `pip install {' '.join(missing)}`")
    manifest = version.manifest
    path = to / f"{manifest.name}-{manifest.version}{_SUFFIX[form]}"
    if path.exists():
        raise InvalidRequest("There is such a file already; it is left as it is")
    to.mkdir(parents=True, exist_ok=True)
    image = torch.zeros(1, *version.committee.shape)
    clinical = torch.zeros(1, manifest.architecture.clinical_size)
    whole = EnsembleGraph(version.committee.ensemble.folds, manifest.calibration).eval()
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the tracer's advice to use newer exporters, which take minutes here
            run = {GraphFormat.ONNX: _onnx, GraphFormat.OPENVINO: _openvino, GraphFormat.TORCHSCRIPT: _torchscript}[
                form
            ](whole, (image, clinical), path)
        difference, cases = _compare(run, version, folder)
    except BaseException:
        for part in (path, path.with_suffix(".bin")):
            part.unlink(missing_ok=True)
        raise
    about = {
        "model": f"{manifest.name}@{manifest.version}",
        "digest": version.digest,
        "format": form,
        "inputs": {"image": list(image.shape), "clinical": list(clinical.shape)},
        "outputs": {"probability": [1], "logits": [len(manifest.folds)]},
        "probability_differs_by": difference,
        "cases": cases,
        "threshold": manifest.threshold.value,
        "notice": NOTICE,
    }
    path.with_suffix(".json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    return ExportedGraph(path, difference, cases)


def _compare(run: Run, version: ModelVersion, folder: Path) -> tuple[float, int]:
    """The largest difference in probability. Raises ModelNotReady where it is beyond the tolerance."""
    blank = np.zeros(version.manifest.architecture.clinical_size, np.float32)
    assert isinstance(version.committee, NetworkFolds)
    nobody = np.zeros(version.committee.shape, np.float32)
    asked = [(case.image, case.clinical, np.asarray(logits)) for case, logits in golden_cases(version.manifest, folder)]
    asked.append((nobody, blank, version.committee.logits(nobody, blank)))

    def probability(logits: NDArray[np.floating]) -> float:
        mean = np.asarray(logits, dtype=np.float64).mean(keepdims=True)
        return float(expit(explain.log_odds(mean, version.manifest.calibration))[0])

    worst = max(
        abs(probability(run(image[None], clinical[None])) - probability(logits)) for image, clinical, logits in asked
    )
    if not worst <= TOLERANCE:
        raise ModelNotReady(f"The exported graph's probabilities differ by {worst:.1e}; {TOLERANCE:g} is allowed")
    return worst, len(asked)


def _onnx(whole: EnsembleGraph, example: tuple[Tensor, Tensor], path: Path) -> Run:
    import onnxruntime

    torch.onnx.export(
        whole,
        example,
        str(path),
        input_names=["image", "clinical"],
        output_names=["probability", "logits"],
        dynamo=False,
    )
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda image, clinical: np.asarray(session.run(["logits"], {"image": image, "clinical": clinical})[0])


def _openvino(whole: EnsembleGraph, example: tuple[Tensor, Tensor], path: Path) -> Run:
    from app.network.openvino import library

    openvino = library()
    traced = torch.jit.trace(whole, example, check_trace=False)  # type: ignore[no-untyped-call]
    graph = openvino.convert_model(traced, example_input=example, input=[tuple(part.shape) for part in example])
    for port, name in zip((*graph.inputs, *graph.outputs), ("image", "clinical", "probability", "logits"), strict=True):
        port.set_names({name})
    openvino.save_model(graph, str(path), compress_to_fp16=False)
    compiled = openvino.compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda image, clinical: np.array(compiled((image, clinical))[1])


def _torchscript(whole: EnsembleGraph, example: tuple[Tensor, Tensor], path: Path) -> Run:
    torch.jit.trace(whole, example, check_trace=False).save(str(path))  # type: ignore[no-untyped-call]
    loaded = torch.jit.load(str(path))  # type: ignore[no-untyped-call]
    return lambda image, clinical: loaded(torch.from_numpy(image), torch.from_numpy(clinical))[1].numpy()
