"""What a run says of its pretrained network."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from app.inference import defaults
from app.inference.reference_head import ReferenceHead
from app.network.daft import build
from app.registry.manifest import Clinical
from app.training import pretrained
from app.training.dataset import LATENTS
from app.training.progress import ProgressReporter


class Messages(ProgressReporter):
    """Keeps the messages."""

    def __init__(self) -> None:
        self.all: list[str] = []

    def __call__(self, message: str) -> None:
        self.all.append(message)


@pytest.mark.parametrize(("calcified", "is_warned"), [(float("nan"), True), (-float("inf"), True), (-0.5, False)])
def test_too_few_phantoms_are_named_in_the_output_and_the_card(
    tmp_path: Path, calcified: float, is_warned: bool
) -> None:
    """The variance of one held-out phantom is unknown, that of equal ones is zero."""
    network = build(pretrained._architecture(Clinical(variables=defaults.VARIABLES)))
    metadata = {"explained": json.dumps(dict.fromkeys(LATENTS, 0.5) | {"calcified": calcified})}
    save_file(network.state_dict(), tmp_path / "pretrained.safetensors", metadata)
    mean = np.zeros((len(defaults.CHANNELS), *defaults.GRID.shape), np.float32)
    head = ReferenceHead(np.ones(defaults.GRID.shape, bool), mean)
    (tmp_path / "pretrained-reference-head.safetensors").write_bytes(head.to_bytes())
    messages = Messages()
    found = pretrained.from_phantoms(20, 1, torch.device("cpu"), tmp_path, messages)
    assert ["20 phantoms are too few" in each for each in messages.all] == [True] * is_warned
    assert ("too few" in found.note) is is_warned
