"""Provides a pretrained trunk and last block: from a version, or trained on phantoms.

Design notes:
- The phantoms of pretraining are one memory-mapped file in ``.runs`` of the cohort; every later run reuses it.
- Pretrained weights and features are stored with the checkpoints, so that a resumed run computes neither again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from app.inference import clinical_encoder, defaults, fold_files, preprocess_cache
from app.inference.reference_head import ReferenceHead
from app.network.architecture import Architecture, Fusion
from app.network.daft import Network, build
from app.phantoms.biology import Preset
from app.phantoms.scene import Appearance
from app.registry.manifest import Clinical
from app.sdk.errors import ModelNotReady
from app.training import distributed, pretraining, provenance, reference, tasks
from app.training.dataset import Dataset, Vectors, phantoms
from app.training.errors import CohortFault
from app.training.progress import ProgressReporter
from app.training.tasks import TrainingContext, Views

PHANTOM_SEED = 1_000_003  # of the pretraining phantoms; far from the seed of any cohort
APPEARANCE = Appearance(variants=48, scanners=True)
"""What varies between the pretraining phantoms, so that the trunk knows more than one anatomy and scanner."""
CHANNEL_NAMES = tuple(channel.name for channel in defaults.CHANNELS)


@dataclass(frozen=True)
class Pretrained:
    """A network whose trunk and last block are reused, the reference head they need, and a note for the model card."""

    network: Network
    reference: ReferenceHead | None
    note: str


def from_version(folder: Path) -> Pretrained:
    """Network of the first fold of the version in ``folder``.

    Raises:
        CohortFault: If the version has no network, or its weights cannot be read.
    """
    manifest = provenance.read_manifest(folder)
    usual = defaults.architecture(Fusion.NONE, manifest.clinical)
    if manifest.kind != "network" or manifest.architecture.filters != usual.filters:
        raise CohortFault(
            [f"--trunk: {folder.name} of {manifest.name} has no image layers of the usual size; give another version"]
        )
    provenance.check_layout(manifest)
    network = build(manifest.architecture)
    try:
        network.load_state_dict(load_file(folder / manifest.folds[0].file))
        reference = fold_files.load_reference(folder, manifest)
    except (OSError, RuntimeError, SafetensorError, ModelNotReady) as error:
        fault = f"--trunk: the weights of {manifest.name} {manifest.version} are missing or damaged"
        raise CohortFault([f"{fault}; restore {manifest.folds[0].file}"]) from error
    note = (
        f"Trunk and last block are those of {manifest.name} {manifest.version}; only the modulation and the head were "
        "trained."
    )
    return Pretrained(network, reference, note)


def from_phantoms(count: int, seed: int, device: torch.device, folder: Path, reporter: ProgressReporter) -> Pretrained:
    """Network pretrained on ``count`` phantoms.

    ``folder`` is the checkpoint folder of the run; the phantoms are stored in its parent.
    """
    path, head = folder / "pretrained.safetensors", folder / "pretrained-reference-head.safetensors"
    if not (path.exists() and head.exists()):
        _pretrain(count, seed, device, path, head, reporter)
    with safe_open(path, "pt") as file:
        explained = json.loads(file.metadata()["explained"])
    network = build(_architecture(Clinical(variables=defaults.VARIABLES)))
    network.load_state_dict(load_file(path))
    shape = (len(defaults.CHANNELS), *defaults.GRID.shape)
    reference_head = ReferenceHead.from_bytes(head.read_bytes(), shape)
    shares = ", ".join(f"{name} {share:.0%}" for name, share in explained.items())
    note = (
        f"Trunk and last block were pretrained on {count} other phantoms to predict their latents, without any outcome "
        f"label (share of variance that the pooled block explains on held-out phantoms: {shares}). They then stayed "
        "frozen and are shared by the folds; each fold trained its modulation and its head. The spread of the folds is "
        "that of modulation and head alone."
    )
    if warning := _too_few(count, explained):
        reporter(warning)
        note = f"{note} {warning}"
    return Pretrained(network, reference_head, note)


def _too_few(count: int, explained: Mapping[str, float]) -> str:
    """Warning if a latent does not vary among the held-out phantoms, so that no epoch has a score; "" otherwise."""
    if np.isfinite(list(explained.values())).all():
        return ""
    return (
        f"WARNING: {count} phantoms are too few for --phantoms. A latent does not vary among those that are held out, "
        "so no epoch could be chosen, and the layers that learn the latents keep their initial weights."
    )


def _architecture(clinical: Clinical) -> Architecture:
    """The pretrained network: all image paths, without a clinical vector."""
    return defaults.architecture(Fusion.NONE, clinical, box=defaults.BOX)


def _pretrain(count: int, seed: int, device: torch.device, path: Path, head: Path, reporter: ProgressReporter) -> None:
    data = _phantoms(count, path.parent.parent, reporter)
    spec = clinical_encoder.fit(data.records, [*defaults.VARIABLES])
    torch.manual_seed(seed)
    network = build(_architecture(spec)).to(device)
    context = TrainingContext(
        data,
        Vectors.of(data, spec),
        defaults.GRID,
        CHANNEL_NAMES,
        device,
        reference=reference.make(data, np.arange(len(data)), defaults.GRID),
        left=reference.left_sided(data),
    )
    explained = pretraining.pretrain(network, context, seed, reporter, folder=path.parent)
    if distributed.is_first_rank():
        assert context.reference is not None
        head.write_bytes(context.reference.to_bytes())
    _save(network.state_dict(), path, {"explained": json.dumps(explained)})
    distributed.barrier()


def _phantoms(count: int, folder: Path, reporter: ProgressReporter) -> Dataset:
    """Pretraining phantoms, drawn into a file of ``folder`` at the first call and mapped from it afterwards."""
    made_by = [preprocess_cache.layout(), provenance.code_digest(("imaging", "phantoms"))]
    digest = hashlib.sha256(json.dumps(made_by, sort_keys=True).encode()).hexdigest()[:8]
    path = folder / f"phantoms-{count}-{PHANTOM_SEED}-{digest}.npy"
    halved = tuple(length // 2 for length in defaults.GRID.shape)
    shapes: dict[Path, tuple[type, tuple[int, ...]]] = {
        path: (np.float16, (count, len(defaults.CHANNELS), *defaults.GRID.shape)),
        path.with_name(f"{path.stem}-clots.npy"): (np.float16, (count, *halved)),
        path.with_name(f"{path.stem}-protocols.npy"): (np.float64, (count, len(defaults.CHANNELS) + 3)),
    }
    if distributed.is_first_rank() and not all(each.exists() for each in shapes):
        _draw(count, shapes, reporter)
    distributed.barrier()
    images, clots, protocols = (np.load(each, mmap_mode="r") for each in shapes)
    return _drawn(count, images, clots, protocols, drawn=True)


def _draw(count: int, shapes: Mapping[Path, tuple[type, tuple[int, ...]]], reporter: ProgressReporter) -> None:
    """Draw the phantoms into the files ``shapes``: images, clots and protocols, each with its type and shape."""
    next(iter(shapes)).parent.mkdir(parents=True, exist_ok=True)
    drafts = {path.with_suffix(".part"): path for path in shapes}
    arrays = [np.lib.format.open_memmap(draft, "w+", *shapes[path]) for draft, path in drafts.items()]
    with reporter.stage("phantoms", count) as advance:
        _drawn(count, *arrays, drawn=False, advance=lambda: advance(1))
    for array, (draft, path) in zip(arrays, drafts.items(), strict=True):
        array.flush()
        draft.replace(path)


def _drawn(
    count: int,
    images: NDArray[np.float16],
    clots: NDArray[np.float16],
    protocols: NDArray[np.float64],
    *,
    drawn: bool,
    advance: Callable[[], None] = lambda: None,
) -> Dataset:
    return phantoms(
        count,
        PHANTOM_SEED,
        Preset.INTERACTION,
        defaults.GRID,
        defaults.CHANNELS,
        appearance=APPEARANCE,
        into=images,
        clots_into=clots,
        protocols_into=protocols,
        drawn=drawn,
        advance=advance,
    )


def views(
    network: Network, context: TrainingContext, count: int, seed: int, path: Path | None, reporter: ProgressReporter
) -> Views:
    """``tasks.views`` of every patient; the features are loaded from the file ``path`` if it exists, else stored there.

    The splits of a run share the features. The clinical vectors depend on the development patients of a split, so they
    are in no file.
    """
    if path is not None and path.exists():
        stored = load_file(path, str(context.device))
        vectors = tasks.view_vectors(context, count, seed)
        return [(stored[f"features-{view}"], vectors[view]) for view in range(count)]
    with reporter.stage("features", count * len(context.data)) as advance:
        computed = tasks.views(network.to(context.device), context, count, seed, lambda: advance(1))
    if path is not None:
        _save({f"features-{view}": pair[0] for view, pair in enumerate(computed)}, path)
    return computed


def _save(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write a file atomically, on the first rank only."""
    if distributed.is_first_rank():
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_suffix(".part")
        save_file({name: value.cpu().contiguous() for name, value in tensors.items()}, draft, metadata)
        draft.replace(path)
