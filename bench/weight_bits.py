"""Flipped bits of weights whose digests were renewed: how many the golden cases find, and what the others change.

``python -m bench weight_bits [--flips 240] [--seed 0]``. Each flip changes one random bit of one random weight of a
fold of the trained version, as a fault of a disk before the signature would. Printed: flips by kind of bit, the share
that is refused at the load, and the largest change of a probability of other inputs by a flip that is not refused.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load

from app.inference.fold_files import golden_cases
from app.inference.model_input import ModelInput
from app.inference.model_version import TOLERANCE
from app.network.backends import Precision
from app.network.daft import Network, build
from app.network.resnet import has_finite_weights
from app.registry.manifest import Manifest

VERSION = Path(__file__).parents[1] / "model_store" / "rlvo-synthetic" / "1.0.0"
KINDS = {"sign": range(31, 32), "exponent": range(23, 31), "upper mantissa": range(12, 23), "lower mantissa": range(12)}
OTHERS = 4  # inputs besides the golden case: its image with other noise and other clinical vectors


@dataclass
class Found:
    """Flips of one kind of bit, those that are refused, and the largest change in probability of an accepted one."""

    flips: int = 0
    refused: int = 0
    changes: list[float] = field(default_factory=lambda: [0.0])


def main() -> None:
    """Flip bits and print one line for each kind."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--flips", type=int, default=240)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    manifest = Manifest.model_validate_json((VERSION / "manifest.json").read_text())
    rng = np.random.default_rng(options.seed)
    golden = next(iter(golden_cases(manifest, VERSION)))[0]
    inputs = [golden, *(_other(golden, rng) for _ in range(OTHERS))]
    results = {kind: Found() for kind in KINDS}
    for fold in manifest.folds:
        content = (VERSION / fold.file).read_bytes()
        network = build(manifest.architecture).eval()
        network.load_state_dict(load(content))
        before = [_logit(network, each) for each in inputs]
        for _ in range(options.flips // len(manifest.folds)):
            kind = list(KINDS)[rng.integers(len(KINDS))]
            weights = load(content)
            _flip(weights, int(rng.choice(KINDS[kind])), rng)
            network.load_state_dict(weights)
            _record(results[kind], network, inputs, before, len(manifest.folds))
    for kind, found in results.items():
        share = found.refused / max(found.flips, 1)
        print(f"{kind}: {found.flips} flips, {share:.0%} refused, accepted ones change up to {max(found.changes):.1e}")


def _record(found: Found, network: Network, inputs: list[ModelInput], before: list[float], folds: int) -> None:
    """Count one flip; the golden case is the first input."""
    found.flips += 1
    after = [_logit(network, each) for each in inputs]
    differences = np.abs(np.asarray(after) - np.asarray(before))
    golden = differences[0] / 4
    if not has_finite_weights(network) or not np.isfinite(golden) or golden > TOLERANCE[Precision.FLOAT32]:
        found.refused += 1
    else:
        found.changes.append(float(np.nan_to_num(differences[1:], nan=np.inf).max()) / 4 / folds)


def _flip(weights: dict[str, torch.Tensor], bit: int, rng: np.random.Generator) -> None:
    """Flip one bit of one float32 weight, each weight with the same chance."""
    names = [name for name, values in weights.items() if values.dtype == torch.float32]
    sizes = np.asarray([weights[name].numel() for name in names], dtype=float)
    name = names[rng.choice(len(names), p=sizes / sizes.sum())]
    values: NDArray[np.uint32] = weights[name].numpy().view(np.uint32).reshape(-1).copy()
    values[rng.integers(len(values))] ^= np.uint32(1 << bit)
    weights[name] = torch.from_numpy(values.view(np.float32).copy()).reshape(weights[name].shape)


@torch.no_grad()
def _logit(network: Network, case: ModelInput) -> float:
    image, clinical = torch.from_numpy(case.image)[None], torch.from_numpy(case.clinical)[None]
    return float(network(image, clinical)[0, 0])


def _other(case: ModelInput, rng: np.random.Generator) -> ModelInput:
    """Return an input like ``case`` with a mirrored or scaled image, noise, and another clinical vector."""
    image = case.image[:, ::-1].copy() if rng.random() < 0.5 else case.image * rng.uniform(0.7, 1.3)
    noisy = image + rng.normal(0, 0.2, image.shape)
    clinical = case.clinical.copy()
    clinical[: len(clinical) // 2] += rng.normal(0, 1, len(clinical) // 2)
    return ModelInput(noisy.astype(np.float32), case.presence, clinical.astype(np.float32), shown=case.shown)


if __name__ == "__main__":
    main()
