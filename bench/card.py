"""The ensemble's forward on a CUDA device, beside the fastest convolutions that the very device was seen to do.

``python -m bench.card``: the card's bf16 limit is the best rate of a 3x3x3 convolution over many sizes; then trunks of
four folds by each way that was considered, of the default network (96 x 112 x 96, five channels, 16 filters, random
weights) and of the trained demo version: median milliseconds by CUDA events, useful TFLOP/s, share of the limit, and
how far the features are from float32's (relative, worst fold). At last the trained version's verbs by the wall's clock
and what it takes of the card's memory.
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
from app.network.ensemble import Ensemble
from app.registry.model_store import ModelStore
from bench.backends import default_network, demo_version

Trunks = Callable[[Tensor], Sequence[Tensor]]  # image (n, c, x, y, z) on the card -> each fold's features


def milliseconds(work: Callable[[], object], rounds: int) -> float:
    """Median over rounds, by events on the card; after three that warm it."""
    for _ in range(3):
        work()
    events = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(rounds)]
    for began, ended in events:
        began.record()
        work()
        ended.record()
    torch.cuda.synchronize()
    return sorted(began.elapsed_time(ended) for began, ended in events)[rounds // 2]


@torch.no_grad()
def limit(rounds: int) -> float:
    """TFLOP/s of the fastest 3x3x3 convolution in bfloat16, channels last."""
    best = 0.0
    for channels, edge, batch in ((64, 48, 4), (128, 32, 4), (128, 48, 4), (256, 32, 4), (512, 16, 8), (512, 32, 4)):
        conv = nn.Conv3d(channels, channels, 3, padding=1, bias=False).cuda().bfloat16()
        conv = conv.to(memory_format=torch.channels_last_3d)
        x = torch.randn(batch, channels, edge, edge, edge, device="cuda", dtype=torch.bfloat16)
        x = x.contiguous(memory_format=torch.channels_last_3d)
        took = milliseconds(partial(conv, x), rounds)
        rate = 2 * 27 * channels**2 * batch * edge**3 / took / 1e9
        print(f"conv {channels} -> {channels}, {batch} x {edge}^3: {rate:.0f} TFLOP/s", flush=True)
        best = max(best, rate)
    return best


def graphed(work: Trunks, image: Tensor) -> Trunks:
    """The same launches, recorded once and replayed."""
    held = image.clone()
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside), torch.no_grad():
        for _ in range(3):
            work(held)
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph), torch.no_grad():
        found = work(held)

    def replay(seen: Tensor) -> Sequence[Tensor]:
        held.copy_(seen)
        graph.replay()
        return found

    return replay


class Side(nn.Module):
    """Folds side by side: one trunk of so many times the channels, whose convolutions keep each fold to itself."""

    def __init__(self, folds: Sequence[Network], *, grouped: bool = False) -> None:
        super().__init__()
        self.count = len(folds)
        self.trunk = copy.deepcopy(folds[0].trunk)
        for name, module in list(self.trunk.named_modules()):
            if isinstance(module, nn.Conv3d):
                convs = [fold.trunk.get_submodule(name) for fold in folds]
                parent, _, last = name.rpartition(".")
                setattr(
                    self.trunk.get_submodule(parent), last, beside(convs, first=name == "stem.conv", grouped=grouped)
                )

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        return self.trunk(image).chunk(self.count, dim=1)


def beside(convs: Sequence[nn.Conv3d], *, first: bool, grouped: bool) -> nn.Conv3d:
    count, one = len(convs), convs[0]
    outputs, inputs = one.out_channels, one.in_channels
    made = nn.Conv3d(
        inputs if first else count * inputs,
        count * outputs,
        one.kernel_size,
        one.stride,
        one.padding,
        groups=count if grouped and not first else 1,
    ).to(one.weight.device, one.weight.dtype)
    with torch.no_grad():
        made.bias.copy_(torch.cat([conv.bias for conv in convs]))
        if first or grouped:
            made.weight.copy_(torch.cat([conv.weight for conv in convs]))
        else:
            made.weight.zero_()
            for index, conv in enumerate(convs):
                made.weight[index * outputs : (index + 1) * outputs, index * inputs : (index + 1) * inputs] = (
                    conv.weight
                )
    return made


def half(work: Trunks) -> Trunks:
    return lambda x: work(x.bfloat16())


def each(folds: Sequence[Network]) -> Trunks:
    return lambda x: [fold.trunk(x) for fold in folds]


def streams(folds: Sequence[Network]) -> Trunks:
    """Each fold in a stream of its own."""
    pool = [torch.cuda.Stream() for _ in folds]

    def work(x: Tensor) -> list[Tensor]:
        here = torch.cuda.current_stream()
        found = []
        for stream, fold in zip(pool, folds, strict=True):
            stream.wait_stream(here)
            with torch.cuda.stream(stream):
                found.append(fold.trunk(x))
        for stream in pool:
            here.wait_stream(stream)
        return found

    return work


def ways(ensemble: Ensemble, image: Tensor) -> dict[str, Callable[[], Trunks]]:
    """How the trunks could be computed; each is made when it is asked for."""

    def lean() -> list[Network]:
        return [copy.deepcopy(fold).bfloat16() for fold in ensemble.folds]

    def autocast() -> Trunks:
        return lambda x: [ensemble.trunk(fold, x) for fold in ensemble.folds]

    def side(*, grouped: bool = False) -> nn.Module:
        return Side(lean(), grouped=grouped).to(memory_format=torch.channels_last_3d)

    def compiled(work: nn.Module | Trunks, mode: str = "default") -> Trunks:
        return torch.compile(work, dynamic=False, mode=mode)

    graphs: dict[str, Callable[[], Trunks]] = {
        "autocast": autocast,
        "bf16": lambda: half(each(lean())),
        "bf16, streams": lambda: half(streams(lean())),
        "side by side": lambda: half(side()),
        "grouped": lambda: half(side(grouped=True)),
        "side by side, compiled": lambda: half(compiled(side())),
        "bf16, compiled": lambda: half(compiled(each(lean()))),
        "side by side, autotuned": lambda: half(compiled(side(), "max-autotune-no-cudagraphs")),
    }
    replayed = {f"{name}, graph": partial(_replayed, make, image) for name, make in graphs.items()}
    return {"autocast": autocast, "bf16": graphs["bf16"], **replayed}


def _replayed(make: Callable[[], Trunks], image: Tensor) -> Trunks:
    return graphed(make(), image)


@torch.no_grad()
def forward(title: str, networks: Sequence[Network], image: Tensor, best: float, rounds: int, skip: set[str]) -> None:
    ensemble = Ensemble(networks, "cuda")
    image = ensemble.image(image[0])
    exact = [fold.trunk(image) for fold in ensemble.folds]
    with FlopCounterMode(display=False) as counter:
        for fold in ensemble.folds:
            fold.trunk(image)
    useful = counter.get_total_flops() / 1e9
    print(f"\n{title}: {useful:.1f} GFLOP\n\n| trunks | ms | TFLOP/s | of the limit | off | made in s |")
    print("|---|---|---|---|---|---|")
    for name, make in ways(ensemble, image).items():
        if name in skip:
            continue
        try:
            began = time.perf_counter()
            work = make()
            found = work(image)
            torch.cuda.synchronize()
            made = time.perf_counter() - began
            off = max(
                float((seen.float() - want).norm() / want.norm()) for seen, want in zip(found, exact, strict=True)
            )
            took = milliseconds(partial(work, image), rounds)
        except Exception as error:  # noqa: BLE001 - one way that fails leaves the others
            print(f"| {name} | {type(error).__name__}: {str(error)[:200]} |", flush=True)
            continue
        rate = useful / took
        print(f"| {name} | {took:.3f} | {rate:.1f} | {rate / best:.1%} | {off:.1e} | {made:.1f} |", flush=True)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--rounds", type=int, default=30)
    arguments.add_argument("--skip", nargs="*", default=[], help="ways to leave out")
    arguments.add_argument("--model-store", type=Path, default=Path("model_store"))
    given = arguments.parse_args()
    torch.backends.cudnn.benchmark = True
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, cuDNN {torch.backends.cudnn.version()}\n")
    best = limit(given.rounds)
    networks, (image, _) = default_network()
    forward("Default network", networks, image, best, given.rounds, set(given.skip))
    networks, (image, _) = demo_version(given.model_store)
    forward("Demo version", networks, image, best, given.rounds, set(given.skip))
    verbs(given.model_store, given.rounds)


def verbs(store: Path, rounds: int) -> None:
    """The trained version's verbs by the wall's clock, first and later, and its memory."""
    entry = ModelStore(store).resolve("rlvo-synthetic")
    before = torch.cuda.mem_get_info()[0]
    began = time.perf_counter()
    version = ModelVersion.load(entry.folder, entry.manifest, "cuda")
    version.warm_up()
    loaded = time.perf_counter() - began
    case = ModelInput.from_bytes((entry.folder / entry.manifest.golden[0].file).read_bytes())
    print(f"\nDemo version: loaded and warmed up in {loaded:.2f} s")
    for name, verb in (("predict", lambda: version.predict(case)), ("explain", lambda: version.explain(case))):
        seconds = []
        for _ in range(max(rounds // 3, 5)):
            began = time.perf_counter()
            verb()
            seconds.append(time.perf_counter() - began)
        print(f"{name}: first {1000 * seconds[0]:.0f} ms, then {1000 * statistics.median(seconds[1:]):.1f} ms")
    print(f"memory of the card taken since before the load: {(before - torch.cuda.mem_get_info()[0]) / 2**20:.0f} MiB")


if __name__ == "__main__":
    main()
