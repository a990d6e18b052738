"""Image attribution: agreement with captum, and maps of a network that has learnt one sign."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import permutations, product
from math import comb
from typing import Any

import numpy as np
import pytest
import torch
from captum.attr import IntegratedGradients, KernelShap, ShapleyValues
from torch import Tensor, nn

from app.inference.attribution import deeplift
from app.inference.attribution.integrated_gradients import (
    exact_modality_shares,
    integrated_gradients,
    smooth,
    voxel_map,
)
from app.inference.attribution.shapley import exact
from app.inference.ensemble_predictor import ExplanationMethod, ImageShares, NetworkFolds, VoxelRule
from app.network.architecture import Architecture, Fusion, Location
from app.network.daft import Network, build
from app.network.ensemble import Ensemble
from tests.factory import random_network

ARCHITECTURE = Architecture(in_channels=2, clinical_size=6, filters=2)
BITS = slice(4, 6)


@pytest.fixture
def ensemble() -> Ensemble:
    return Ensemble([random_network(ARCHITECTURE, seed) for seed in (1, 2)])


@pytest.fixture
def image() -> Tensor:
    return torch.randn(2, 16, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def clinical() -> Tensor:
    return torch.tensor([0.3, -1.2, 0.5, 1.0, 1.0, 1.0])


def logit(ensemble: Ensemble, image: Tensor, clinical: Tensor) -> float:
    return float(ensemble.logits(ensemble.features(image), clinical[None]).mean())


def shares(ensemble: Ensemble, image: Tensor, clinical: Tensor, bits: slice, method: ExplanationMethod) -> ImageShares:
    networks = NetworkFolds(ensemble, tuple(image.shape))
    present = [channel for channel in range(len(image)) if clinical[bits][channel]]
    return networks.image_shares(image.numpy(), clinical.numpy(), bits, present, method)


def without(clinical: Tensor, *bits: int) -> Tensor:
    known = clinical.clone()
    known[list(bits)] = 0
    return known


def test_integrated_gradients_equal_captum(ensemble: Ensemble, image: Tensor, clinical: Tensor) -> None:
    class Mean(nn.Module):
        def forward(self, images: Tensor, bits: Tensor) -> Tensor:
            known = torch.cat([clinical[None, :4].expand(len(bits), -1), bits], dim=1)
            return torch.stack([fold(images, known)[:, 0] for fold in ensemble.folds]).mean(dim=0)

    voxels, bits = integrated_gradients(ensemble, image, clinical, BITS, steps=8)
    expected = IntegratedGradients(Mean()).attribute(
        (image[None], clinical[None, BITS]), n_steps=8, method="gausslegendre"
    )
    assert torch.allclose(voxels, expected[0][0], atol=1e-6)
    assert torch.allclose(bits, expected[1][0].float(), atol=1e-6)


def test_shares_sum_to_the_gain_with_many_steps(ensemble: Ensemble, image: Tensor, clinical: Tensor) -> None:
    gain = logit(ensemble, image, clinical) - logit(ensemble, torch.zeros_like(image), without(clinical, 4, 5))
    left = []
    for steps in (1, 32):
        voxels, bits = integrated_gradients(ensemble, image, clinical, BITS, steps=steps)
        left.append(abs(float(voxels.sum() + bits.sum()) - gain))
    assert left[1] < 2e-3 * max(abs(gain), 1)
    assert left[1] < left[0]


@pytest.mark.parametrize("fusion", list(Fusion))
@pytest.mark.parametrize("location", [Location.BLOCK_INPUT, Location.AFTER_NORM])
def test_rescale_shares_sum_to_the_gain(
    fusion: Fusion, location: Location, image: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rule is exact in the trunk; the quadrature error of the tail decreases with the steps."""
    monkeypatch.setattr(deeplift, "TAIL_STEPS", 400)
    architecture = ARCHITECTURE.model_copy(update={"fusion": fusion, "location": location})
    ensemble, clinical = Ensemble([random_network(architecture, 3)]), torch.tensor([0.3, -1.2, 0.5, 1.0, 1.0, 1.0])
    gain = logit(ensemble, image, clinical) - logit(ensemble, torch.zeros_like(image), without(clinical, 4, 5))
    raw = shares(ensemble, image, clinical, BITS, ExplanationMethod())
    assert raw.channels.sum() == pytest.approx(gain, abs=1e-3)


def test_explanation_reuses_the_features_of_the_prediction(ensemble: Ensemble, image: Tensor) -> None:
    """The pass that makes the maps also gives the features; they must equal those of ``features``."""
    clinical = torch.tensor([0.3, -1.2, 0.5, 1.0, 1.0, 1.0])
    raw = shares(ensemble, image, clinical, BITS, ExplanationMethod())
    assert raw.value_function is not None
    values = raw.value_function(clinical[None].numpy(), np.asarray([True]))
    assert values[0] == pytest.approx(logit(ensemble, image, clinical), abs=1e-6)


