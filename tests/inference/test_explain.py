"""Explanations: symmetry of left and right, and values that patient and background share."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from app.imaging.model_grid import Grid
from app.inference import explain
from app.inference.ensemble_predictor import EXACT_METHOD, ExplanationMethod, NetworkFolds, ValueFunction
from app.inference.model_input import ModelInput
from app.network.daft import Network
from app.network.ensemble import Ensemble
from app.registry.manifest import Background, Manifest
from app.sdk.clinical import Side
from app.sdk.types import Channel
from tests.factory import random_network, tiny_case, tiny_manifest

# 18, 9, 5, 3, 2 voxels per stage: odd before every stride of two, so that the network has a middle plane.
GRID = Grid(shape=(18, 18, 18), affine=((10, 0, 0, -85), (0, 12, 0, -122), (0, 0, 10, -78), (0, 0, 0, 1)))


def symmetric(network: Network) -> Network:
    """Make a network symmetric: every kernel becomes the mean of itself and its mirror image."""
    with torch.no_grad():
        for weight in network.parameters():
            if weight.dim() == 5:
                weight.copy_((weight + weight.flip(2)) / 2)
    return network


@pytest.fixture(scope="module")
def manifest() -> Manifest:
    return tiny_manifest(channels=[Channel.CTA, Channel.VESSELS]).model_copy(update={"grid": GRID})


@pytest.fixture(scope="module")
def symmetric_folds(manifest: Manifest) -> NetworkFolds:
    folds = [symmetric(random_network(manifest.architecture, seed)) for seed in (1, 2)]
    return NetworkFolds(Ensemble(folds), (2, *GRID.shape))


def mirrored_region(region: str) -> str:
    side, _, name = region.partition(" ")
    opposite = {Side.LEFT: Side.RIGHT, Side.RIGHT: Side.LEFT}
    return f"{opposite[Side(side)]} {name}" if side in list(Side) else region


@pytest.mark.parametrize("method", [ExplanationMethod(), replace(EXACT_METHOD, steps=4)], ids=["fast", "exact"])
def test_contributions_change_sides_with_the_patient(
    symmetric_folds: NetworkFolds, manifest: Manifest, method: ExplanationMethod
) -> None:
    case = replace(tiny_case(manifest, seed=3), affected=Side.LEFT)
    mirrored: ModelInput = replace(case, image=np.ascontiguousarray(case.image[:, ::-1]), affected=Side.RIGHT)
    one, two = (explain.explain(symmetric_folds, manifest, patient, method=method) for patient in (case, mirrored))
    for channel, values in one.maps.items():
        most = float(np.abs(values).max())
        assert two.maps[channel][::-1] == pytest.approx(values, abs=1e-4 * most)
    mirrored_parts = {(part.region, part.modality): part for part in two.attribution.regions}
    for part in one.attribution.regions:
        twin = mirrored_parts[mirrored_region(part.region), part.modality]
        assert twin.contribution == pytest.approx(part.contribution, abs=1e-5)
        assert twin.side == part.side  # relative to the occlusion, it is the same side
    assert {part.side for part in one.attribution.regions} == {"affected", "contralateral", None}


def test_shared_values_are_evaluated_once_and_contribute_nothing(
    symmetric_folds: NetworkFolds, manifest: Manifest
) -> None:
    case = tiny_case(manifest, seed=3)
    case.clinical[:] += np.float32(1 / 3e5)  # no round numbers
    player = explain.clinical_players(manifest)[1]
    rows = np.asarray(manifest.background.vectors, np.float32)
    rows[:, player.columns] = case.clinical[player.columns].round(5)  # rounded as in a manifest
    shared = manifest.model_copy(update={"background": Background(vectors=tuple(tuple(row) for row in rows.tolist()))})
    calls = []

    class Counting(NetworkFolds):
        def value_function(self, image: NDArray[np.float32], /) -> ValueFunction:
            mean_logits = super().value_function(image)

            def counted(vectors: NDArray[np.float32], imaging: NDArray[np.bool_], /) -> NDArray[np.float64]:
                calls.append(np.concatenate([vectors, imaging[:, None]], axis=1))
                return mean_logits(vectors, imaging)

            return counted

    counting = Counting(symmetric_folds.ensemble, symmetric_folds.shape)
    attribution = explain.explain(counting, shared, case, method=replace(EXACT_METHOD, steps=4)).attribution
    parts = {part.variable: part.contribution for part in attribution.clinical}
    assert parts[player.name] == 0
    imaging = sum(part.contribution for part in attribution.imaging)
    assert attribution.base + sum(parts.values()) + imaging == pytest.approx(attribution.total)
    (inputs,) = calls
    assert len(np.unique(inputs, axis=0)) == len(inputs)
    count = len(explain.clinical_players(manifest)) + 1
    assert len(inputs) <= 2 ** (count - 1) * len(rows)
