"""An image side that was taught before the patients came: from a version, or by phantoms.

Notable choices:
- The phantoms that teach are drawn into one file and mapped from it: ten thousand of them are eight gigabytes. The file
  serves every later run of the folder.
- What was taught, and every patient's features, are kept beside the run's checkpoints: a run that is started again
  computes neither twice.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from app.inference import clinical_encoder, defaults, preprocess_cache
from app.network.architecture import Fusion
from app.network.daft import Network, build
from app.phantoms.biology import Preset
from app.registry.manifest import Clinical, Manifest
from app.training import distributed, pretraining, tasks
from app.training.dataset import Dataset, Vectors, phantoms
from app.training.progress import ProgressReporter
from app.training.tasks import TrainingContext, Views

PHANTOM_SEED = 1_000_003  # of the phantoms that teach: far from any cohort's
CHANNEL_NAMES = tuple(channel.name for channel in defaults.CHANNELS)


def of_version(folder: Path) -> tuple[Network, str]:
    """The first fold's network of a version, and a note for the card."""
    manifest = Manifest.model_validate_json((folder / "manifest.json").read_text())
    network = build(manifest.architecture)
    network.load_state_dict(load_file(folder / manifest.folds[0].file))
    note = (
        f"The trunk is that of {manifest.name} {manifest.version}, and so is the last block; only the modulation and "
        "the head were trained."
    )
    return network, note


def by_phantoms(
    count: int, seed: int, device: torch.device, folder: Path, board: ProgressReporter
) -> tuple[Network, str]:
    """A network that ``count`` phantoms have taught, and a note for the card.

    :param folder: of the run's checkpoints; the phantoms lie beside it
    """
    path = folder / "taught.safetensors"
    if not path.exists():
        _teach(count, seed, device, path, board)
    with safe_open(path, "pt") as kept:
        told = json.loads(kept.metadata()["told"])
    network = build(defaults.architecture(Fusion.NONE, Clinical(variables=defaults.VARIABLES)))
    network.load_state_dict(load_file(path))
    found = ", ".join(f"{name} {share:.0%}" for name, share in told.items())
    note = (
        f"Trunk and last block were first taught by {count} other phantoms to read their latents, with no label of "
        f"the outcome (share of variance that the pooled block explains on those held out: {found}). They then stayed "
        "as they were, shared by the folds; each fold trained its modulation and its head. The spread of the folds is "
        "that of the tails alone."
    )
    return network, note


def _teach(count: int, seed: int, device: torch.device, path: Path, board: ProgressReporter) -> None:
    data = _drawn(count, path.parent.parent, board)
    spec = clinical_encoder.fit(data.records, [*defaults.VARIABLES])
    torch.manual_seed(seed)
    network = build(defaults.architecture(Fusion.NONE, spec)).to(device)
    context = TrainingContext(data, Vectors.of(data, spec), defaults.GRID, CHANNEL_NAMES, device)
    explained = pretraining.teach(network, context, seed, board, folder=path.parent)
    _keep(network.state_dict(), path, {"told": json.dumps(explained)})
    distributed.barrier()


def _drawn(count: int, folder: Path, board: ProgressReporter) -> Dataset:
    layout = hashlib.sha256(json.dumps(preprocess_cache.layout(), sort_keys=True).encode()).hexdigest()[:8]
    path = folder / f"phantoms-{count}-{PHANTOM_SEED}-{layout}.npy"
    kind = (count, PHANTOM_SEED, Preset.INTERACTION, defaults.GRID, defaults.CHANNELS)
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        draft, shape = path.with_suffix(".part"), (count, len(defaults.CHANNELS), *defaults.GRID.shape)
        images = np.lib.format.open_memmap(draft, "w+", np.float16, shape)
        with board.stage("phantoms", count) as advance:
            phantoms(*kind, into=images, advance=lambda: advance(1))
        images.flush()
        draft.replace(path)
    return phantoms(*kind, into=np.load(path, mmap_mode="r"), drawn=True)


def views(
    network: Network, context: TrainingContext, count: int, seed: int, path: Path | None, board: ProgressReporter
) -> Views:
    """``tasks.views`` of every patient, from the file ``path`` where it is there, else kept in it."""
    if path is not None and path.exists():
        kept = load_file(path, str(context.device))
        return [(kept[f"features-{view}"], kept[f"vectors-{view}"]) for view in range(count)]
    with board.stage("features", count * len(context.data)) as advance:
        found = tasks.views(network.to(context.device), context, count, seed, lambda: advance(1))
    if path is not None:
        named = {f"features-{view}": pair[0] for view, pair in enumerate(found)}
        named |= {f"vectors-{view}": pair[1] for view, pair in enumerate(found)}
        _keep(named, path)
    return found


def _keep(tensors: dict[str, Tensor], path: Path, told: dict[str, str] | None = None) -> None:
    """Write a file whole or not at all; the first rank does."""
    if distributed.is_first_rank():
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_suffix(".part")
        save_file({name: value.cpu().contiguous() for name, value in tensors.items()}, draft, told)
        draft.replace(path)