class ExhaustiveKernelShap(KernelShap):
    """captum's KernelShap on every coalition, repeated by its kernel weight, so that nothing is sampled."""

    def kernel_shap_perturb_generator(self, original_inp: object, **options: Any) -> Iterator[Tensor]:
        players = options["num_interp_features"]
        every = torch.tensor(list(product((0, 1), repeat=players)))
        weights = {size: (players - 1) / (comb(players, size) * size * (players - size)) for size in range(1, players)}
        yield from (torch.ones(1, players, dtype=torch.long), torch.zeros(1, players, dtype=torch.long))
        for coalition in every[1:-1]:
            for _ in range(round(weights[int(coalition.sum())] / min(weights.values()))):
                yield coalition[None]


@pytest.mark.parametrize(
    ("captum_method", "options"),
    [(ShapleyValues, {}), (ExhaustiveKernelShap, {"n_samples": 52})],  # five players: 2 + 10 * 3 + 20
    ids=["ShapleyValues", "KernelShap"],
)
def test_outer_game_equals_captum(
    ensemble: Ensemble, image: Tensor, clinical: Tensor, captum_method: Any, options: dict[str, int]
) -> None:
    """Four clinical values and imaging: equal to captum with the whole network and every coalition."""
    background = torch.tensor([[-0.5, 0.4, 1.1, 0.0]])
    networks = NetworkFolds(ensemble, (2, 16, 16, 16))
    value_function = networks.value_function(image.numpy())

    def game(present: np.ndarray, rows: np.ndarray) -> np.ndarray:
        vectors = np.concatenate([background.numpy()[rows], np.zeros((len(rows), 2), np.float32)], axis=1)
        owners = np.asarray([0, 1, 2, 3, 4, 4])
        return value_function(np.where(present[:, owners], clinical.numpy(), vectors).astype(np.float32), present[:, 4])

    def forward(images: Tensor, known: Tensor) -> Tensor:
        return torch.stack([fold(images, known)[:, 0] for fold in ensemble.folds]).mean(dim=0)

    ours = exact(game, 5, 1)
    empty = torch.cat([background, torch.zeros(1, 2)], dim=1)
    with torch.no_grad():
        images, vector = captum_method(forward).attribute(
            (image[None], clinical[None]),
            baselines=(torch.zeros_like(image[None]), empty),
            feature_mask=(torch.full_like(image[None], 4, dtype=torch.long), torch.tensor([[0, 1, 2, 3, 4, 4]])),
            perturbations_per_eval=52,
            **options,
        )
    theirs = [*vector[0, :4].tolist(), float(images.flatten()[0])]
    # float32; and captum's regression fixes the two ends only by a weight of a million.
    assert ours.values == pytest.approx(theirs, abs=1e-4 * np.abs(ours.values).max())


def test_exact_modality_shares_follow_the_definition(ensemble: Ensemble, image: Tensor, clinical: Tensor) -> None:
    def value(shown: tuple[int, ...]) -> float:
        subset = torch.zeros_like(image)
        subset[list(shown)] = image[list(shown)]
        return logit(ensemble, subset, without(clinical, *(4 + channel for channel in {0, 1} - set(shown))))

    gains = np.zeros(2)
    for order in permutations((0, 1)):
        for position, channel in enumerate(order):
            gains[channel] += (value(order[: position + 1]) - value(order[:position])) / 2
    by_modality = exact_modality_shares(ensemble, image, clinical, BITS, [0, 1])
    assert by_modality == pytest.approx(gains, abs=1e-5)


def test_absent_channel_has_no_share(ensemble: Ensemble, image: Tensor, clinical: Tensor) -> None:
    image[0] = 0
    voxels, bits = integrated_gradients(ensemble, image, without(clinical, 4), BITS, steps=3)
    assert not voxels[0].any()
    assert bits[0] == 0


def test_map_sums_to_its_contribution_and_smoothing_keeps_the_peak() -> None:
    blob = torch.zeros(1, 9, 9, 9)
    blob[0, 4, 5, 3] = 2.0
    spread = smooth(blob)
    assert spread.sum() == pytest.approx(2.0, abs=1e-6)
    assert int(spread.argmax()) == np.ravel_multi_index((4, 5, 3), (9, 9, 9))
    assert voxel_map(spread[0], -0.7).sum() == pytest.approx(-0.7, abs=1e-6)


# A network that has learnt one sign: a blob at one position is positive, a blob at another has no meaning.

SIZE = 16
SIGN, DISTRACTOR = (4, 6, 4), (11, 9, 11)


def blob(centre: tuple[int, int, int]) -> Tensor:
    axes = torch.meshgrid(*[torch.arange(float(SIZE))] * 3, indexing="ij")
    apart = torch.stack([(axis - place) ** 2 for axis, place in zip(axes, centre, strict=True)]).sum(dim=0)
    return torch.exp(-apart / 8)


