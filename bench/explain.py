"""Time of an explanation in forward passes of the ensemble, compared with captum.

``python -m bench explain`` or ``python -m bench.explain [--cpu] [--rounds 5]``.

- The model: five channels on 96 x 112 x 96, sixteen filters, four folds; 17 clinical players, 24 background patients.
- Weights and voxels are random, because the time does not depend on them. Records and perfusion numbers are those of 25
  phantoms: a variable with equal values in patient and background patient needs no evaluation.
- One forward pass is that of the whole ensemble in torch float32, the backend that also computes the gradients.
- ``--cpu`` counts the CPU seconds of one thread, for a machine that runs other programs too.
"""

from __future__ import annotations

import argparse
import statistics
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
from app.training import calibration
from app.training.dataset import Drawn, Vectors, phantoms
from tests.factory import random_network, tiny_manifest

SHAPE = (96, 112, 96)
GRID = Grid(shape=SHAPE, affine=((2, 0, 0, -95), (0, 2, 0, -128), (0, 0, 2, -74), (0, 0, 0, 1)))
STEPS = 32
SAMPLES = 512
"""Samples of captum's KernelShap, the fewest that distinguish 17 players."""
TIMED_SAMPLES = 32
"""Samples that are timed, because each one takes the same time."""
COALITIONS = 512

Clock = Callable[[], float]


def build_model(seed: int = 0) -> tuple[NetworkFolds, Manifest, ModelInput]:
    """Return the networks, their manifest and one patient with every image."""
    tiny = tiny_manifest(channels=list(Channel), variables=defaults.VARIABLES, folds=4)
    size = tiny.architecture.clinical_size
    architecture = Architecture(in_channels=len(Channel), clinical_size=size, filters=16)
    ensemble = Ensemble([random_network(architecture, seed + fold) for fold in range(4)])
    dataset = phantoms(25, seed, Preset.INTERACTION, GRID, (), drawn=Drawn(np.empty((25, 0), np.float16)))
    vectors = Vectors.of(dataset, clinical_encoder.fit(dataset.records, list(defaults.VARIABLES)))
    presence = np.ones((25, len(Channel)), bool)
    background = calibration.background(vectors, presence, np.arange(1, 25), seed)
    manifest = tiny.model_copy(update={"grid": GRID, "architecture": architecture, "background": background})
    image = np.random.default_rng(seed).normal(size=(len(Channel), *SHAPE)).astype(np.float32)
    case = ModelInput(image, presence[0], vectors.joined(np.arange(1), presence[:1])[0])
    return NetworkFolds(ensemble, (len(Channel), *SHAPE)), manifest, case


def medians(functions: dict[str, Callable[[], Any]], rounds: int, clock: Clock) -> dict[str, float]:
    """Return the median seconds of each function. The rounds alternate, so that a busy machine slows all of them."""
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name, run in functions.items():
            start = clock()
            run()
            seconds[name].append(clock() - start)
    return {name: statistics.median(times) for name, times in seconds.items()}


def measure_coalitions(networks: NetworkFolds, case: ModelInput, rounds: int, clock: Clock) -> None:
    """Print the rate of clinical coalitions, and their largest difference from the direct evaluation."""
    ensemble = networks.ensemble
    random = np.random.default_rng(1).normal(size=(COALITIONS, len(case.clinical))).astype(np.float32)
    vectors, image = torch.from_numpy(random), torch.from_numpy(case.image)
    features = ensemble.features(image)
    tails = ensemble.tails(features)
    differences = []
    with torch.no_grad():
        for tail, fold, feature in zip(tails, ensemble.folds, features, strict=True):
            direct = fold.tail(feature.expand(16, -1, -1, -1, -1), vectors[:16])[:, 0]
            differences.append(float((tail.logits(vectors[:16])[:, 0] - direct).abs().max()))
            whole = fold(ensemble.image(image), vectors[:1])[0, 0]
            differences.append(float((tail.logits(vectors[:1])[0, 0] - whole).abs().max()))
    seconds = medians(
        {
            "forward": lambda: ensemble.logits(ensemble.features(image), vectors[:1]),
            "coalitions": lambda: [tail.logits(vectors) for tail in tails],
        },
        rounds,
        clock,
    )
    rate, forward_rate = COALITIONS / seconds["coalitions"], 1 / seconds["forward"]
    print(
        f"clinical coalitions: {rate:.0f}/s; whole ensemble: {forward_rate:.1f}/s; ratio {rate / forward_rate:.0f}; "
        f"largest difference from direct evaluation {max(differences):.1e}"
    )


