"""What a training step sends to its device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from app.training import mark_lesson, pretraining
from app.training.tasks import TrainingContext, latent_loss, mix_views
from app.training.transfer import to_device


@pytest.mark.parametrize("array", [np.arange(6.0), np.arange(24).reshape(2, 3, 4)[:, ::-1], np.zeros((0, 3), bool)])
def test_copy_has_the_values_and_the_type_of_the_array(array: np.ndarray) -> None:
    copy = to_device(array, torch.device("cpu"))
    assert copy.numpy().dtype == array.dtype
    assert np.array_equal(copy.numpy(), array)


def test_loss_without_known_latents_is_zero() -> None:
    guess, truth = torch.ones(3, 2, requires_grad=True), torch.full((3, 2), float("nan"))
    loss = latent_loss(guess, truth)
    loss.backward()
    assert float(loss.detach()) == 0
    assert guess.grad is not None
    assert torch.equal(guess.grad, torch.zeros(3, 2))


def test_loss_is_the_mean_over_the_known_latents() -> None:
    truth = torch.tensor([[1.0, float("nan")], [0.0, 3.0]])
    assert float(latent_loss(torch.zeros(2, 2), truth)) == pytest.approx(10 / 3)
    assert float(latent_loss(torch.zeros(2, 2), truth, torch.tensor([1.0, 0.5]))) == pytest.approx(5.5 / 3)


def test_batch_and_its_losses_ask_the_device_nothing(xor: TrainingContext) -> None:
    """``meta`` has no values, so it answers no question; a GPU answers one only after all its kernels."""
    context, rows = replace(xor.first(8), device=torch.device("meta")), np.arange(8)
    images, vectors = context.augmented(rows, np.random.default_rng(0), rotate=True)
    assert images.shape == (8, 1, 8, 8, 8)
    assert vectors.shape[0] == 8
    latents = context.latents(rows)
    cells = torch.zeros(8, 4, 4, 4, device="meta")
    losses = [
        latent_loss(latents, latents),
        pretraining._loss([latents, latents], latents),
        mark_lesson.marked_loss(torch.zeros(8, 3, 4, 4, 4, device="meta"), cells, latents),
    ]
    assert {loss.device.type for loss in losses} == {"meta"}


class IndexDevices(TorchDispatchMode):
    """Notes the devices of all index arrays: one of another device is copied, and the caller waits for the copy."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Sequence[type], args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.index.Tensor:
            self.found += [index.device.type for index in args[1] if index is not None]
        return func(*args, **(kwargs or {}))


def test_heads_and_views_are_indexed_on_the_device() -> None:
    head = pretraining.LatentHead(np.arange(4), 2).to("meta")
    views = [(torch.zeros(9, 2, 4, 4, 4, device="meta"), torch.zeros(9, 3, device="meta")) for _ in range(2)]
    with IndexDevices() as devices:
        head(torch.zeros(8, 2, 4, 4, 4, device="meta"))
        mix_views(views, np.arange(8), np.random.default_rng(0))
    assert devices.found == ["meta"] * 7  # the head, both parts of both views, and their joined parts
    assert "cells" not in head.state_dict()  # so that checkpoints of earlier releases can be read
