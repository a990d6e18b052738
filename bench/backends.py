"""The ensemble's forward on CPU by every runtime that was considered, side by side in one run.

``python -m bench.backends`` measures the default network (96 x 112 x 96, five channels, 16 filters, four folds, random
weights) and the trained demo version. Runtimes are interleaved, medians are taken, and each answer is compared with
torch eager's in probability. OpenVINO and ONNX Runtime are left out where they are not installed.
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

from app.inference.model_input import ModelInput
from app.network import openvino as ours
from app.network.architecture import Architecture
from app.network.daft import Network, build
from app.network.ensemble import Ensemble, folded
from app.registry.manifest import Manifest
from app.registry.model_store import ModelStore

Forward = Callable[[Tensor, Tensor], np.ndarray]  # image (1, c, x, y, z), clinical (1, v) -> (folds,) logits


class Folds(nn.Module):
    """Every fold's logit of one patient, (folds,), as one graph."""

    def __init__(self, folds: Sequence[nn.Module]) -> None:
        super().__init__()
        self.folds = nn.ModuleList(folds)

    def forward(self, image: Tensor, clinical: Tensor) -> Tensor:
        return torch.cat([fold(image, clinical)[:, 0] for fold in self.folds])


def candidates(networks: Sequence[Network], image: Tensor, clinical: Tensor) -> dict[str, Forward]:
    """The runtimes, loaded and warm."""
    plain = Folds([network.eval() for network in networks])
    lean = Folds([folded(network) for network in networks])
    ensemble = Ensemble(networks, "cpu")

    def eager(image: Tensor, clinical: Tensor) -> np.ndarray:
        with torch.no_grad():
            return plain(image, clinical).numpy()

    def folded_last(image: Tensor, clinical: Tensor) -> np.ndarray:
        return ensemble.logits(ensemble.features(image[0]), clinical)[:, 0].numpy()

    found: dict[str, Forward] = {"torch eager": eager, "torch folded, channels last": folded_last}
    for name, kind in (("torch.compile", torch.float32), ("torch.compile bf16", torch.bfloat16)):
        found[name] = _compiled(lean, kind)
    if find_spec("onnxruntime") and find_spec("onnx"):
        found["ONNX Runtime"] = _onnx(lean, image, clinical)
    if find_spec("openvino"):
        for precision in ("f32", "bf16"):
            found[f"OpenVINO {precision}, one graph"] = _openvino(lean, image, clinical, precision)
            found[f"OpenVINO {precision}, trunks; torch tail"] = _trunks(ensemble, image, precision)
    return found


def _compiled(lean: nn.Module, kind: torch.dtype) -> Forward:
    graph = torch.compile(lean, dynamic=False)

    def run(image: Tensor, clinical: Tensor) -> np.ndarray:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=kind is torch.bfloat16):
            return graph(image, clinical).float().numpy()

    return run


def _onnx(lean: nn.Module, image: Tensor, clinical: Tensor) -> Forward:
    import io
    import warnings

    import onnxruntime

    content = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(lean, (image, clinical), content, input_names=["image", "clinical"], dynamo=False)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(content.getvalue(), options)
    return lambda i, c: session.run(None, {"image": i.numpy(), "clinical": c.numpy()})[0]


def _openvino(lean: nn.Module, image: Tensor, clinical: Tensor, precision: str) -> Forward:
    ov = ours.library()

    model = ov.convert_model(lean, example_input=(image, clinical), input=[image.shape, clinical.shape])
    graph = ov.compile_model(model, "CPU", _hints(precision))
    return lambda i, c: graph((i.numpy(), c.numpy()))[0].copy()


def _trunks(ensemble: Ensemble, image: Tensor, precision: str) -> Forward:
    run = ours.OpenVinoTrunks(ensemble.folds, tuple(image.shape[1:]), "bfloat16" if precision == "bf16" else "float32")
    return lambda i, c: ensemble.logits(run(i[0]), c)[:, 0].numpy()


def _hints(precision: str) -> dict[str, object]:
    return {
        "INFERENCE_PRECISION_HINT": precision,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
    }


def report(title: str, networks: Sequence[Network], case: tuple[Tensor, Tensor], rounds: int) -> None:
    """One table: median milliseconds, times torch eager, largest difference of a fold's probability."""
    image, clinical = case
    runtimes = candidates(networks, image, clinical)
    for run in runtimes.values():
        run(image, clinical)
    seconds: dict[str, list[float]] = {name: [] for name in runtimes}
    answers = {}
    for _ in range(rounds):
        for name, run in runtimes.items():
            began = time.perf_counter()
            answers[name] = run(image, clinical)
            seconds[name].append(time.perf_counter() - began)
    reference = 1 / (1 + np.exp(-answers["torch eager"].astype(np.float64)))
    base = float(np.median(seconds["torch eager"]))
    print(f"\n{title}; {torch.get_num_threads()} threads, {rounds} rounds\n")
    print("| runtime | ms | times torch eager | probability differs by |\n|---|---|---|---|")
    for name, taken in seconds.items():
        median = float(np.median(taken))
        off = np.abs(1 / (1 + np.exp(-answers[name].astype(np.float64))) - reference).max()
        print(f"| {name} | {1000 * median:.1f} | {base / median:.1f} | {off:.1e} |")


def default_network() -> tuple[list[Network], tuple[Tensor, Tensor]]:
    """Random weights: the speed is the trained one's; the answers only bound rounding."""
    torch.manual_seed(0)
    architecture = Architecture(in_channels=5, clinical_size=49, filters=16)
    chance = torch.randn(1, 5, 96, 112, 96), torch.randn(1, 49)
    return [build(architecture).eval() for _ in range(4)], chance


def demo_version(model_store: Path) -> tuple[list[Network], tuple[Tensor, Tensor]]:
    """The trained demo version on its own golden case."""
    from safetensors.torch import load_file

    entry = ModelStore(model_store).resolve("rlvo-synthetic")
    manifest: Manifest = entry.manifest
    networks = []
    for fold in manifest.folds:
        network = build(manifest.architecture)
        network.load_state_dict(load_file(entry.folder / fold.file))
        networks.append(network.eval())
    case = ModelInput.from_bytes((entry.folder / manifest.golden[0].file).read_bytes())
    return networks, (torch.from_numpy(case.image)[None], torch.from_numpy(case.clinical)[None])


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--rounds", type=int, default=9)
    arguments.add_argument("--threads", type=int, default=2)
    arguments.add_argument("--model-store", type=Path, default=Path("model_store"))
    given = arguments.parse_args()
    torch.set_num_threads(given.threads)
    report("Default network, 96 x 112 x 96, 16 filters, 4 folds", *default_network(), given.rounds)
    report("Demo version, its golden case", *demo_version(given.model_store), 3 * given.rounds)


if __name__ == "__main__":
    main()
