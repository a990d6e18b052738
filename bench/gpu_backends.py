"""Forward pass of the ensemble on a CUDA device, compared with the fastest convolution measured on the same device.

``python -m bench gpu_backends [--rounds 30] [--skip VARIANT...]``. Without a CUDA device it measures nothing. Printed:

- the bfloat16 limit of the device: the best rate of a 3x3x3 convolution over many sizes;
- for the default network (96 x 112 x 96, five channels, 16 filters, random weights) and the trained demo version, for
  each variant of the trunks that differ: median milliseconds by CUDA events, TFLOP/s, share of the limit, and relative
  difference of the features from float32 (worst fold);
- wall-clock time of prediction and explanation of the trained version, and the device memory that it uses.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from app.inference.model_input import ModelInput
from app.inference.model_version import ModelVersion
from app.network.daft import Network
from app.network.ensemble import Ensemble, forbid_tf32
from app.registry.model_store import ModelStore
from bench.model_stores import DEMO, MODEL_STORE, default_network, demo_networks

Trunks = Callable[[Tensor], Sequence[Tensor]]  # image (n, c, x, y, z) on the device -> features of each fold


def milliseconds(work: Callable[[], object], rounds: int) -> float:
    """Return the median over the rounds, by CUDA events, after three warm-up calls."""
    for _ in range(3):
        work()
    events = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(rounds)]
    for start, end in events:
        start.record()
        work()
        end.record()
    torch.cuda.synchronize()
    return sorted(start.elapsed_time(end) for start, end in events)[rounds // 2]


@torch.no_grad()
def convolution_limit(rounds: int) -> float:
    """Return the TFLOP/s of the fastest 3x3x3 convolution in bfloat16, channels last."""
    best = 0.0
    for channels, edge, batch in ((64, 48, 4), (128, 32, 4), (128, 48, 4), (256, 32, 4), (512, 16, 8), (512, 32, 4)):
        conv = nn.Conv3d(channels, channels, 3, padding=1, bias=False).cuda().bfloat16()
        conv = conv.to(memory_format=torch.channels_last_3d)
        x = torch.randn(batch, channels, edge, edge, edge, device="cuda", dtype=torch.bfloat16)
        x = x.contiguous(memory_format=torch.channels_last_3d)
        rate = 2 * 27 * channels**2 * batch * edge**3 / milliseconds(partial(conv, x), rounds) / 1e9
        print(f"conv {channels} -> {channels}, {batch} x {edge}^3: {rate:.0f} TFLOP/s", flush=True)
        best = max(best, rate)
    return best


def as_cuda_graph(work: Trunks, image: Tensor) -> Trunks:
    """Return the same kernels, recorded once as a CUDA graph and replayed."""
    static_input = image.clone()
    capture_stream = torch.cuda.Stream()
    capture_stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(capture_stream), torch.no_grad():
        for _ in range(3):
            work(static_input)
    torch.cuda.current_stream().wait_stream(capture_stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph), torch.no_grad():
        static_output = work(static_input)

    def replay(x: Tensor) -> Sequence[Tensor]:
        static_input.copy_(x)
        graph.replay()
        return static_output

    return replay


class WideTrunk(nn.Module):
    """One trunk with the channels of all folds. Its convolutions do not mix the folds."""

    def __init__(self, folds: Sequence[Network], *, grouped: bool = False) -> None:
        super().__init__()
        self.count = len(folds)
        self.trunk = copy.deepcopy(folds[0].trunk)
        for name, module in list(self.trunk.named_modules()):
            if isinstance(module, nn.Conv3d):
                convs = [fold.trunk.get_submodule(name) for fold in folds]
                parent, _, last = name.rpartition(".")
                wide = wide_convolution(convs, first=name == "stem.conv", grouped=grouped)
                setattr(self.trunk.get_submodule(parent), last, wide)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        return self.trunk(image).chunk(self.count, dim=1)


def wide_convolution(convs: Sequence[nn.Conv3d], *, first: bool, grouped: bool) -> nn.Conv3d:
    """Return one convolution that computes those of all folds: with groups, or with a block-diagonal weight.

    Args:
        convs: The same convolution of each fold.
        first: The folds share the input channels.
        grouped: Use groups, except for the first convolution.
    """
    count, one = len(convs), convs[0]
    outputs, inputs = one.out_channels, one.in_channels
    wide = nn.Conv3d(
        inputs if first else count * inputs,
        count * outputs,
        one.kernel_size,
        one.stride,
        one.padding,
        groups=count if grouped and not first else 1,
    ).to(one.weight.device, one.weight.dtype)
    with torch.no_grad():
        wide.bias.copy_(torch.cat([conv.bias for conv in convs]))
        if first or grouped:
            wide.weight.copy_(torch.cat([conv.weight for conv in convs]))
        else:
            wide.weight.zero_()
            for index, conv in enumerate(convs):
                rows = slice(index * outputs, (index + 1) * outputs)
                wide.weight[rows, index * inputs : (index + 1) * inputs] = conv.weight
    return wide


def in_bfloat16(work: Trunks) -> Trunks:
    return lambda x: work(x.bfloat16())


def one_by_one(folds: Sequence[Network]) -> Trunks:
    return lambda x: [fold.trunk(x) for fold in folds]


def in_streams(folds: Sequence[Network]) -> Trunks:
    """Return the trunks with one CUDA stream for each fold."""
    pool = [torch.cuda.Stream() for _ in folds]

    def work(x: Tensor) -> list[Tensor]:
        current = torch.cuda.current_stream()
        features = []
        for stream, fold in zip(pool, folds, strict=True):
            stream.wait_stream(current)
            with torch.cuda.stream(stream):
                features.append(fold.trunk(x))
        for stream in pool:
            current.wait_stream(stream)
        return features

    return work


def variants(ensemble: Ensemble, image: Tensor) -> dict[str, Callable[[], Trunks]]:
    """Return functions that make the variants of the distinct trunks, by name.

    Only several trunks of one path each can be computed as a wide one.
    """

    def folds() -> list[Network]:
        return [copy.deepcopy(fold).bfloat16() for fold in ensemble.distinct]

    def autocast() -> Trunks:
        return lambda x: [ensemble.trunk(fold, x) for fold in ensemble.distinct]

    def wide(*, grouped: bool = False) -> nn.Module:
        return WideTrunk(folds(), grouped=grouped).to(memory_format=torch.channels_last_3d)

    def compiled(work: nn.Module | Trunks, mode: str = "default") -> Trunks:
        return torch.compile(work, dynamic=False, mode=mode)

    with_graph: dict[str, Callable[[], Trunks]] = {
        "autocast": autocast,
        "bf16": lambda: in_bfloat16(one_by_one(folds())),
        "bf16, streams": lambda: in_bfloat16(in_streams(folds())),
        "bf16, compiled": lambda: in_bfloat16(compiled(one_by_one(folds()))),
    }
    if len(ensemble.distinct) > 1 and len(ensemble.distinct[0].trunk.paths) == 1:
        with_graph |= {
            "wide": lambda: in_bfloat16(wide()),
            "grouped": lambda: in_bfloat16(wide(grouped=True)),
            "wide, compiled": lambda: in_bfloat16(compiled(wide())),
            "wide, autotuned": lambda: in_bfloat16(compiled(wide(), "max-autotune-no-cudagraphs")),
        }
    replayed = {f"{name}, graph": partial(_make_graph, make, image) for name, make in with_graph.items()}
    return {"autocast": autocast, "bf16": with_graph["bf16"], **replayed}


def _make_graph(make: Callable[[], Trunks], image: Tensor) -> Trunks:
    return as_cuda_graph(make(), image)


@torch.no_grad()
def forward(title: str, networks: Sequence[Network], image: Tensor, limit: float, rounds: int, skip: set[str]) -> None:
    """Print the table of one model.

    Args:
        title: Heading of the table.
        networks: Folds of the model.
        image: One patient (1, c, x, y, z), float32.
        limit: TFLOP/s of the fastest convolution.
        rounds: Rounds of each variant.
        skip: Names of variants to leave out.
    """
    forbid_tf32()  # for the exact reference
    ensemble = Ensemble(networks, "cuda")
    image = ensemble.image(image[0])
    exact = [fold.trunk(image) for fold in ensemble.distinct]
    with FlopCounterMode(display=False) as counter:
        for fold in ensemble.distinct:
            fold.trunk(image)
    gigaflop = counter.get_total_flops() / 1e9
    print(f"\n{title}: {gigaflop:.1f} GFLOP\n")
    print("| trunks | ms | TFLOP/s | share of the limit | relative difference | set-up s |\n|---|---|---|---|---|---|")
    for name, make in variants(ensemble, image).items():
        if name in skip:
            continue
        try:
            start = time.perf_counter()
            work = make()
            features = work(image)
            torch.cuda.synchronize()
            setup = time.perf_counter() - start
            difference = max(
                float((fast.float() - want).norm() / want.norm()) for fast, want in zip(features, exact, strict=True)
            )
            median = milliseconds(partial(work, image), rounds)
        except Exception as error:  # noqa: BLE001 - the other variants are measured in any case
            print(f"| {name} | {type(error).__name__}: {str(error)[:200]} |", flush=True)
            continue
        rate = gigaflop / median
        cells = f"{median:.3f} | {rate:.1f} | {rate / limit:.1%} | {difference:.1e} | {setup:.1f}"
        print(f"| {name} | {cells} |", flush=True)


def predict_and_explain(store: Path, rounds: int) -> None:
    """Print wall-clock times of the trained version, first and later calls, and its device memory."""
    entry = ModelStore(store).resolve(DEMO)
    free_before = torch.cuda.mem_get_info()[0]
    start = time.perf_counter()
    version = ModelVersion.load(entry.folder, entry.manifest, "cuda")
    version.warm_up()
    print(f"\nDemo version: loaded and warmed up in {time.perf_counter() - start:.2f} s")
    case = ModelInput.from_bytes((entry.folder / entry.manifest.golden[0].file).read_bytes())
    for name, work in (("predict", lambda: version.predict(case)), ("explain", lambda: version.explain(case))):
        seconds = []
        for _ in range(max(rounds // 3, 5)):
            start = time.perf_counter()
            work()
            seconds.append(time.perf_counter() - start)
        print(f"{name}: first {1000 * seconds[0]:.0f} ms, then {1000 * statistics.median(seconds[1:]):.1f} ms")
    used = free_before - torch.cuda.mem_get_info()[0]
    print(f"device memory used since before the load: {used / 2**20:.0f} MiB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--skip", nargs="*", default=[], help="variants to leave out")
    parser.add_argument("--model-store", type=Path, default=MODEL_STORE)
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("no CUDA device: nothing is measured")
        return
    torch.backends.cudnn.benchmark = True
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, cuDNN {torch.backends.cudnn.version()}\n")
    limit, skip = convolution_limit(arguments.rounds), set(arguments.skip)
    networks, (image, _) = default_network()
    forward("Default network", networks, image, limit, arguments.rounds, skip)
    networks, (image, _) = demo_networks(arguments.model_store)
    forward("Demo version", networks, image, limit, arguments.rounds, skip)
    predict_and_explain(arguments.model_store, arguments.rounds)


if __name__ == "__main__":
    main()