def patients(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Noise, with the sign in half of the patients (label 1), and the distractor in an independent half."""
    rng = torch.Generator().manual_seed(seed)
    labels, distracted = (torch.randint(0, 2, (count,), generator=rng).float() for _ in range(2))
    noise = 0.5 * torch.randn(count, 1, SIZE, SIZE, SIZE, generator=rng)
    signs = labels.view(-1, 1, 1, 1, 1) * blob(SIGN) + distracted.view(-1, 1, 1, 1, 1) * blob(DISTRACTOR)
    return noise + 3 * signs, labels


@pytest.fixture(scope="module")
def learnt() -> Ensemble:
    torch.manual_seed(0)
    network: Network = build(Architecture(in_channels=1, clinical_size=1, filters=4, fusion=Fusion.DAFT))
    optimiser = torch.optim.Adam(network.parameters(), lr=4e-3)
    for step in range(120):
        images, labels = patients(16, seed=step)
        logits = network(images, torch.ones(16, 1))[:, 0]
        nn.functional.binary_cross_entropy_with_logits(logits, labels).backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        optimiser.zero_grad()
    return Ensemble([network])


FAST, GRADIENTS = ExplanationMethod(), ExplanationMethod(maps=VoxelRule.GRADIENTS, steps=32)


def attribution_map(ensemble: Ensemble, image: Tensor, method: ExplanationMethod = FAST) -> Tensor:
    voxels = shares(ensemble, image, torch.ones(1), slice(0, 1), method).voxels
    assert voxels is not None
    return voxels[0]


def positives(count: int) -> list[Tensor]:
    images, labels = patients(4 * count, seed=10**6)
    return list(images[labels > 0][:count])


def test_network_has_learnt_the_sign(learnt: Ensemble) -> None:
    images, labels = patients(64, seed=10**6)
    logits = torch.tensor([logit(learnt, image, torch.ones(1)) for image in images])
    assert ((logits > 0) == (labels > 0)).float().mean() > 0.95


@pytest.mark.parametrize("method", [FAST, GRADIENTS], ids=["fast", "gradients"])
def test_map_peaks_at_the_planted_sign(learnt: Ensemble, method: ExplanationMethod) -> None:
    hits = 0
    for image in positives(16):
        peak = np.unravel_index(int(attribution_map(learnt, image, method).argmax()), (SIZE, SIZE, SIZE))
        hits += bool(np.linalg.norm(np.subtract(peak, SIGN)) <= 3)
    assert hits >= 15


def test_deleting_top_voxels_lowers_the_logit_more_than_random_ones(learnt: Ensemble) -> None:
    rng = torch.Generator().manual_seed(0)
    count = SIZE**3 // 50
    top: list[float] = []
    other: list[float] = []
    for image in positives(8):
        whole = logit(learnt, image, torch.ones(1))
        ranked = attribution_map(learnt, image).flatten().argsort(descending=True)[:count]
        for where, drops in ((ranked, top), (torch.randperm(SIZE**3, generator=rng)[:count], other)):
            deleted = image.clone()
            deleted.view(-1)[where] = 0
            drops.append(whole - logit(learnt, deleted, torch.ones(1)))
    assert min(top) > max(other)
    assert np.mean(top) > 5 * abs(np.mean(other))


def test_inserting_top_voxels_raises_the_logit_more_than_random_ones(learnt: Ensemble) -> None:
    rng = torch.Generator().manual_seed(1)
    count = SIZE**3 // 20
    empty = logit(learnt, torch.zeros(1, SIZE, SIZE, SIZE), torch.ones(1))
    for image in positives(6):
        ranked = attribution_map(learnt, image).flatten().argsort(descending=True)[:count]
        gains = []
        for where in (ranked, torch.randperm(SIZE**3, generator=rng)[:count]):
            inserted = torch.zeros_like(image)
            inserted.view(-1)[where] = image.view(-1)[where]
            gains.append(logit(learnt, inserted, torch.ones(1)) - empty)
        assert gains[0] > gains[1] + 0.5


def test_randomised_network_gives_unrelated_maps(learnt: Ensemble) -> None:
    """Adebayo et al., "Sanity checks for saliency maps", NeurIPS 2018."""
    randomised = Ensemble([random_network(learnt.folds[0].architecture, seed=7)])
    for image in positives(6):
        one, two = (np.argsort(np.argsort(attribution_map(e, image).flatten().numpy())) for e in (learnt, randomised))
        assert abs(np.corrcoef(one, two)[0, 1]) < 0.3


def test_fast_map_agrees_with_integrated_gradients(learnt: Ensemble) -> None:
    correlations = [
        np.corrcoef(attribution_map(learnt, image).flatten(), attribution_map(learnt, image, GRADIENTS).flatten())[0, 1]
        for image in positives(6)
    ]
    assert np.mean(correlations) > 0.85
