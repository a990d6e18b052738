"""Why this number: contributions that add up to the calibrated log-odds.

Notable choices:
- The outer game has the clinical variables (a group of related ones is one player) and imaging as one player. The
  absent take the values of the manifest's background patients; absent imaging is no image, presence bits off.
- A missing bit belongs to its variable, a presence bit to imaging. A missing value is what the network saw: the
  imputed value with its bit. It contributes nothing against background patients who miss it too.
- Imaging's value is shared among the present modalities, a modality's among its voxels, and these are summed over
  anatomical regions; each level sums to the one above it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from app.core.display_names import measured
from app.inference.attribution import atlas
from app.inference.attribution.integrated_gradients import voxel_map
from app.inference.attribution.shapley import Array, Shares, shares, to_sum
from app.inference.clinical_encoder import Value, width
from app.inference.ensemble_predictor import EXACT_METHOD, EnsemblePredictor, ExplanationMethod, ValueFunction
from app.inference.model_input import ModelInput
from app.registry.manifest import Calibration, Clinical, Manifest
from app.sdk.types import Attribution, Channel, ClinicalContribution, ModalityContribution, RegionContribution

LUMEN = 0.25
"""Share of a voxel of the model's grid that must be artery for the voxel to belong to the vessel tree."""
ROUNDING = 1e-5
"""What a manifest's decimals may do to a background patient's value."""


@dataclass(frozen=True)
class Player:
    """A clinical player: its name, the variables in it, and the columns of the clinical vector that it owns."""

    name: str
    variables: tuple[str, ...]
    columns: NDArray[np.intp]


@dataclass(frozen=True)
class Explanation:
    """Contributions, and each present channel's map (x, y, z) on the MNI grid, summing to its contribution.

    ``error``: the largest standard error of a clinical contribution, 0 where they are exact.
    """

    attribution: Attribution
    maps: Mapping[Channel, NDArray[np.float32]]
    error: float


def players(manifest: Manifest) -> list[Player]:
    """The clinical players in the order of the manifest's variables, a group at its first variable's place."""
    variables = manifest.clinical.variables
    starts = np.concatenate([[0], np.cumsum([width(variable) for variable in variables])]).astype(int)
    owned: dict[str, list[int]] = {}
    members: dict[str, list[str]] = {}
    for index, variable in enumerate(variables):
        name = variable.group or variable.name
        columns = [*range(starts[index], starts[index + 1]), starts[-1] + index]
        owned.setdefault(name, []).extend(columns)
        members.setdefault(name, []).append(variable.name)
    return [Player(name, tuple(members[name]), np.asarray(columns)) for name, columns in owned.items()]


def presence_bits(manifest: Manifest) -> slice:
    """Where the presence bits lie in the clinical vector: last, one per channel."""
    variables = manifest.clinical.variables
    start = sum(width(variable) for variable in variables) + len(variables)
    return slice(start, start + len(manifest.channels))


def explain(
    committee: EnsemblePredictor,
    manifest: Manifest,
    case: ModelInput,
    *,
    maps: bool = True,
    method: ExplanationMethod | None = None,
) -> Explanation:
    """Contributions of one case; see the module's notes.

    :param maps: also hand back the voxel maps (regions are their sums, so they are made in any case)
    :param method: how they are computed; by default the quick way
    """
    method = method or ExplanationMethod()
    entrants = players(manifest)
    present = [index for index, there in enumerate(case.presence) if there]
    raw = committee.image_shares(case.image, case.clinical, presence_bits(manifest), present, method)
    value_function = raw.value_function or committee.value_function(case.image)
    found = _outer(value_function, manifest, case, entrants, method.budget)
    imaging: list[ModalityContribution] = []
    by_region: list[RegionContribution] = []
    where = _where(manifest, case)
    voxels: dict[Channel, NDArray[np.float32]] = {}
    if present:
        parts = to_sum(raw.channels[present], float(found.values[-1]))
        for index, part in zip(present, parts, strict=True):
            channel = manifest.channels[index].name
            imaging.append(ModalityContribution(modality=channel, contribution=float(part)))
            if raw.voxels is not None:
                voxels[channel] = voxel_map(raw.voxels[index], float(part))
                by_region.extend(_by_region(where, channel, voxels[channel], case.affected))
    by_region.sort(key=lambda part: -abs(part.contribution))
    voxels = voxels if maps else {}
    attribution = Attribution(
        base=found.base,
        total=found.total,
        clinical=[
            _contribution(entrant, float(part), case, manifest.clinical)
            for entrant, part in zip(entrants, found.values[:-1], strict=True)
        ],
        imaging=imaging,
        regions=by_region,
        method="exact" if method == EXACT_METHOD else "fast",
        error=float(found.error.max()),
        affected=case.affected and case.affected.value,
        maps=[f"{name}-{channel}" for name in ("attribution", "aligned-attribution") for channel in voxels],
    )
    return Explanation(attribution, voxels, float(found.error.max()))


