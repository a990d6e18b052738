"""Golden files of the original DAFT code, and other configurations of their format."""

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

# Names in this project on the left, in the original on the right.
ORIGINAL_NAMES = {
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
def test_golden_file_gives_the_original_logits(number: int, capsys: pytest.CaptureFixture[str]) -> None:
    (path,) = shared_path("data", "daft_golden").glob(f"open_0{number}_*.npz")
    assert daft.main([str(path)]) == 0
    assert path.name in capsys.readouterr().out


def write_golden_file(folder: Path, network: str, kwargs: dict[str, Any], clinical: int, *, wrong: float = 0.0) -> Path:
    """Write a golden file of random weights, with the original's names and this project's logits plus ``wrong``."""
    config = {"network": network, "kwargs": kwargs, "ndim_non_img": clinical, "mode": "eval"}
    built = random_network(daft.architecture(config, clinical))
    image, vector = torch.randn(2, built.architecture.in_channels, 16, 24, 16), torch.randn(2, clinical)
    with torch.no_grad():
        logits = built(image, vector).numpy()
    state = {}
    for key, value in built.state_dict().items():
        for name, original in ORIGINAL_NAMES.items():
            if name.startswith(".") or key.startswith(name):
                key = key.replace(name, original, 1)
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
def test_every_option_is_converted(tmp_path: Path, network: str, inside: bool) -> None:
    for options in OPTIONS:
        every = {**options, "ndim_non_img": 3, "bottleneck_dim": 5, "stride": 1}
        kwargs: dict[str, Any] = {"in_channels": 2, "n_outputs": 3, "n_basefilters": 2}
        kwargs |= {"filmblock_args": every} if inside else every
        assert daft.difference(write_golden_file(tmp_path, network, kwargs, 3)) < 1e-5


@pytest.mark.parametrize("network", ["HeterogeneousResNet", "ConcatHNN1FC"])
def test_networks_without_modulation_agree(tmp_path: Path, network: str) -> None:
    kwargs = {"in_channels": 1, "n_outputs": 2, "n_basefilters": 2}
    assert daft.main([str(write_golden_file(tmp_path, network, kwargs, 4))]) == 0


@pytest.mark.parametrize("wrong", [2e-4, float("nan")])
def test_difference_fails_the_check(tmp_path: Path, wrong: float) -> None:
    path = write_golden_file(tmp_path, "DAFT", {"in_channels": 1, "n_outputs": 1, "n_basefilters": 2}, 4, wrong=wrong)
    assert daft.main([str(path)]) == 1


def test_unknown_option_fails_the_check(tmp_path: Path) -> None:
    path = write_golden_file(tmp_path, "DAFT", {"in_channels": 1, "n_outputs": 1, "n_basefilters": 2}, 4)
    with np.load(path) as file:
        arrays = dict(file)
    config = json.loads(str(arrays["config_json"]))
    config["kwargs"]["gate"] = "softplus"
    np.savez(path, **(arrays | {"config_json": np.array(json.dumps(config))}))
    assert daft.main([str(path)]) == 1


def test_check_without_files_fails() -> None:
    assert daft.main([]) == 1


def test_missing_options_take_the_defaults_of_the_original() -> None:
    built = daft.architecture({"network": "DAFT", "kwargs": {"in_channels": 1, "n_outputs": 1}}, 15)
    assert (built.fusion, built.filters, built.clinical_size, built.bottleneck) == (Fusion.DAFT, 4, 15, 7)
    assert (built.location, built.stride, built.scale, built.shift) == (Location.BLOCK_INPUT, 2, True, True)
