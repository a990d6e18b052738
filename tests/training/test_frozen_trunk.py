"""A tail about the mean is the same network: it starts from the prior, learns the product, is written out plainly."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from app.evaluation.metrics import auc
from app.network.architecture import Architecture, Fusion
from app.network.daft import Network, build
from app.training import trainer
from app.training.frozen_trunk import TailOnly
from app.training.tasks import TrainingContext, Views
from app.training.trainer import Recipe
from tests.training.conftest import bench_of, tiny

PATIENTS, LEARN, VALIDATE = 1200, np.arange(700), np.arange(700, 1200)
FUSIONS = [Fusion.DAFT, Fusion.FILM, Fusion.CONCAT, Fusion.NONE]


@pytest.fixture(scope="module")
def product() -> tuple[TrainingContext, Views]:
    """Features far from zero that vary a little; the outcome is the sign of their product with the age."""
    rng = np.random.default_rng(4)
    score, sign = rng.normal(size=PATIENTS), rng.normal(size=PATIENTS)
    bench = bench_of(tiny(score, np.zeros(PATIENTS), score * sign > 0))
    clinical = torch.from_numpy(bench.vectors.joined(np.arange(PATIENTS), bench.data.presence))
    features = torch.from_numpy(rng.normal(12, 0.3, (PATIENTS, 16, 3, 3, 3)).astype(np.float32))
    features[:, :4] += torch.from_numpy(sign.astype(np.float32))[:, None, None, None, None]
    return bench, [(features.half(), clinical)]


def network(fusion: Fusion) -> Network:
    torch.manual_seed(3)
    return build(Architecture(fusion=fusion, in_channels=1, clinical_size=3, filters=4)).eval()


@pytest.mark.parametrize("fusion", FUSIONS)
def test_it_starts_from_the_prior_and_changes_no_feature(
    product: tuple[TrainingContext, Views], fusion: Fusion
) -> None:
    bench, views = product
    model = network(fusion)
    task = TailOnly(model, bench, views, LEARN, VALIDATE)
    share = bench.data.labels[LEARN].mean()
    assert task.logits(VALIDATE) == pytest.approx(np.log(share / (1 - share)), abs=1e-4)
    if model.modulation is None:
        return
    features, clinical = views[0][0].float(), views[0][1]
    with torch.no_grad():
        assert torch.allclose(model.modulation.bottleneck(features, clinical)[:, 0], torch.ones(PATIENTS), atol=1e-5)
        assert (model.modulation(features, clinical) - features).abs().mean() < 0.2 * features.std()


@pytest.mark.parametrize("fusion", FUSIONS)
def test_what_is_written_out_says_what_was_learnt(product: tuple[TrainingContext, Views], fusion: Fusion) -> None:
    bench, views = product
    model = network(fusion)
    task = TailOnly(model, bench, views, LEARN, VALIDATE, l2_to_init=1e-4)
    trainer.run(task, Recipe(epochs=1, batch=64, rate=6e-3), 1)
    said = task.logits(VALIDATE)
    task.finish()
    plain = build(model.architecture).eval()
    plain.load_state_dict(model.state_dict())
    rows = torch.from_numpy(VALIDATE)
    with torch.no_grad():
        assert plain.tail(views[0][0][rows].float(), views[0][1][rows])[:, 0].numpy() == pytest.approx(said, abs=1e-4)
    assert np.abs(said - said.mean()).max() > 1e-3


def test_the_product_is_learnt_by_daft_and_not_by_concatenation(product: tuple[TrainingContext, Views]) -> None:
    bench, views = product
    found = {}
    for fusion in (Fusion.DAFT, Fusion.CONCAT):
        task = TailOnly(network(fusion), bench, views, LEARN, VALIDATE)
        trainer.run(task, Recipe(epochs=12, batch=32, rate=1e-2, patience=12), 1)
        found[fusion] = auc(bench.data.labels[VALIDATE], task.logits(VALIDATE))
    assert found[Fusion.DAFT] > 0.85
    assert found[Fusion.CONCAT] < 0.6


def test_the_pull_keeps_weights_near_their_start(product: tuple[TrainingContext, Views]) -> None:
    bench, views = product

    def moved(l2_to_init: float) -> float:
        task = TailOnly(network(Fusion.DAFT), bench, views, LEARN, VALIDATE, l2_to_init=l2_to_init)
        start = [parameter.detach().clone() for parameter in task.module.parameters()]
        trainer.run(task, replace(Recipe(epochs=2, batch=64, rate=1e-2), decay=0.0), 1)
        return sum(float(((a - b) ** 2).sum().detach()) for a, b in zip(task.module.parameters(), start, strict=True))

    assert moved(1.0) < 0.1 * moved(0.0)
