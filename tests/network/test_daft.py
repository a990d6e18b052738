"""The modulation at each location, compared with the formula of the paper."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from app.network.architecture import Architecture, Fusion, Location, ScaleActivation
from app.network.daft import build, scale_shift
from tests.factory import random_network


def architecture(**options: object) -> Architecture:
    return Architecture.model_validate({"in_channels": 2, "clinical_size": 5, "filters": 2, **options})


@pytest.mark.parametrize("location", list(Location))
def test_tail_follows_the_formula_of_the_paper(location: Location) -> None:
    network = random_network(architecture(location=location, activation=ScaleActivation.TANH))
    block, aux = network.block, network.modulation
    assert aux is not None
    features, clinical = torch.randn(3, 8, 6, 4, 4), torch.randn(3, 5)

    def daft(x: Tensor) -> Tensor:
        hidden = torch.relu(torch.cat([x.mean((2, 3, 4)), clinical], 1) @ aux.squeeze.weight.T)
        scale, shift = (hidden @ aux.expand.weight.T).chunk(2, dim=1)
        return torch.tanh(scale)[..., None, None, None] * x + shift[..., None, None, None]

    x = daft(features) if location is Location.BLOCK_INPUT else features
    shortcut = block.shortcut(daft(x) if location is Location.SHORTCUT else x)
    out = block.norm1(block.conv1(daft(x) if location is Location.RESIDUAL_INPUT else x))
    out = torch.relu(daft(out) if location is Location.AFTER_NORM else out)
    out = block.norm2(block.conv2(daft(out) if location is Location.AFTER_ACTIVATION else out))
    expected = network.head(torch.relu(out + shortcut).mean((2, 3, 4)))
    assert torch.allclose(network.tail(features, clinical), expected, atol=1e-6)


def test_scale_and_shift_are_per_channel() -> None:
    features = torch.ones(1, 2, 1, 1, 1)
    scaled = scale_shift(features, torch.tensor([[2.0, 3.0]]), torch.tensor([[0.5, -1.0]]))
    assert scaled.flatten().tolist() == [2.5, 2.0]
    assert scale_shift(features, None, None) is features


@pytest.mark.parametrize("fusion", list(Fusion))
def test_output_depends_on_the_clinical_vector_only_with_fusion(fusion: Fusion) -> None:
    network = random_network(architecture(fusion=fusion))
    image = torch.randn(1, 2, 16, 16, 16)
    one, two = network(image, torch.zeros(1, 5)), network(image, torch.ones(1, 5))
    assert torch.equal(one, two) == (fusion is Fusion.NONE)


@pytest.mark.parametrize("shape", [(16, 16, 16), (17, 24, 21)])
def test_any_image_size_and_number_of_outputs(shape: tuple[int, int, int]) -> None:
    network = random_network(architecture(outputs=3))
    assert network(torch.randn(2, 2, *shape), torch.randn(2, 5)).shape == (2, 3)


def test_training_reaches_every_weight() -> None:
    network = build(architecture()).train()
    network(torch.randn(4, 2, 16, 16, 16), torch.randn(4, 5)).square().sum().backward()
    assert all(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in network.parameters())


def test_modulation_without_scale_and_shift_is_refused() -> None:
    with pytest.raises(ValueError, match="scale, a shift, or both"):
        build(architecture(scale=False, shift=False))
