"""What an explanation costs, in forward passes of the ensemble, against captum. ``python -m bench explain``

The model of the design's performance notes: five channels on 96 x 112 x 96, sixteen filters, four folds; 17 clinical
players against 24 background patients. Weights and voxels are random: time does not depend on them. Records and
perfusion numbers are those of 25 phantoms: where patients are alike, some of an explanation's questions fall away.

One forward pass is the whole ensemble's, torch in float32, the backend that also gives the gradients.
``python -m bench.explain --cpu`` counts the CPU seconds of one thread: for a machine that others use too.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from app.imaging.model_grid import Grid
from app.inference import clinical_encoder, defaults, explain
from app.inference.attribution import atlas
from app.inference.ensemble_predictor import ExplanationMethod, NetworkFolds
from app.inference.model_input import ModelInput
from app.network.architecture import Architecture
from app.network.ensemble import Ensemble
from app.phantoms.biology import Preset
from app.registry.manifest import Manifest
from app.sdk.types import Channel
from app.training import version as version_of
from app.training.dataset import Vectors, phantoms
from tests.factory import random_network, tiny_manifest

SHAPE = (96, 112, 96)
GRID = Grid(shape=SHAPE, affine=((2, 0, 0, -95), (0, 2, 0, -128), (0, 0, 2, -74), (0, 0, 0, 1)))
STEPS = 32
SAMPLES = 512
"""Of captum's KernelShap: what it takes to tell 17 players apart at all."""

SHARED = "--cpu" in sys.argv
now = time.process_time if SHARED else time.perf_counter


def version(seed: int = 0) -> tuple[NetworkFolds, Manifest, ModelInput]:
    """The networks, their manifest and one patient with every image."""
    made = tiny_manifest(channels=list(Channel), variables=defaults.VARIABLES, folds=4)
    size = made.architecture.clinical_size
    architecture = Architecture(in_channels=len(Channel), clinical_size=size, filters=16)
    ensemble = Ensemble([random_network(architecture, seed + fold) for fold in range(4)])
    told = phantoms(25, seed, Preset.INTERACTION, GRID, (), into=np.empty((25, 0), np.float16), drawn=True)
    vectors = Vectors.of(told, clinical_encoder.fit(told.records, list(defaults.VARIABLES)))
    there = np.ones((25, len(Channel)), bool)
    background = version_of.background(vectors, there, np.arange(1, 25), seed)
    manifest = made.model_copy(update={"grid": GRID, "architecture": architecture, "background": background})
    image = np.random.default_rng(seed).normal(size=(len(Channel), *SHAPE)).astype(np.float32)
    case = ModelInput(image, there[0], vectors.joined(np.arange(1), there[:1])[0])
    return NetworkFolds(ensemble, (len(Channel), *SHAPE)), manifest, case


