"""Forward pass of the ensemble on a CPU: torch, torch.compile, ONNX Runtime and OpenVINO in one run.

``python -m bench backends [--rounds 9] [--threads 2]`` measures the default network (96 x 112 x 96, five channels, 16
filters, four folds, random weights) and the trained demo version. The rounds of the runtimes alternate. Printed:
medians and the difference of the probability from torch eager. A runtime that is not installed is left out.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from app.network import openvino as openvino_backend
from app.network.daft import Network
from app.network.ensemble import Ensemble, fold_batch_norm
from bench.model_stores import MODEL_STORE, default_network, demo_networks

Forward = Callable[[Tensor, Tensor], np.ndarray]  # image (1, c, x, y, z), clinical (1, v) -> (folds,) logits


class FoldLogits(nn.Module):
    """One graph of all folds: logits (folds,) of one patient."""

    def __init__(self, folds: Sequence[nn.Module]) -> None:
        super().__init__()
        self.folds = nn.ModuleList(folds)

    def forward(self, image: Tensor, clinical: Tensor) -> Tensor:
        return torch.cat([fold(image, clinical)[:, 0] for fold in self.folds])


def candidates(networks: Sequence[Network], image: Tensor, clinical: Tensor) -> dict[str, Forward]:
    """Return the loaded runtimes by name."""
    plain = FoldLogits([network.eval() for network in networks])
    without_norm = FoldLogits([fold_batch_norm(network) for network in networks])
    ensemble = Ensemble(networks, "cpu")

    def eager(image: Tensor, clinical: Tensor) -> np.ndarray:
        with torch.no_grad():
            return plain(image, clinical).numpy()

    def without_norm_channels_last(image: Tensor, clinical: Tensor) -> np.ndarray:
        return ensemble.logits(ensemble.features(image[0]), clinical)[:, 0].numpy()

    runtimes: dict[str, Forward] = {
        "torch eager": eager,
        "torch, batch norm folded, channels last": without_norm_channels_last,
    }
    for name, kind in (("torch.compile", torch.float32), ("torch.compile bf16", torch.bfloat16)):
        runtimes[name] = _compiled(without_norm, kind)
    if find_spec("onnxruntime") and find_spec("onnx"):
        runtimes["ONNX Runtime"] = _onnx(without_norm, image, clinical)
    if find_spec("openvino"):
        for precision in ("f32", "bf16"):
            runtimes[f"OpenVINO {precision}, one graph"] = _openvino(without_norm, image, clinical, precision)
            runtimes[f"OpenVINO {precision}, trunks; torch tail"] = _trunks(ensemble, image, precision)
    return runtimes


def _compiled(without_norm: nn.Module, kind: torch.dtype) -> Forward:
    graph = torch.compile(without_norm, dynamic=False)

    def run(image: Tensor, clinical: Tensor) -> np.ndarray:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=kind is torch.bfloat16):
            return graph(image, clinical).float().numpy()

    return run


def _onnx(without_norm: nn.Module, image: Tensor, clinical: Tensor) -> Forward:
    import io
    import warnings

    import onnxruntime

    content = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(without_norm, (image, clinical), content, input_names=["image", "clinical"], dynamo=False)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(content.getvalue(), options)
    return lambda i, c: session.run(None, {"image": i.numpy(), "clinical": c.numpy()})[0]


def _openvino(without_norm: nn.Module, image: Tensor, clinical: Tensor, precision: str) -> Forward:
    ov = openvino_backend.import_openvino()
    model = ov.convert_model(without_norm, example_input=(image, clinical), input=[image.shape, clinical.shape])
    graph = ov.compile_model(model, "CPU", _hints(precision))
    return lambda i, c: graph((i.numpy(), c.numpy()))[0].copy()


def _trunks(ensemble: Ensemble, image: Tensor, precision: str) -> Forward:
    kind = "bfloat16" if precision == "bf16" else "float32"
    run = openvino_backend.OpenVinoTrunks(ensemble.folds, tuple(image.shape[1:]), kind)
    return lambda i, c: ensemble.logits(run(i[0]), c)[:, 0].numpy()


def _hints(precision: str) -> dict[str, object]:
    return {
        "INFERENCE_PRECISION_HINT": precision,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
    }


def report(title: str, networks: Sequence[Network], case: tuple[Tensor, Tensor], rounds: int) -> None:
    """Print a table: median milliseconds, speed relative to torch eager, largest difference of a fold's probability."""
    image, clinical = case
    runtimes = candidates(networks, image, clinical)
    for run in runtimes.values():
        run(image, clinical)
    seconds: dict[str, list[float]] = {name: [] for name in runtimes}
    logits = {}
    for _ in range(rounds):
        for name, run in runtimes.items():
            start = time.perf_counter()
            logits[name] = run(image, clinical)
            seconds[name].append(time.perf_counter() - start)
    reference = 1 / (1 + np.exp(-logits["torch eager"].astype(np.float64)))
    base = float(np.median(seconds["torch eager"]))
    print(f"\n{title}; {torch.get_num_threads()} threads, {rounds} rounds\n")
    print("| runtime | ms | speed relative to torch eager | largest difference in probability |\n|---|---|---|---|")
    for name, times in seconds.items():
        median = float(np.median(times))
        difference = np.abs(1 / (1 + np.exp(-logits[name].astype(np.float64))) - reference).max()
        print(f"| {name} | {1000 * median:.1f} | {base / median:.1f} | {difference:.1e} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--model-store", type=Path, default=MODEL_STORE)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    report("Default network, 96 x 112 x 96, 16 filters, 4 folds", *default_network(), arguments.rounds)
    report("Demo version, its golden case", *demo_networks(arguments.model_store), 3 * arguments.rounds)


if __name__ == "__main__":
    main()
