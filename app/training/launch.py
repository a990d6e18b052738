"""``rlvo train`` from its arguments to a version: what is read, what is kept for a resumed run, what is written.

Notable choices:
- What a run needs to go on lies in ``.runs`` beside the cohort, under a digest of all that makes a difference: the same
  command finds its own checkpoints, another command never finds them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from app.manifest import Manifest
from app.network.daft import build
from app.network.resnet import Trunk
from app.phantoms.biology import Preset
from app.training import cohort, defaults, prepared, protocol, run
from app.training.dataset import Dataset, phantoms
from app.training.errors import CohortFault
from app.training.loop import Recipe
from app.training.table import markdown

PHANTOM_SEED = 1_000_003  # of the phantoms that teach a trunk: far from any cohort's
TAILS = Recipe(epochs=24, batch=32, rate=3e-3, patience=8)
PHANTOM_RECIPE = Recipe(epochs=12, batch=16, rate=4e-3, patience=12, turn=False)


@dataclass(frozen=True)
class Order:
    """The arguments of ``rlvo train``."""

    cohort: Path
    out: Path | None
    trunk: Path | None
    phantoms: int
    epochs: int
    seed: int
    device: str
    quick: bool
    drop_unknown: bool


def train(order: Order, say: Callable[[str], None]) -> str:
    """Carry out the order; answers the table as Markdown.

    :raises CohortFault: with everything that is wrong with the cohort
    """
    if order.out is not None and order.out.exists():
        raise CohortFault([f"version {order.out.name} exists; versions never change: choose another"])
    studies = cohort.read(order.cohort, drop_unknown=order.drop_unknown)
    say(f"preparing {len(studies.studies)} studies")
    data = prepared.dataset(studies, studies.folder / ".prepared")
    names = [study.patient for study in studies.studies]
    digest = protocol.digest_of(names, data.labels)
    folder = studies.folder / ".runs" / _key(order, digest)
    device = torch.device("cuda" if order.device == "auto" and torch.cuda.is_available() else
                          "cpu" if order.device == "auto" else order.device)  # fmt: skip
    parts = protocol.freeze(folder / "split.json", _split(data, studies, order.seed), digest)

    trunk, notes = _trunk(order, device, say, folder)
    name, number = (order.out.parent.name, order.out.name) if order.out else ("untitled", "0.0.0")
    plan = run.Plan(
        name=name,
        version=number,
        data=_describe(data, order.cohort),
        synthetic=data.oracle is not None,
        seed=order.seed,
        code_version=_code_version(),
        recipe=replace(TAILS, epochs=max(order.epochs, TAILS.epochs)) if trunk else Recipe(epochs=order.epochs),
        networks=(run.DAFT,) if order.quick else tuple(run.NETWORKS),
    )
    result = run.compare(plan, data, parts, device, say, trunk=trunk, folder=folder)
    if order.out is not None:
        run.publish(plan, result, data, parts, digest, order.out, notes=notes)
    return markdown(result.rows, "DAFT")


def _split(data: Dataset, studies: cohort.Cohort, seed: int) -> protocol.Split:
    """The cohort's own folds where it has a ``fold`` column, else drawn ones."""
    own = np.array([study.fold for study in studies.studies])
    if own[0]:
        return protocol.given(own, data.labels)
    return protocol.split(data.labels, data.groups, data.sites, seed)


def _trunk(
    order: Order, device: torch.device, say: Callable[[str], None], folder: Path
) -> tuple[Trunk | None, list[str]]:
    """A trunk that stays as it is, from a version or from phantoms; None for training end to end."""
    if order.trunk is not None:
        manifest = Manifest.model_validate_json((order.trunk / "manifest.json").read_text())
        network = build(manifest.architecture)
        network.load_state_dict(load_file(order.trunk / manifest.folds[0].file))
        return network.trunk, [f"The trunk is that of {manifest.name} {manifest.version}; only the tails were trained."]
    if order.phantoms:
        say(f"making {order.phantoms} phantoms")
        people = phantoms(order.phantoms, PHANTOM_SEED, Preset.INTERACTION, defaults.GRID, defaults.CHANNELS)
        trunk, explained = run.warm_trunk(people, PHANTOM_RECIPE, order.seed, 8, device, say, folder / "trunk.pt")
        found = ", ".join(f"{name} {share:.0%}" for name, share in explained.items())
        note = (
            f"The trunk was first taught by {order.phantoms} other phantoms to read their latents (share of variance "
            f"explained on those held out: {found}). It then stayed as it was, shared by the folds; each fold trained "
            "the last block and its modulation. The spread of the folds is that of the tails alone."
        )
        return trunk, [note]
    return None, []


def _describe(data: Dataset, path: Path) -> str:
    sites = len(set(data.sites.tolist()))
    kind = "Synthetic patients (phantoms)" if data.oracle is not None else "Patients"
    return f"{kind} of the cohort {path.stem}, {sites} site{'s' if sites > 1 else ''}"


def _code_version() -> str:
    try:
        return version("rlvo-service")
    except PackageNotFoundError:
        return ""


def _key(order: Order, digest: str) -> str:
    given = {name: str(value) for name, value in asdict(order).items()}
    made = given | {"cohort": digest, "layout": prepared.layout()}
    return hashlib.sha256(json.dumps(made, sort_keys=True).encode()).hexdigest()[:16]