def medians(ways: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Median seconds of each way, the rounds interleaved so that a busy moment meets all of them."""
    spent: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, run in ways.items():
            start = now()
            run()
            spent[name].append(now() - start)
    return {name: statistics.median(seconds) for name, seconds in spent.items()}


def coalitions(networks: NetworkFolds, case: ModelInput, rounds: int) -> None:
    ensemble, count = networks.ensemble, 512
    vectors = torch.from_numpy(np.random.default_rng(1).normal(size=(count, len(case.clinical))).astype(np.float32))
    image = torch.from_numpy(case.image)
    tails = ensemble.tails(ensemble.features(image))
    with torch.no_grad():
        direct = torch.stack([fold(ensemble.image(image), vectors[:1])[0, 0] for fold in ensemble.folds])
        worst = max(
            float(
                (tail.logits(vectors[:16])[:, 0] - fold.tail(seen.expand(16, -1, -1, -1, -1), vectors[:16])[:, 0])
                .abs()
                .max()
            )
            for tail, fold, seen in zip(tails, ensemble.folds, ensemble.features(image), strict=True)
        )
    whole = torch.stack([tail.logits(vectors[:1])[0, 0] for tail in tails])
    worst = max(worst, float((direct - whole).abs().max()))
    took = medians(
        {
            "forward": lambda: ensemble.logits(ensemble.features(image), vectors[:1]),
            "coalitions": lambda: [tail.logits(vectors) for tail in tails],
        },
        rounds,
    )
    ratio = took["forward"] / took["coalitions"] * count
    print(
        f"clinical coalitions: {count / took['coalitions']:.0f}/s, whole ensemble {1 / took['forward']:.1f}/s: "
        f"{ratio:.0f} times the rate; farthest from direct evaluation {worst:.1e}"
    )


def full(networks: NetworkFolds, manifest: Manifest, case: ModelInput, rounds: int) -> float:
    image, vector = torch.from_numpy(case.image), torch.from_numpy(case.clinical)[None]
    bits, present = explain.presence_bits(manifest), list(range(len(Channel)))
    atlas.labels(SHAPE, GRID.affine)
    networks.value_function(case.image)(np.stack([case.clinical] * 2), np.asarray([True, False]))
    networks.image_shares(case.image, case.clinical, bits, present, ExplanationMethod())
    took = medians(
        {
            "one forward pass": lambda: networks.ensemble.logits(networks.ensemble.features(image), vector),
            "full explanation": lambda: explain.explain(networks, manifest, case),
            "maps alone": lambda: networks.image_shares(case.image, case.clinical, bits, present, ExplanationMethod()),
        },
        rounds,
    )
    for name, seconds in took.items():
        print(f"{name:28} {seconds:7.2f} s {seconds / took['one forward pass']:7.1f} forward passes")
    return took["one forward pass"]


def captum(networks: NetworkFolds, manifest: Manifest, case: ModelInput, forward: float) -> None:
    """Integrated gradients over image and bits, and KernelShap over the clinical players and imaging, as documented."""
    from captum.attr import IntegratedGradients, KernelShap

    folds, bits = networks.ensemble.folds, explain.presence_bits(manifest)
    image, vector = torch.from_numpy(case.image)[None], torch.from_numpy(case.clinical)[None]

    def mean(images: torch.Tensor, told: torch.Tensor) -> torch.Tensor:
        return torch.stack([fold(images, told)[:, 0] for fold in folds]).mean(dim=0)

    def together(images: torch.Tensor, told: torch.Tensor) -> torch.Tensor:
        return mean(images, torch.cat([vector[:, : bits.start].expand(len(told), -1), told], dim=1))

    start = now()
    IntegratedGradients(together).attribute((image, vector[:, bits]), n_steps=STEPS, internal_batch_size=1)
    gradients = now() - start
    owner = torch.full((1, len(case.clinical)), -1)
    seats = explain.players(manifest)
    for seat, player in enumerate(seats):
        owner[0, player.columns] = seat
    owner[owner < 0] = len(seats)
    background = torch.tensor(manifest.background.vectors)[:1]
    few = 32  # the price of a sample is the same for each: a part is timed
    start = now()
    with torch.no_grad():
        KernelShap(mean).attribute(
            (image, vector),
            baselines=(torch.zeros_like(image), background),
            feature_mask=(torch.full_like(image, len(seats), dtype=torch.long), owner),
            n_samples=few,
        )
    kernel = (now() - start) / few * SAMPLES
    print(f"captum IntegratedGradients, {STEPS} steps {gradients:7.2f} s {gradients / forward:7.1f} forward passes")
    print(
        f"captum KernelShap, {SAMPLES} samples, one background patient (timed on {few}) "
        f"{kernel:7.1f} s {kernel / forward:7.1f} forward passes"
    )


def main(rounds: int = 5) -> None:
    torch.manual_seed(0)
    if SHARED:
        torch.set_num_threads(1)
    networks, manifest, case = version()
    print(
        f"{torch.get_num_threads()} threads, {'CPU' if SHARED else 'wall clock'}, {rounds} rounds, medians; "
        f"{len(explain.players(manifest))} clinical players, {len(manifest.background.vectors)} background "
        "patients"
    )
    coalitions(networks, case, rounds)
    captum(networks, manifest, case, full(networks, manifest, case, rounds))


if __name__ == "__main__":
    main()
