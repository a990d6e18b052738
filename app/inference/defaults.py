"""Defaults of a model version: grid, channels, clinical variables and network.

Design notes:
- The grid covers the brain: 40 x 48 x 40 voxels of 4 mm, symmetric about the midline.
- NCCT: each voxel has the highest of its parts of 2 mm. A clot fills parts of 2 mm, but hardly a voxel of 4 mm, so the
  voxel's own value says little about the density of the clot (docs/experiments.md).
- Windows: NCCT 0..100 HU separates clot and calcium; CTA 0..300 HU spans brain to full artery; Tmax 0..16 s; rCBF
  0..2. After normalisation, zero is near healthy brain, so that an absent channel is no outlier.
- The side of the occlusion is no variable: training mirrors the images (app/training/augmentation.py).
"""

from __future__ import annotations

from app.imaging.model_grid import ChannelSpec, Grid
from app.network.architecture import Architecture, BoxPath, Fusion
from app.registry.manifest import Clinical, ClinicalVariable, VariableKind
from app.sdk.types import Channel

GRID = Grid(
    shape=(40, 48, 40),
    affine=((4.0, 0.0, 0.0, -78.0), (0.0, 4.0, 0.0, -112.0), (0.0, 0.0, 4.0, -74.0), (0.0, 0.0, 0.0, 1.0)),
)

BOX = BoxPath(start=(16, 16, 8), size=(24, 24, 24), marks=16)
"""Box around the internal carotid artery, M1 and M2 of the right side: MNI x -14..78, y -48..44, z -42..50 mm."""

CHANNELS = (
    ChannelSpec(name=Channel.NCCT, window=(0.0, 100.0), mean=35.0, std=30.0, parts=2),
    ChannelSpec(name=Channel.CTA, window=(0.0, 300.0), mean=40.0, std=60.0),
    ChannelSpec(name=Channel.VESSELS, window=(0.0, 1.0), mean=0.0, std=0.15),
    ChannelSpec(name=Channel.TMAX, window=(0.0, 16.0), mean=2.0, std=3.0),
    ChannelSpec(name=Channel.RCBF, window=(0.0, 2.0), mean=0.8, std=0.5),
)


def _flag(name: str) -> ClinicalVariable:
    return ClinicalVariable(name=name, kind=VariableKind.FLAG)


def _number(name: str, unit: str, *, log: bool = False, group: str | None = None) -> ClinicalVariable:
    return ClinicalVariable(name=name, kind=VariableKind.NUMBER, unit=unit, log=log, group=group)


def _category(name: str, *categories: str) -> ClinicalVariable:
    means = (0.0,) * len(categories)
    return ClinicalVariable(name=name, kind=VariableKind.CATEGORY, categories=categories, category_means=means)


VARIABLES = (
    _number("age", "years"),
    _category("sex", "female", "male"),
    _flag("atrial_fibrillation"),
    _flag("hypertension"),
    _flag("diabetes"),
    _flag("dyslipidemia"),
    _category("smoking", "never", "former", "current"),
    _flag("coronary_disease"),
    _flag("prior_stroke"),
    _flag("anticoagulant"),
    _number("nihss", "1"),
    _number("systolic_bp", "mmHg"),
    _number("glucose", "mg/dL", log=True),
    _number("onset_to_door", "min", log=True),
    _flag("ivt"),
    _category("occlusion_site", "ica-terminus", "m1-proximal", "m1-distal", "m2"),
    _number("perfusion.core_ml", "mL", log=True, group="perfusion"),
    _number("perfusion.tmax6_ml", "mL", log=True, group="perfusion"),
    _number("perfusion.hypoperfusion_intensity_ratio", "1", group="perfusion"),
)


def architecture(
    fusion: Fusion, clinical: Clinical, *, filters: int = 8, channels: int = len(CHANNELS), box: BoxPath | None = None
) -> Architecture:
    """Architecture for ``channels`` image channels and the clinical vector (values, missing bits, presence bits)."""
    size = clinical.size + len(CHANNELS)
    return Architecture(fusion=fusion, in_channels=channels, clinical_size=size, filters=filters, box=box)
