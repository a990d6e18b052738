"""Compare this project's networks with the original DAFT code: ``python -m tests.conformance.daft FILE.npz ...``

A golden file holds the configuration of the original (``config_json``), its state dict (``state/...``), inputs and
logits. The weights are mapped to this project's network by name, and every tensor must have a counterpart. The command
prints each file's name and largest absolute logit difference (float32), and exits with 1 above 1e-4.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from app.network.architecture import Architecture, Fusion, Location, ScaleActivation
from app.network.daft import Network, build

TOLERANCE = 1e-4

FUSIONS = {
    "DAFT": Fusion.DAFT,
    "FilmHNN": Fusion.FILM,
    "ConcatHNN1FC": Fusion.CONCAT,
    "HeterogeneousResNet": Fusion.NONE,
    "ResNet": Fusion.NONE,
}
LOCATIONS = list(Location)  # numbered 0..4 in this order in the original
IGNORED = {"bn_momentum"}  # used only in training; no logit depends on it

# Names in the original on the left, in this project on the right; applied in order.
NAMES = [
    (r"^conv1\.", "trunk.stem."),
    (r"^(block[123])\.", r"trunk.\1."),
    (r"^block(4|X)\.aux\.(?:\w+_)?base\.", "modulation.squeeze."),
    (r"^block(4|X)\.aux\.(?:\w+_)?out\.", "modulation.expand."),
    (r"^block(4|X)\.", "block."),
    (r"^fc\.", "head."),
    (r"\.downsample\.0\.", ".shortcut.conv."),
    (r"\.downsample\.1\.", ".shortcut.norm."),
    (r"\.bn([12]?)\.", r".norm\1."),
]


def architecture(config: Mapping[str, Any], clinical_size: int) -> Architecture:
    """Convert the configuration; options are at the top level or inside ``filmblock_args``.

    Raises:
        ValueError: An option is not known.
    """
    options = dict(config["kwargs"])
    options |= options.pop("filmblock_args", None) or {}
    converted = Architecture(
        fusion=FUSIONS[config["network"]],
        in_channels=options.pop("in_channels"),
        outputs=options.pop("n_outputs"),
        filters=options.pop("n_basefilters", 4),
        clinical_size=options.pop("ndim_non_img", clinical_size),
        location=LOCATIONS[options.pop("location", 0)],
        activation=ScaleActivation(options.pop("activation", None) or "linear"),
        scale=options.pop("scale", True),
        shift=options.pop("shift", True),
        bottleneck=options.pop("bottleneck_dim", 7),
        stride=options.pop("stride", 2),
    )
    if unknown := set(options) - IGNORED:
        raise ValueError(f"unknown options: {sorted(unknown)}")
    return converted


def translate(name: str) -> str:
    """Return this project's name of a tensor of the original."""
    for pattern, replacement in NAMES:
        name = re.sub(pattern, replacement, name)
    return name


def load(golden: Mapping[str, np.ndarray]) -> Network:
    """Build the network of a golden file with its weights; fail if a tensor has no counterpart."""
    config = json.loads(str(golden["config_json"]))
    state = {key.removeprefix("state/"): golden[key] for key in golden if key.startswith("state/")}
    network = build(architecture(config, int(config.get("ndim_non_img", 15))))
    network.load_state_dict({translate(name): torch.from_numpy(np.array(value)) for name, value in state.items()})
    return network.train(config.get("mode", "eval") == "train")


def difference(path: Path) -> float:
    """Return the largest absolute difference of the logits (float32); nan if either is not finite."""
    with np.load(path, allow_pickle=False) as file:
        golden = {key: file[key] for key in file.files}
    network = load(golden)
    image = torch.from_numpy(golden["input/image"])
    clinical: Tensor = torch.zeros(len(image), network.architecture.clinical_size)
    if "input/tabular" in golden:
        clinical = torch.from_numpy(golden["input/tabular"])
    with torch.no_grad():
        logits = network(image.float(), clinical.float()).numpy()
    expected = golden["output/logits_f32"]
    if logits.shape != expected.shape:
        raise ValueError(f"logits of shape {logits.shape}, those of the original have {expected.shape}")
    return float(np.abs(logits - expected).max())


def main(paths: list[str]) -> int:
    """Check every file; return 0 if all agree."""
    failed = not paths
    for path in map(Path, paths):
        try:
            largest = difference(path)
        except (OSError, ValueError, KeyError, IndexError, RuntimeError) as error:
            print(f"{path.name} failed: {error}")
            failed = True
            continue
        print(f"{path.name} {largest:.3e}")
        failed |= not largest <= TOLERANCE
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
