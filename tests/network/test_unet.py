"""The U-Net as a function of a volume of any size."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import save
from torch import nn

from app.network.unet import WINDOW_HU, UNet, VesselNet, scaled


@pytest.fixture(scope="module")
def network() -> UNet:
    """A network with random weights and random running statistics."""
    torch.manual_seed(3)
    unet = UNet(2).eval()
    for module in unet.modules():
        if isinstance(module, nn.BatchNorm3d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 2)
    return unet


def head(shape: tuple[int, int, int]) -> np.ndarray:
    return np.random.default_rng(1).uniform(-100, 700, shape).astype(np.float32)


def test_result_does_not_depend_on_the_slabs(network: UNet) -> None:
    """Three overlapping slabs of a volume against one pass over the whole volume."""
    values = head((116, 16, 12))
    with torch.inference_mode():
        whole = torch.sigmoid(network(torch.from_numpy(scaled(values))[None, None]))[0, 0].numpy()
    assert np.abs(VesselNet(network)(values) - whole).max() < 1e-6


@pytest.mark.parametrize("shape", [(1, 1, 1), (5, 9, 3), (49, 6, 7)])
def test_volume_of_any_size(network: UNet, shape: tuple[int, int, int]) -> None:
    probabilities = VesselNet(network)(head(shape))
    assert probabilities.shape == shape
    assert probabilities.min() >= 0
    assert probabilities.max() <= 1


def test_values_outside_the_window_are_clamped() -> None:
    ends = np.array([-3000.0, WINDOW_HU[0], WINDOW_HU[1], 4000.0], np.float32)
    assert scaled(ends).tolist() == [0, 0, 1, 1]


def test_saved_weights_give_the_same_result(network: UNet) -> None:
    values = head((8, 8, 8))
    again = VesselNet.from_bytes(save(network.state_dict()), filters=2)
    assert np.array_equal(again(values), VesselNet(network)(values))


@pytest.mark.parametrize("content", [b"", b"\x08" + b"\0" * 40, None])
def test_other_weights_are_refused(network: UNet, content: bytes | None) -> None:
    stored = save(network.state_dict()) if content is None else content
    with pytest.raises(ValueError, match="does not hold the weights"):
        VesselNet.from_bytes(stored, filters=3)
