"""oneDNN convolutions: equal to torch's public convolution, differentiable and exportable."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from app.network.architecture import Architecture
from app.network.conv import Convolution, convolve
from app.network.daft import build
from app.network.ensemble import Ensemble, fold_batch_norm
from tests.factory import random_network, tiny_manifest


@pytest.mark.parametrize("stride", [(1, 1, 1), (2, 2, 2)])
@pytest.mark.parametrize("bias", [False, True])
def test_small_volume_gives_the_same_numbers_and_slopes(stride: tuple[int, int, int], bias: bool) -> None:
    torch.manual_seed(0)
    image = torch.randn(1, 5, 12, 14, 10).contiguous(memory_format=torch.channels_last_3d)
    weight, offset = torch.randn(8, 5, 3, 3, 3), torch.randn(8) if bias else None
    outputs, slopes = [], []
    for convolution in (
        lambda x: convolve(x, weight, offset, stride, (1, 1, 1)),
        lambda x: functional.conv3d(x, weight, offset, stride, (1, 1, 1)),
    ):
        at = image.clone().requires_grad_()
        output = convolution(at)
        outputs.append(output.detach())
        slopes.append(torch.autograd.grad(output.square().sum(), at)[0])
    torch.testing.assert_close(*outputs, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(*slopes, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("bias", [False, True])
def test_convolution_shares_the_parameters_and_draws_no_random_numbers(bias: bool) -> None:
    layer = torch.nn.Conv3d(3, 4, 3, stride=2, padding=1, bias=bias).eval()
    state = torch.random.get_rng_state()
    convolution = Convolution(layer)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert convolution.weight is layer.weight
    assert convolution.bias is layer.bias
    assert list(convolution.state_dict()) == list(layer.state_dict())
    assert convolution.extra_repr().removesuffix(", bias=False") == layer.extra_repr().removesuffix(", bias=False")
    assert not convolution.training
    x = torch.randn(2, 3, 6, 8, 7)
    torch.testing.assert_close(convolution(x), layer(x))


@pytest.mark.filterwarnings("ignore:.*torch.jit.trace.*:DeprecationWarning")
def test_folded_network_uses_onednn_and_an_export_uses_torch() -> None:
    torch.manual_seed(0)
    network = build(Architecture(in_channels=2, clinical_size=6, filters=2)).eval()
    inference = fold_batch_norm(network)
    assert isinstance(inference.trunk.stem.conv, Convolution)
    image, record = torch.randn(1, 2, 16, 16, 16), torch.randn(1, 6)
    with torch.no_grad():
        torch.testing.assert_close(inference(image, record), network(image, record), rtol=1e-4, atol=1e-5)
        traced = torch.jit.trace(inference, (image, record), check_trace=False)
    assert "mkldnn" not in str(traced.inlined_graph)


@pytest.mark.parametrize(("cases", "threads"), [(1, 1), (10_000, 2)])
def test_small_tail_uses_one_thread_and_restores_the_number(cases: int, threads: int) -> None:
    """A hook on the head records the number of threads."""
    ensemble = Ensemble([random_network(tiny_manifest().architecture, 0)])
    seen: list[int] = []
    ensemble.folds[0].head.register_forward_hook(lambda *_: seen.append(torch.get_num_threads()))
    features = ensemble.features(torch.zeros(2, 16, 16, 16))
    usual = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        ensemble.logits(features, torch.zeros(cases, tiny_manifest().architecture.clinical_size))
        assert (seen, torch.get_num_threads()) == ([threads], 2)
    finally:
        torch.set_num_threads(usual)
