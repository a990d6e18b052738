"""The golden files of the original, and the other configurations that their format can describe."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from app.network.architecture import Fusion, Location
from tests.conformance import daft
from tests.conftest import shared_path
from tests.factory import random_network

# Our names back into the original's.
BACK = {
    "trunk.stem.": "conv1.",
    "trunk.": "",
    "modulation.squeeze.": "blockX.aux.aux_base.",
    "modulation.expand.": "blockX.aux.aux_out.",
    "block.": "blockX.",
    "head.": "fc.",
    ".shortcut.conv.": ".downsample.0.",
    ".shortcut.norm.": ".downsample.1.",
    ".norm": ".bn",
}


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_a_golden_file_gives_the_original_logits(number: int, capsys: pytest.CaptureFixture[str]) -> None:
    (path,) = shared_path("data", "daft_golden").glob(f"open_0{number}_*.npz")
    assert daft.main([str(path)]) == 0
    assert path.name in capsys.readouterr().out


def written(folder: Path, network: str, kwargs: dict[str, Any], clinical: int, *, wrong: float = 0.0) -> Path:
    """A golden file of our own making: random weights under the original's names, our logits plus ``wrong``."""
    config = {"network": network, "kwargs": kwargs, "ndim_non_img": clinical, "mode": "eval"}
    ours = random_network(daft.architecture(config, clinical))
    image, vector = torch.randn(2, ours.architecture.in_channels, 16, 24, 16), torch.randn(2, clinical)
    with torch.no_grad():
        logits = ours(image, vector).numpy()
    state = {}
    for key, value in ours.state_dict().items():
        for mine, theirs in BACK.items():
            if mine.startswith(".") or key.startswith(mine):
                key = key.replace(mine, theirs, 1)
        state[f"state/{key}"] = value.numpy()
    arrays = {
        **state,
        "input/image": image.numpy(),
        "input/tabular": vector.numpy(),
        "output/logits_f32": logits + wrong,
    }
    path = folder / "made.npz"
    np.savez(path, config_json=np.array(json.dumps(config)), **arrays)
    return path


OPTIONS = [
    {"location": location, "activation": activation, "scale": scale, "shift": shift}
    for location, activation, (scale, shift) in itertools.product(
        range(5), ("linear", "tanh", "sigmoid"), ((True, True), (True, False), (False, True))
    )
]


@pytest.mark.parametrize("network", ["DAFT", "FilmHNN"])
@pytest.mark.parametrize("inside", [True, False])
def test_every_option_finds_its_place(tmp_path: Path, network: str, inside: bool) -> None:
    for options in OPTIONS:
        every = {**options, "ndim_non_img": 3, "bottleneck_dim": 5, "stride": 1}
        kwargs: dict[str, Any] = {"in_channels": 2, "n_outputs": 3, "n_basefilters": 2}
        kwargs |= {"filmblock_args": every} if inside else every
        assert daft.difference(written(tmp_path, network, kwargs, 3)) < 1e-5


@pytest.mark.parametrize("network", ["HeterogeneousResNet", "ConcatHNN1FC"])
def test_networks_without_modulation(tmp_path: Path, network: str) -> None:
    kwargs = {"in_channels": 1, "n_outputs": 2, "n_basefilters": 2}
    assert daft.main([str(written(tmp_path, network, kwargs, 4))]) == 0


@pytest.mark.parametrize("wrong", [2e-4, float("nan")])
def test_a_difference_is_told(tmp_path: Path, wrong: float) -> None:
    path = written(tmp_path, "DAFT", {"in_channels": 1, "n_outputs": 1, "n_basefilters": 2}, 4, wrong=wrong)
    assert daft.main([str(path)]) == 1


def test_an_unknown_option_is_not_passed_over(tmp_path: Path) -> None:
    path = written(tmp_path, "DAFT", {"in_channels": 1, "n_outputs": 1, "n_basefilters": 2}, 4)
    with np.load(path) as file:
        arrays = dict(file)
    config = json.loads(str(arrays["config_json"]))
    config["kwargs"]["gate"] = "softplus"
    np.savez(path, **(arrays | {"config_json": np.array(json.dumps(config))}))
    assert daft.main([str(path)]) == 1


def test_no_file_is_a_failure() -> None:
    assert daft.main([]) == 1


def test_left_out_options_take_the_originals_defaults() -> None:
    ours = daft.architecture({"network": "DAFT", "kwargs": {"in_channels": 1, "n_outputs": 1}}, 15)
    assert (ours.fusion, ours.filters, ours.clinical_size, ours.bottleneck) == (Fusion.DAFT, 4, 15, 7)
    assert (ours.location, ours.stride, ours.scale, ours.shift) == (Location.BLOCK_INPUT, 2, True, True)
