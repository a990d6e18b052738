"""Weights in bfloat16 are cast once, and kept memory is counted."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from app.inference.ensemble_predictor import ExplanationMethod, NetworkFolds
from app.network.architecture import Location
from app.network.ensemble import Ensemble
from app.network.tail_evaluator import MapCombination
from tests.factory import random_network, tiny_manifest

ARCHITECTURE = tiny_manifest().architecture


def ensemble() -> Ensemble:
    return Ensemble([random_network(ARCHITECTURE, seed) for seed in range(2)])


def image() -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).normal(size=(ARCHITECTURE.in_channels, 16, 16, 16)).astype("f4"))


def test_weights_are_cast_to_bfloat16_once_and_give_the_features_of_autocast() -> None:
    mixed = ensemble()
    mixed.mixed = True  # as on a GPU
    with torch.no_grad():
        want = [mixed.trunk(fold, mixed.image(image())) for fold in mixed.folds]
    found = mixed.features(image())
    for each, other in zip(found, want, strict=True):
        assert each.dtype is torch.float32
        torch.testing.assert_close(each, other, rtol=2e-2, atol=2e-2 * float(other.abs().max()))
    cast = mixed._cast_trunks
    mixed.features(image())
    assert mixed._cast_trunks is cast
    trunks = sum(weight.nbytes for fold in mixed.folds for weight in fold.trunk.parameters())
    assert 2 * mixed.cast_bytes == trunks
    assert ensemble().cast_bytes == 0


def test_activations_without_images_count_as_memory() -> None:
    shape = (ARCHITECTURE.in_channels, 16, 16, 16)
    predictor = NetworkFolds(ensemble(), shape)
    before = predictor.bytes
    vector = np.zeros(ARCHITECTURE.clinical_size, np.float32)
    bits = slice(ARCHITECTURE.clinical_size - ARCHITECTURE.in_channels, ARCHITECTURE.clinical_size)
    predictor.image_shares(image().numpy(), vector, bits, range(shape[0]), ExplanationMethod())
    kept = [tensor for each in predictor._baselines for tensor in (*each.rectifier_inputs, each.features)]
    assert predictor.bytes == before + sum(tensor.nbytes for tensor in kept) > before


@pytest.mark.parametrize("location", list(Location))
def test_tails_without_images_count_as_memory(location: Location) -> None:
    architecture = ARCHITECTURE.model_copy(update={"location": location})
    predictor = NetworkFolds(Ensemble([random_network(architecture, 1)]), (architecture.in_channels, 16, 16, 16))
    before = predictor.bytes
    predictor.warm_up()
    (tail,) = predictor._tails_without_images
    combinations = [part for part in vars(tail).values() if isinstance(part, MapCombination)]
    assert len(combinations) == 2
    maps = [tensor for part in combinations for tensor in (part.constant, part.maps) if tensor is not None]
    assert predictor.bytes - before == sum(tensor.nbytes for tensor in maps) + tail.pooled_input.nbytes


def test_a_start_computes_the_activations_without_images_and_a_swap_does_not() -> None:
    predictor = NetworkFolds(ensemble(), (ARCHITECTURE.in_channels, 16, 16, 16))
    predictor.warm_up()
    assert "_baselines" not in vars(predictor)
    predictor.warm_up_explanation()
    assert "_baselines" in vars(predictor)
