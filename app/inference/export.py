"""Export a version's whole ensemble as one graph for other runtimes: ONNX, OpenVINO, TorchScript.

Design notes:
- The graph maps image (1, c, x, y, z) and clinical (1, v) to probability (1,) and logits (folds,). It does not prepare
  or explain.
- The reference head is part of the graph, but not the mirroring of a side-aligned version: the caller mirrors the image
  of a left-sided occlusion. The JSON file says so.
- The written graph is loaded by its runtime and compared with this version, on the golden cases and on a patient
  without images. If it differs, its files are deleted.
- Each runtime is imported only for its format.
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
from app.inference.fold_files import golden_cases
from app.inference.model_version import ModelVersion
from app.inference.reference_head import ReferenceHead
from app.network.daft import Network
from app.registry.manifest import Calibration
from app.sdk.errors import InvalidRequest, ModelNotReady
from app.sdk.types import NOTICE

TOLERANCE = 1e-4  # largest allowed difference in probability between the written graph and this version

Run = Callable[[NDArray[np.float32], NDArray[np.float32]], NDArray[np.float32]]
"""Compute the folds' logits of image (1, c, x, y, z) and clinical (1, v) with the runtime of a format."""


class GraphFormat(StrEnum):
    """Formats of a graph; `_NEEDED` lists the packages that writing and checking need."""

    ONNX = "onnx"
    OPENVINO = "openvino"
    TORCHSCRIPT = "torchscript"


_NEEDED = {GraphFormat.ONNX: ("onnx", "onnxruntime"), GraphFormat.OPENVINO: ("openvino",), GraphFormat.TORCHSCRIPT: ()}
_SUFFIX = {GraphFormat.ONNX: ".onnx", GraphFormat.OPENVINO: ".xml", GraphFormat.TORCHSCRIPT: ".pt"}


@dataclass(frozen=True)
class ExportedGraph:
    """A written graph: its path, the largest difference in probability, and the number of compared cases."""

    path: Path
    difference: float
    cases: int


class EnsembleGraph(nn.Module):
    """Every fold, and the calibration of their mean logit."""

    def __init__(
        self, folds: Sequence[Network], calibration: Calibration, reference: ReferenceHead | None = None
    ) -> None:
        super().__init__()
        self.folds = nn.ModuleList(folds)
        self.slope, self.intercept = calibration.slope, calibration.intercept
        self.mean = None if reference is None else torch.from_numpy(reference.mean)
        self.mask = None if reference is None else torch.from_numpy(reference.mask)

    def forward(self, image: Tensor, clinical: Tensor) -> tuple[Tensor, Tensor]:
        """Compute probability (1,) and logits (folds,) of one patient."""
        if self.mean is not None and self.mask is not None:
            present = clinical[:, -image.shape[1] :, None, None, None]  # the presence bits, 0 or 1
            image = (image - self.mean) * self.mask * present
        logits = torch.cat([fold(image, clinical)[:, 0] for fold in self.folds])
        return torch.sigmoid(self.slope * logits.mean(dim=0, keepdim=True) + self.intercept), logits


def export(version: ModelVersion, folder: Path, graph_format: GraphFormat, target: Path) -> ExportedGraph:
    """Write a version into the folder ``target`` as ``<name>-<version>``, with a JSON file that describes the graph.

    ``version`` is loaded on a CPU; ``folder`` is the folder of the version, with its golden cases.

    Raises:
        InvalidRequest: The version is logistic, a package is missing, or the file exists.
        ModelNotReady: The written graph differs from the version.
    """
    if not isinstance(version.predictor, NetworkFolds):
        raise InvalidRequest("A logistic version has no graph to export; its coefficients are in its fold files.")
    if missing := [package for package in _NEEDED[graph_format] if find_spec(package) is None]:
        raise InvalidRequest(f"This format needs `pip install {' '.join(missing)}`.")
    manifest = version.manifest
    path = target / f"{manifest.name}-{manifest.version}{_SUFFIX[graph_format]}"
    if path.exists():
        raise InvalidRequest(f"{path.name} exists already. Delete it, or choose another folder.")
    target.mkdir(parents=True, exist_ok=True)
    image = torch.zeros(1, *version.predictor.shape)
    clinical = torch.zeros(1, manifest.architecture.clinical_size)
    graph = EnsembleGraph(version.predictor.ensemble.folds, manifest.calibration, version.reference).eval()
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch recommends newer exporters, which take minutes
            run = _WRITERS[graph_format](graph, (image, clinical), path)
        difference, cases = _compare(run, version, folder)
    except BaseException:
        for part in (path, path.with_suffix(".bin")):
            part.unlink(missing_ok=True)
        raise
    description = {
        "model": f"{manifest.name}@{manifest.version}",
        "digest": version.digest,
        "format": graph_format,
        "inputs": {"image": list(image.shape), "clinical": list(clinical.shape)},
        "outputs": {"probability": [1], "logits": [len(manifest.folds)]},
        "probability_differs_by": difference,
        "cases": cases,
        "mirror_left_sided": version.reference is not None and version.reference.side_aligned,
        "threshold": manifest.threshold.value,
        "notice": NOTICE,
    }
    path.with_suffix(".json").write_text(json.dumps(description, indent=1) + "\n", encoding="utf-8")
    return ExportedGraph(path, difference, cases)