def _outer(
    value_function: ValueFunction, manifest: Manifest, case: ModelInput, entrants: Sequence[Player], budget: int
) -> Shares:
    """The outer game; its last player is imaging."""
    background = np.asarray(manifest.background.vectors, dtype=np.float32)
    bits = presence_bits(manifest)
    owner = np.full(len(case.clinical), len(entrants))
    for entrant, player in enumerate(entrants):
        owner[player.columns] = entrant
    line = manifest.calibration

    def game(present: NDArray[np.bool_], rows: NDArray[np.intp]) -> Array:
        absent = background[rows]
        absent[:, bits] = 0.0
        # What differs by no more than the manifest's rounding is the same.
        absent = np.where(np.abs(absent - case.clinical) < ROUNDING, case.clinical, absent)
        vectors = np.where(present[:, owner], case.clinical, absent).astype(np.float32)
        # Who says what the background patient says changes nothing by entering: the same question is asked once.
        asked = np.concatenate([vectors, present[:, -1:]], axis=1, dtype=np.float32)
        distinct, where = np.unique(asked, axis=0, return_inverse=True)
        return log_odds(value_function(distinct[:, :-1], distinct[:, -1] > 0), line)[where.ravel()]

    return shares(game, len(entrants) + 1, len(background), budget=budget)


def _where(manifest: Manifest, case: ModelInput) -> NDArray[np.intp]:
    """The region of every voxel, the arteries in regions of their own where this patient's are known."""
    grid, names = manifest.grid, [spec.name for spec in manifest.channels]
    where = atlas.labels(grid.shape, grid.affine)
    if Channel.VESSELS not in names or not case.presence[names.index(Channel.VESSELS)]:
        return where
    index = names.index(Channel.VESSELS)
    spec = manifest.channels[index]
    return atlas.with_tree(where, case.image[index] * spec.std + spec.mean > LUMEN, grid.affine)


def _by_region(
    where: NDArray[np.intp], channel: Channel, values: NDArray[np.float32], affected: str | None
) -> list[RegionContribution]:
    """A region that has no voxels on this grid is left out."""
    sums, sizes = atlas.sums(values, where), np.bincount(where.ravel(), minlength=len(atlas.NAMES))
    return [
        RegionContribution(region=region, modality=channel, contribution=float(part), side=atlas.side(region, affected))
        for region, part, size in zip(atlas.NAMES, sums, sizes, strict=True)
        if size
    ]


def log_odds(logit: Array, calibration: Calibration) -> Array:
    """Platt scaling: the calibrated log-odds of mean logits."""
    return calibration.slope * logit + calibration.intercept


def _contribution(player: Player, contribution: float, case: ModelInput, clinical: Clinical) -> ClinicalContribution:
    shown = {name: case.shown.get(name) for name in player.variables}
    value: Value | None
    if len(shown) == 1:
        (value,) = shown.values()
    else:
        units = {variable.name: variable.unit for variable in clinical.variables}
        known = [measured(name, said, units[name]) for name, said in shown.items() if said is not None]
        value = ", ".join(known) or None
    return ClinicalContribution(
        variable=player.name, value=value, contribution=contribution, imputed=all(v is None for v in shown.values())
    )
