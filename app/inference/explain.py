"""Explanation of a prediction: contributions that add up to the calibrated log-odds.

Design notes:
- The outer game has imaging as one player, and each clinical variable or group of related variables as one player.
- An absent clinical player takes the values of the manifest's background patients. Absent imaging is no image, or
  the mean training head of a version with a reference head, with its presence bits off.
- A missing bit belongs to its variable, a presence bit to imaging. A missing value is the imputed value with its bit;
  it contributes nothing compared with background patients who miss it too.
- Imaging's value is shared among the modalities, then among voxels, which are summed over regions. Each level sums to
  the level above.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from app.core.display_names import named_quantity
from app.inference.attribution import atlas
from app.inference.attribution.integrated_gradients import smooth, smooth_within, voxel_map
from app.inference.attribution.shapley import Array, ShapleyValues, distribute_remainder, shapley_values
from app.inference.clinical_encoder import Value
from app.inference.ensemble_predictor import EXACT_METHOD, EnsemblePredictor, ExplanationMethod, ValueFunction
from app.inference.model_input import ModelInput
from app.inference.reference_head import ReferenceHead
from app.registry.manifest import Calibration, Clinical, Manifest, VariableKind
from app.sdk.types import Attribution, Channel, ClinicalContribution, ModalityContribution, RegionContribution

MIN_ARTERY_SHARE = 0.25  # least share of artery in a voxel of the model's grid that belongs to the vessel tree
MANIFEST_ROUNDING = 1e-5  # largest rounding error of a background value in the manifest


@dataclass(frozen=True)
class Player:
    """A clinical player: its variables and their columns in the clinical vector."""

    name: str
    variables: tuple[str, ...]
    columns: NDArray[np.intp]


@dataclass(frozen=True)
class Explanation:
    """Contributions and voxel maps of one prediction.

    Attributes:
        attribution: The contributions.
        maps: Each present channel's map (x, y, z) on the MNI grid, which sums to its contribution.
        error: The largest standard error of a clinical contribution; 0 if they are exact.
    """

    attribution: Attribution
    maps: Mapping[Channel, NDArray[np.float32]]
    error: float


def clinical_players(manifest: Manifest) -> list[Player]:
    """Return the clinical players in the manifest's order; a group takes the place of its first variable."""
    variables = manifest.clinical.variables
    starts = np.concatenate([[0], np.cumsum([variable.width for variable in variables])]).astype(int)
    owned: dict[str, list[int]] = {}
    members: dict[str, list[str]] = {}
    for index, variable in enumerate(variables):
        name = variable.group or variable.name
        columns = [*range(starts[index], starts[index + 1]), starts[-1] + index]
        owned.setdefault(name, []).extend(columns)
        members.setdefault(name, []).append(variable.name)
    return [Player(name, tuple(members[name]), np.asarray(columns)) for name, columns in owned.items()]


def presence_bits(manifest: Manifest) -> slice:
    """Return the positions of the presence bits in the clinical vector: the last ones, one per channel."""
    start = manifest.clinical.size
    return slice(start, start + len(manifest.channels))


def explain(
    predictor: EnsemblePredictor,
    manifest: Manifest,
    model_input: ModelInput,
    *,
    maps: bool = True,
    method: ExplanationMethod | None = None,
    reference: ReferenceHead | None = None,
) -> Explanation:
    """Compute the contributions of one model input, with its voxel maps unless ``maps`` is false.

    With a ``reference`` head, no map leaves its mask.
    """
    method = method or ExplanationMethod()
    clinical = clinical_players(manifest)
    present = [index for index, is_present in enumerate(model_input.presence) if is_present]
    seen, mirrored = network_image(model_input, reference), _is_mirrored(model_input, reference)
    raw = predictor.image_shares(seen, model_input.clinical, presence_bits(manifest), present, method)
    value_function = raw.value_function or predictor.value_function(seen)
    outer = _outer_game(value_function, manifest, model_input, clinical, method.budget)
    imaging: list[ModalityContribution] = []
    by_region: list[RegionContribution] = []
    regions = _regions(manifest, model_input)
    voxels: dict[Channel, NDArray[np.float32]] = {}
    maps_of_channels = None if raw.voxels is None else _smoothed(raw.voxels, reference, mirrored=mirrored)
    if present:
        parts = distribute_remainder(raw.channels[present], float(outer.values[-1]))
        for index, part in zip(present, parts, strict=True):
            channel = manifest.channels[index].name
            imaging.append(ModalityContribution(modality=channel, contribution=float(part)))
            if maps_of_channels is not None:
                voxels[channel] = voxel_map(maps_of_channels[index], float(part))
                by_region.extend(_by_region(regions, channel, voxels[channel], model_input.affected))
    by_region.sort(key=lambda part: -abs(part.contribution))
    voxels = voxels if maps else {}
    attribution = Attribution(
        base=outer.base,
        total=outer.total,
        clinical=[
            _contribution(player, float(part), model_input, manifest.clinical)
            for player, part in zip(clinical, outer.values[:-1], strict=True)
        ],
        imaging=imaging,
        regions=by_region,
        method="exact" if method == EXACT_METHOD else "fast",
        error=float(outer.error.max()),
        affected=model_input.affected and model_input.affected.value,
        maps=[
            *(f"{name}-{channel}" for name in ("attribution", "aligned-attribution") for channel in voxels),
            *(["aligned-intracranial"] if voxels and reference is not None else []),
        ],
    )
    return Explanation(attribution, voxels, float(outer.error.max()))


