"""The tail evaluator gives the numbers of the tail at a lower cost."""

from __future__ import annotations

import itertools
import time

import numpy as np
import pytest
import torch

from app.network.architecture import Architecture, Fusion, Location, ScaleActivation
from app.network.conv import conv_add_relu
from app.network.ensemble import Ensemble, fold_batch_norm
from app.network.tail_evaluator import TailEvaluator
from tests.factory import random_network


@pytest.mark.parametrize("location", list(Location))
@pytest.mark.parametrize("fusion", list(Fusion))
def test_evaluator_equals_the_tail(fusion: Fusion, location: Location) -> None:
    halves = ((True, True), (True, False), (False, True))
    for activation, (scale, shift) in itertools.product(ScaleActivation, halves):
        network = random_network(
            Architecture(
                fusion=fusion,
                location=location,
                activation=activation,
                scale=scale,
                shift=shift,
                in_channels=2,
                clinical_size=5,
                filters=2,
                outputs=2,
            )
        )
        features, clinical = network.trunk(torch.randn(1, 2, 24, 16, 16)).detach(), torch.randn(9, 5)
        direct = network.tail(features.expand(9, -1, -1, -1, -1), clinical)
        assert torch.allclose(TailEvaluator(network, features).logits(clinical), direct, atol=1e-5)


def test_fused_kernel_equals_the_three_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also without the kernel, as in another build of torch."""
    conv = torch.nn.Conv3d(4, 8, 3, padding=1)
    x, other = (torch.randn(5, n, 6, 7, 6).contiguous(memory_format=torch.channels_last_3d) for n in (4, 8))
    with torch.no_grad():
        direct = torch.relu(conv(x) + other)
        assert torch.allclose(conv_add_relu(conv)(x, other.clone()), direct, atol=1e-5)
        monkeypatch.setattr(torch.ops, "mkldnn", object())
        assert torch.allclose(conv_add_relu(conv)(x, other.clone()), direct, atol=1e-6)


def test_one_evaluation_does_not_change_the_next() -> None:
    """The kernel must not write into a shortcut that all vectors share."""
    for location in Location:
        network = random_network(Architecture(in_channels=2, clinical_size=5, filters=2, location=location))
        tail, vector = TailEvaluator(network, network.trunk(torch.randn(1, 2, 16, 16, 16)).detach()), torch.randn(1, 5)
        first = tail.logits(vector)
        tail.logits(torch.randn(3, 5))
        assert torch.equal(tail.logits(vector), first)


def test_folding_the_normalisation_keeps_the_numbers() -> None:
    for location in Location:
        network = random_network(Architecture(in_channels=2, clinical_size=5, filters=2, location=location))
        image, clinical = torch.randn(2, 2, 16, 16, 16), torch.randn(2, 5)
        inference = fold_batch_norm(network)
        assert not any(isinstance(module, torch.nn.BatchNorm3d) for module in inference.modules())
        assert torch.allclose(inference(image, clinical), network(image, clinical), atol=1e-5)


def test_one_vector_costs_a_small_part_of_the_network() -> None:
    """A lenient bound on a quarter of the bench's voxels, so that a busy computer passes (see bench/explain.py)."""
    architecture = Architecture(in_channels=5, clinical_size=40, filters=16)
    ensemble = Ensemble([random_network(architecture)])
    network, image, clinical = ensemble.folds[0], torch.randn(5, 64, 64, 64), torch.randn(256, 40)
    tail = TailEvaluator(network, ensemble.features(image)[0])
    tail.logits(clinical)
    ratios = []
    for _ in range(3):
        start = time.perf_counter()
        with torch.no_grad():
            network(ensemble.image(image), clinical[:1])
        middle = time.perf_counter()
        tail.logits(clinical)
        ratios.append((middle - start) / ((time.perf_counter() - middle) / len(clinical)))
    assert np.median(ratios) > 15
