"""A complete tiny model version: random weights, two folds, two filters, and a 16-cubed grid over the head.

For all tests that need a version to load, serve or run. Its predictions have no meaning.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from app.imaging.model_grid import ChannelSpec, Grid
from app.inference.clinical_encoder import Value
from app.inference.explain import presence_bits
from app.inference.fold_files import LogisticFold
from app.inference.model_input import ModelInput
from app.inference.model_version import save
from app.network.architecture import Architecture, Fusion, Location
from app.network.daft import Network, build
from app.network.resnet import Marks
from app.registry.manifest import (
    Background,
    Calibration,
    Clinical,
    ClinicalVariable,
    Conformal,
    Fold,
    Manifest,
    OutOfDistribution,
    Threshold,
    Training,
    VariableKind,
    schema_of,
)
from app.registry.model_store import ModelStore
from app.sdk.types import Channel

# 16 voxels of 12 x 14 x 12 mm from (-90, -123, -78): the whole head in MNI152.
GRID = Grid(shape=(16, 16, 16), affine=((12, 0, 0, -90), (0, 14, 0, -123), (0, 0, 12, -78), (0, 0, 0, 1)))

CHANNELS = {
    Channel.NCCT: ChannelSpec(name=Channel.NCCT, window=(0, 90), mean=30, std=20),
    Channel.CTA: ChannelSpec(name=Channel.CTA, window=(0, 600), mean=80, std=90, required=True),
    Channel.VESSELS: ChannelSpec(name=Channel.VESSELS, window=(0, 1), mean=0, std=1),
    Channel.TMAX: ChannelSpec(name=Channel.TMAX, window=(0, 16), mean=3, std=3),
    Channel.RCBF: ChannelSpec(name=Channel.RCBF, window=(0, 2), mean=0.8, std=0.4),
}

VARIABLES = (
    ClinicalVariable(name="age", kind=VariableKind.NUMBER, unit="years", imputed=74, mean=73, std=12),
    ClinicalVariable(name="atrial_fibrillation", kind=VariableKind.FLAG, imputed=0.38, mean=0.38, std=0.49),
    ClinicalVariable(name="nihss", kind=VariableKind.NUMBER, imputed=15, mean=15, std=6),
    ClinicalVariable(
        name="smoking",
        kind=VariableKind.CATEGORY,
        categories=("never", "former", "current"),
        category_means=(0.5, 0.3, 0.2),
    ),
    ClinicalVariable(
        name="systolic_bp", kind=VariableKind.NUMBER, unit="mmHg", imputed=148, mean=148, std=22, group="blood pressure"
    ),
    ClinicalVariable(
        name="diastolic_bp", kind=VariableKind.NUMBER, unit="mmHg", imputed=80, mean=80, std=14, group="blood pressure"
    ),
    ClinicalVariable(
        name="perfusion.core_ml", kind=VariableKind.NUMBER, unit="mL", log=True, imputed=20, mean=2.8, std=1.1
    ),
)

EVERY_STUDY = OutOfDistribution(mean=(0.0,) * 16, precision=tuple(tuple(row) for row in np.eye(16).tolist()), limit=0.0)
"""Limit of the distance to the training patients that every study exceeds."""


def tiny_manifest(
    *,
    name: str = "tiny",
    version: str = "1.0.0",
    kind: str = "network",
    channels: Sequence[Channel] = (Channel.NCCT, Channel.CTA),
    variables: Sequence[ClinicalVariable] = VARIABLES,
    fusion: Fusion = Fusion.DAFT,
    location: Location = Location.BLOCK_INPUT,
    folds: int = 2,
    backgrounds: int = 6,
    seed: int = 0,
    unfamiliar: bool = False,
) -> Manifest:
    """The manifest of a tiny version, without files of the folds; ``unfamiliar`` flags every study with a warning."""
    clinical = Clinical(variables=tuple(variables))
    values = sum(len(variable.categories) or 1 for variable in variables)
    size = values + len(variables) + len(channels)
    chance = np.random.default_rng(seed)
    background = chance.normal(size=(backgrounds, size)).round(3)
    background[:, values:] = chance.random((backgrounds, size - values)) < 0.3
    return Manifest(
        schema_version=schema_of(clinical, [CHANNELS[name] for name in channels]),
        name=name,
        version=version,
        kind="logistic" if kind == "logistic" else "network",
        architecture=Architecture(
            fusion=fusion, in_channels=len(channels), clinical_size=size, filters=2, location=location
        ),
        grid=GRID,
        channels=tuple(CHANNELS[channel] for channel in channels),
        clinical=clinical,
        folds=tuple(Fold(file=f"fold-{index}.safetensors", sha256="0" * 64) for index in range(folds)),
        calibration=Calibration(slope=0.8, intercept=-0.5),
        threshold=Threshold(value=0.4, rule="chosen for tests"),
        conformal=Conformal(level=0.9, quantile_negative=0.3, quantile_positive=0.2),
        background=Background(vectors=tuple(tuple(float(x) for x in row) for row in background)),
        out_of_distribution=EVERY_STUDY if unfamiliar else None,
        training=Training(data="none: random weights", synthetic=True, seed=seed),
    )


def random_network(architecture: Architecture, seed: int = 0) -> Network:
    """A network in which each part has an effect: random statistics and affines, and a head that spreads logits."""
    torch.manual_seed(seed)
    network = build(architecture).eval()
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, torch.nn.BatchNorm3d):
                assert module.running_mean is not None
                assert module.running_var is not None
                module.running_mean.normal_(0, 0.2)
                module.running_var.uniform_(0.5, 1.5)
                if module.affine:
                    module.weight.uniform_(0.7, 1.5)
                    module.bias.normal_(0, 0.2)
            if isinstance(module, Marks):
                module.place.normal_(0, 0.3)
        network.head.weight.normal_(0, 1)
    return network


def tiny_version(model_store: Path, **options: object) -> Path:
    """Writes a tiny version into a model store, sets its champion alias, and returns the folder of the version.

    ``options`` are those of `tiny_manifest`.
    """
    manifest = tiny_manifest(**options)  # type: ignore[arg-type]
    seed, count = manifest.training.seed, len(manifest.folds)
    folds: list[Network | LogisticFold]
    if manifest.kind == "logistic":
        chance = np.random.default_rng(seed)
        size = manifest.architecture.clinical_size
        folds = [LogisticFold(tuple(chance.normal(0, 0.3, size)), float(chance.normal())) for _ in range(count)]
    else:
        folds = [random_network(manifest.architecture, seed + index) for index in range(count)]
    folder = model_store / manifest.name / manifest.version
    save(folder, manifest, folds, golden=[tiny_case(manifest)], card="# A tiny version for tests\n")
    ModelStore(model_store).set_alias(manifest.name, "champion", manifest.version)
    return folder


def tiny_case(manifest: Manifest, *, seed: int = 0, absent: Sequence[Channel] = ()) -> ModelInput:
    """A model input on the grid of the version: smooth noise in each channel that is not ``absent``."""
    chance = torch.Generator().manual_seed(seed)
    coarse = torch.randn((1, len(manifest.channels), 6, 6, 6), generator=chance)
    image = torch.nn.functional.interpolate(coarse, size=manifest.grid.shape, mode="trilinear")[0].numpy()
    presence = np.asarray([channel.name not in absent for channel in manifest.channels])
    image[~presence] = 0
    bits = presence_bits(manifest)
    clinical = np.random.default_rng(seed).normal(size=bits.stop).astype(np.float32)
    clinical[bits.start - len(manifest.clinical.variables) : bits.start] = 0
    clinical[bits] = presence
    shown: dict[str, Value | None] = {
        "age": 71.0,
        "atrial_fibrillation": True,
        "nihss": 14,
        "smoking": "never",
        "systolic_bp": 150.0,
        "diastolic_bp": 85.0,
        "perfusion.core_ml": 12.0,
    }
    return ModelInput(image=image, presence=presence, clinical=clinical, shown=shown)