def network_image(model_input: ModelInput, reference: ReferenceHead | None) -> NDArray[np.float32]:
    """What the network sees of a model input: (c, x, y, z) float32."""
    if reference is None:
        return model_input.image
    return reference.to_network(model_input.image, model_input.presence, mirrored=_is_mirrored(model_input, reference))


def _is_mirrored(model_input: ModelInput, reference: ReferenceHead | None) -> bool:
    return reference is not None and reference.is_mirrored(model_input.affected)


def _smoothed(shares: torch.Tensor, reference: ReferenceHead | None, *, mirrored: bool) -> torch.Tensor:
    """Smoothed maps (c, x, y, z) of the patient, from shares of what the network saw; they stay inside the mask."""
    if reference is None:
        return smooth(shares)
    inside = smooth_within(shares, torch.from_numpy(reference.mask))
    return inside.flip(1) if mirrored else inside


def _outer_game(
    value_function: ValueFunction, manifest: Manifest, model_input: ModelInput, clinical: Sequence[Player], budget: int
) -> ShapleyValues:
    """Compute the Shapley values of the clinical players and, last, of imaging."""
    background = np.asarray(manifest.background.vectors, dtype=np.float32)
    bits = presence_bits(manifest)
    owner = np.full(len(model_input.clinical), len(clinical))
    for index, player in enumerate(clinical):
        owner[player.columns] = index

    def game(present: NDArray[np.bool_], rows: NDArray[np.intp]) -> Array:
        absent = background[rows]
        absent[:, bits] = 0.0
        # Values that differ only by the manifest's rounding are equal.
        absent = np.where(np.abs(absent - model_input.clinical) < MANIFEST_ROUNDING, model_input.clinical, absent)
        vectors = np.where(present[:, owner], model_input.clinical, absent).astype(np.float32)
        # Coalitions with equal vectors are evaluated once.
        inputs = np.concatenate([vectors, present[:, -1:]], axis=1, dtype=np.float32)
        distinct, inverse = np.unique(inputs, axis=0, return_inverse=True)
        return log_odds(value_function(distinct[:, :-1], distinct[:, -1] > 0), manifest.calibration)[inverse.ravel()]

    return shapley_values(game, len(clinical) + 1, len(background), budget=budget)


def _regions(manifest: Manifest, model_input: ModelInput) -> NDArray[np.intp]:
    """Return the region of every voxel (x, y, z), with the vessel trees if the patient's arteries are known."""
    grid, names = manifest.grid, [spec.name for spec in manifest.channels]
    regions = atlas.labels(grid.shape, grid.affine)
    if Channel.VESSELS not in names or not model_input.presence[names.index(Channel.VESSELS)]:
        return regions
    index = names.index(Channel.VESSELS)
    spec = manifest.channels[index]
    return atlas.with_vessel_tree(
        regions, model_input.image[index] * spec.std + spec.mean > MIN_ARTERY_SHARE, grid.affine
    )


def _by_region(
    regions: NDArray[np.intp], channel: Channel, values: NDArray[np.float32], affected: str | None
) -> list[RegionContribution]:
    """Sum a map (x, y, z) over the regions that have voxels on this grid."""
    sums, sizes = atlas.region_sums(values, regions), np.bincount(regions.ravel(), minlength=len(atlas.NAMES))
    return [
        RegionContribution(
            region=region, modality=channel, contribution=float(part), side=atlas.relative_side(region, affected)
        )
        for region, part, size in zip(atlas.NAMES, sums, sizes, strict=True)
        if size
    ]


def log_odds(logit: Array, calibration: Calibration) -> Array:
    """Return the calibrated log-odds of mean logits (Platt scaling)."""
    return calibration.slope * logit + calibration.intercept


def _contribution(
    player: Player, contribution: float, model_input: ModelInput, clinical: Clinical
) -> ClinicalContribution:
    shown = {name: model_input.shown.get(name) for name in player.variables}
    own = {variable.name: variable for variable in clinical.variables if variable.own is not None}.get(player.name)
    is_number = own is not None and own.kind is VariableKind.NUMBER and own.unit != "1"
    value: Value | None
    if len(shown) == 1:
        (value,) = shown.values()
    else:
        units = {variable.name: variable.unit for variable in clinical.variables}
        known = [named_quantity(name, given, units[name]) for name, given in shown.items() if given is not None]
        value = ", ".join(known) or None
    return ClinicalContribution(
        variable=player.name,
        value=value,
        contribution=contribution,
        imputed=all(v is None for v in shown.values()),
        label=None if own is None else own.label,
        unit=own.unit if own is not None and is_number else None,
    )
