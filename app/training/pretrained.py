"""Provides a pretrained trunk and last block: from a version, or trained on phantoms.

Design notes:
- The phantoms of pretraining are one memory-mapped file in ``.runs`` of the cohort; every later run reuses it.
- Pretrained weights and features are stored with the checkpoints, so that a resumed run computes neither again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from app.inference import clinical_encoder, defaults, fold_files, preprocess_cache
from app.inference.reference_head import ReferenceHead
from app.network.architecture import Architecture, Fusion
from app.network.daft import Network, build
from app.phantoms import biology
from app.phantoms.biology import Preset
from app.phantoms.scene import Appearance
from app.phantoms.variant import VARIANTS
from app.registry.manifest import Clinical
from app.sdk.errors import ModelNotReady
from app.training import distributed, phantom_drawing, pretraining, provenance, reference, tasks
from app.training.dataset import Dataset, Drawn, Vectors, phantoms
from app.training.errors import CohortFault
from app.training.progress import ProgressReporter
from app.training.tasks import TrainingContext, Views

PHANTOM_SEED = 1_000_003  # of the pretraining phantoms; far from the seed of any cohort
APPEARANCE = Appearance(VARIANTS, scanners=True)
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


def from_phantoms(
    count: int, seed: int, device: torch.device, folder: Path, reporter: ProgressReporter, jobs: int = 1
) -> Pretrained:
    """Network pretrained on ``count`` phantoms.

    ``folder`` is the checkpoint folder of the run; the phantoms are stored in its parent, drawn by ``jobs`` processes.
    """
    path, head = folder / "pretrained.safetensors", folder / "pretrained-reference-head.safetensors"
    if not (path.exists() and head.exists()):
        _pretrain(count, seed, device, path, head, reporter, jobs)
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


def _pretrain(
    count: int, seed: int, device: torch.device, path: Path, head: Path, reporter: ProgressReporter, jobs: int
) -> None:
    data = _phantoms(count, path.parent.parent, reporter, jobs)
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


def _phantoms(count: int, folder: Path, reporter: ProgressReporter, jobs: int) -> Dataset:
    """Pretraining phantoms, drawn into files of ``folder`` at the first call and mapped from them afterwards."""
    made_by = [preprocess_cache.layout(), provenance.code_digest(("imaging", "phantoms"))]
    digest = hashlib.sha256(json.dumps(made_by, sort_keys=True).encode()).hexdigest()[:8]
    path = folder / f"phantoms-{count}-{PHANTOM_SEED}-{digest}.npy"
    paths = [path, *(path.with_name(f"{path.stem}-{part}.npy") for part in ("clots", "protocols"))]
    if distributed.is_first_rank() and not all(each.exists() for each in paths):
        _draw(count, paths, reporter, jobs)
    distributed.barrier()
    images, clots, protocols = (np.load(each, mmap_mode="r") for each in paths)
    return phantoms(
        count,
        PHANTOM_SEED,
        Preset.INTERACTION,
        defaults.GRID,
        defaults.CHANNELS,
        appearance=APPEARANCE,
        drawn=Drawn(images, protocols, clots),
    )


def _draw(count: int, paths: Sequence[Path], reporter: ProgressReporter, jobs: int) -> None:
    """Draw the phantoms into ``paths``: images, clots and protocols."""
    paths[0].parent.mkdir(parents=True, exist_ok=True)
    images, clots, protocols = drafts = [path.with_suffix(".part") for path in paths]
    persons = biology.draw(count, PHANTOM_SEED, Preset.INTERACTION)
    with reporter.stage("phantoms", count) as advance:
        known = phantom_drawing.draw(
            persons,
            PHANTOM_SEED,
            defaults.GRID,
            defaults.CHANNELS,
            APPEARANCE,
            images,
            clots,
            jobs=jobs,
            advance=lambda: advance(1),
        )
    with protocols.open("wb") as file:
        np.save(file, known)
    for draft, path in zip(drafts, paths, strict=True):
        draft.replace(path)


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
