"""Modulation and head on stored features: start from the prior, learn a product, save without parametrisation."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from app.evaluation.metrics import auc
from app.network.architecture import Fusion
from app.network.daft import build
from app.training import trainer
from app.training.frozen_trunk import TailOnly
from app.training.tasks import TrainingContext, Views
from app.training.trainer import Recipe
from tests.training.tiny import context_of, network, tiny_dataset

PATIENTS, LEARN, VALIDATE = 1200, np.arange(700), np.arange(700, 1200)
FUSIONS = [Fusion.DAFT, Fusion.FILM, Fusion.CONCAT, Fusion.NONE]


@pytest.fixture(scope="module")
def product() -> tuple[TrainingContext, Views]:
    """Features with a large mean and a small spread; the outcome is the sign of their product with the age."""
    rng = np.random.default_rng(4)
    score, sign = rng.normal(size=PATIENTS), rng.normal(size=PATIENTS)
    context = context_of(tiny_dataset(score, np.zeros(PATIENTS), score * sign > 0))
    clinical = torch.from_numpy(context.vectors.joined(np.arange(PATIENTS), context.data.presence))
    features = torch.from_numpy(rng.normal(12, 0.3, (PATIENTS, 16, 3, 3, 3)).astype(np.float32))
    features[:, :4] += torch.from_numpy(sign.astype(np.float32))[:, None, None, None, None]
    return context, [(features.half(), clinical)]


@pytest.mark.parametrize("fusion", FUSIONS)
def test_training_starts_from_the_prior_and_unchanged_features(
    product: tuple[TrainingContext, Views], fusion: Fusion
) -> None:
    context, views = product
    model = network(fusion).eval()
    task = TailOnly(model, context, views, LEARN, VALIDATE)
    share = context.data.labels[LEARN].mean()
    assert task.logits(VALIDATE) == pytest.approx(np.log(share / (1 - share)), abs=1e-4)
    if model.modulation is None:
        return
    features, clinical = views[0][0].float(), views[0][1]
    with torch.no_grad():
        assert torch.allclose(model.modulation.bottleneck(features, clinical)[:, 0], torch.ones(PATIENTS), atol=1e-5)
        assert (model.modulation(features, clinical) - features).abs().mean() < 0.2 * features.std()


@pytest.mark.parametrize("fusion", FUSIONS)
def test_finished_network_gives_the_same_logits(product: tuple[TrainingContext, Views], fusion: Fusion) -> None:
    context, views = product
    model = network(fusion).eval()
    task = TailOnly(model, context, views, LEARN, VALIDATE, l2_to_init=1e-4)
    trainer.fit(task, Recipe(epochs=1, batch=64, rate=6e-3), 1)
    trained_logits = task.logits(VALIDATE)
    task.finish()
    finished = build(model.architecture).eval()
    finished.load_state_dict(model.state_dict())
    rows = torch.from_numpy(VALIDATE)
    with torch.no_grad():
        assert finished.tail(views[0][0][rows].float(), views[0][1][rows])[:, 0].numpy() == pytest.approx(
            trained_logits, abs=1e-4
        )
    assert np.abs(trained_logits - trained_logits.mean()).max() > 1e-3


def test_daft_learns_a_product_that_concatenation_cannot_learn(product: tuple[TrainingContext, Views]) -> None:
    context, views = product
    aucs = {}
    for fusion in (Fusion.DAFT, Fusion.CONCAT):
        task = TailOnly(network(fusion).eval(), context, views, LEARN, VALIDATE)
        trainer.fit(task, Recipe(epochs=12, batch=32, rate=1e-2, patience=12), 1)
        aucs[fusion] = auc(context.data.labels[VALIDATE], task.logits(VALIDATE))
    assert aucs[Fusion.DAFT] > 0.85
    assert aucs[Fusion.CONCAT] < 0.6


def test_l2_penalty_keeps_weights_near_their_start(product: tuple[TrainingContext, Views]) -> None:
    context, views = product

    def squared_distance(l2_to_init: float) -> float:
        task = TailOnly(network(Fusion.DAFT).eval(), context, views, LEARN, VALIDATE, l2_to_init=l2_to_init)
        start = [parameter.detach().clone() for parameter in task.module.parameters()]
        trainer.fit(task, replace(Recipe(epochs=2, batch=64, rate=1e-2), decay=0.0), 1)
        return sum(float(((a - b) ** 2).sum().detach()) for a, b in zip(task.module.parameters(), start, strict=True))

    assert squared_distance(1.0) < 0.1 * squared_distance(0.0)