def _compare(run: Run, version: ModelVersion, folder: Path) -> tuple[float, int]:
    """Return the largest difference in probability, or raise ModelNotReady if it exceeds the tolerance."""
    vector = np.zeros(version.manifest.architecture.clinical_size, np.float32)
    assert isinstance(version.predictor, NetworkFolds)
    blank = np.zeros(version.predictor.shape, np.float32)
    cases = []
    for model_input, logits in golden_cases(version.manifest, folder):
        mirrored = version.reference is not None and version.reference.is_mirrored(model_input.affected)
        image = np.ascontiguousarray(model_input.image[:, ::-1]) if mirrored else model_input.image
        cases.append((image, model_input.clinical, np.asarray(logits)))
    cases.append((blank, vector, version.predictor.logits(blank, vector)))

    def probability(logits: NDArray[np.floating]) -> float:
        mean = np.asarray(logits, dtype=np.float64).mean(keepdims=True)
        return float(expit(explain.log_odds(mean, version.manifest.calibration))[0])

    differences = [
        probability(run(image[None], clinical[None])) - probability(logits) for image, clinical, logits in cases
    ]
    worst = float(np.abs(differences).max())  # NaN if one of them is; max() of Python would ignore it
    if not worst <= TOLERANCE:
        raise ModelNotReady(f"The exported graph's probabilities differ by {worst:.1e}; {TOLERANCE:g} is allowed.")
    return worst, len(cases)


def _onnx(graph: EnsembleGraph, example: tuple[Tensor, Tensor], path: Path) -> Run:
    import onnxruntime

    torch.onnx.export(
        graph,
        example,
        str(path),
        input_names=["image", "clinical"],
        output_names=["probability", "logits"],
        dynamo=False,
    )
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda image, clinical: np.asarray(session.run(["logits"], {"image": image, "clinical": clinical})[0])


def _openvino(graph: EnsembleGraph, example: tuple[Tensor, Tensor], path: Path) -> Run:
    from app.network.openvino import import_openvino

    openvino = import_openvino()
    traced = torch.jit.trace(graph, example, check_trace=False)  # type: ignore[no-untyped-call]
    converted = openvino.convert_model(traced, example_input=example, input=[tuple(part.shape) for part in example])
    ports = (*converted.inputs, *converted.outputs)
    for port, name in zip(ports, ("image", "clinical", "probability", "logits"), strict=True):
        port.set_names({name})
    openvino.save_model(converted, str(path), compress_to_fp16=False)
    compiled = openvino.compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda image, clinical: np.array(compiled((image, clinical))[1])


def _torchscript(graph: EnsembleGraph, example: tuple[Tensor, Tensor], path: Path) -> Run:
    torch.jit.trace(graph, example, check_trace=False).save(str(path))  # type: ignore[no-untyped-call]
    loaded = torch.jit.load(str(path))  # type: ignore[no-untyped-call]
    return lambda image, clinical: loaded(torch.from_numpy(image), torch.from_numpy(clinical))[1].numpy()


_WRITERS = {GraphFormat.ONNX: _onnx, GraphFormat.OPENVINO: _openvino, GraphFormat.TORCHSCRIPT: _torchscript}