def measure_explanation(
    networks: NetworkFolds, manifest: Manifest, case: ModelInput, rounds: int, clock: Clock
) -> float:
    """Print the time of the full explanation and of its maps; return the seconds of one forward pass."""
    image, vector = torch.from_numpy(case.image), torch.from_numpy(case.clinical)[None]
    bits, present = explain.presence_bits(manifest), list(range(len(Channel)))
    atlas.labels(SHAPE, GRID.affine)
    networks.value_function(case.image)(np.stack([case.clinical] * 2), np.asarray([True, False]))
    networks.image_shares(case.image, case.clinical, bits, present, ExplanationMethod())
    seconds = medians(
        {
            "one forward pass": lambda: networks.ensemble.logits(networks.ensemble.features(image), vector),
            "full explanation": lambda: explain.explain(networks, manifest, case),
            "of it, maps": lambda: networks.image_shares(case.image, case.clinical, bits, present, ExplanationMethod()),
        },
        rounds,
        clock,
    )
    forward = seconds["one forward pass"]
    for name, median in seconds.items():
        print(f"{name:28} {median:7.2f} s {median / forward:7.1f} forward passes")
    return forward


def measure_captum(networks: NetworkFolds, manifest: Manifest, case: ModelInput, forward: float, clock: Clock) -> None:
    """Print the time of captum's methods, called as its documentation shows them.

    IntegratedGradients runs over the image and the presence bits; KernelShap over the clinical players and the imaging.
    """
    from captum.attr import IntegratedGradients, KernelShap

    folds, bits = networks.ensemble.folds, explain.presence_bits(manifest)
    image, vector = torch.from_numpy(case.image)[None], torch.from_numpy(case.clinical)[None]

    def mean_logit(images: torch.Tensor, vectors: torch.Tensor) -> torch.Tensor:
        return torch.stack([fold(images, vectors)[:, 0] for fold in folds]).mean(dim=0)

    def mean_logit_of_bits(images: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        return mean_logit(images, torch.cat([vector[:, : bits.start].expand(len(values), -1), values], dim=1))

    start = clock()
    IntegratedGradients(mean_logit_of_bits).attribute((image, vector[:, bits]), n_steps=STEPS, internal_batch_size=1)
    gradients = clock() - start
    players = explain.clinical_players(manifest)
    player_of_column = torch.full((1, len(case.clinical)), len(players))
    for number, player in enumerate(players):
        player_of_column[0, player.columns] = number
    background = torch.tensor(manifest.background.vectors)[:1]
    start = clock()
    with torch.no_grad():
        KernelShap(mean_logit).attribute(
            (image, vector),
            baselines=(torch.zeros_like(image), background),
            feature_mask=(torch.full_like(image, len(players), dtype=torch.long), player_of_column),
            n_samples=TIMED_SAMPLES,
        )
    kernel = (clock() - start) / TIMED_SAMPLES * SAMPLES
    print(f"captum IntegratedGradients, {STEPS} steps {gradients:7.2f} s {gradients / forward:7.1f} forward passes")
    print(
        f"captum KernelShap, {SAMPLES} samples, one background patient (timed on {TIMED_SAMPLES}) "
        f"{kernel:7.1f} s {kernel / forward:7.1f} forward passes"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cpu", action="store_true", help="count the CPU seconds of one thread")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    clock: Clock = time.process_time if arguments.cpu else time.perf_counter
    torch.manual_seed(0)
    if arguments.cpu:
        torch.set_num_threads(1)
    networks, manifest, case = build_model()
    print(
        f"{torch.get_num_threads()} threads, {'CPU time' if arguments.cpu else 'wall clock'}, medians of "
        f"{arguments.rounds} rounds; {len(explain.clinical_players(manifest))} clinical players, "
        f"{len(manifest.background.vectors)} background patients"
    )
    measure_coalitions(networks, case, arguments.rounds, clock)
    forward = measure_explanation(networks, manifest, case, arguments.rounds, clock)
    measure_captum(networks, manifest, case, forward, clock)


if __name__ == "__main__":
    main()
