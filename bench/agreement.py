"""Agreement of the fast explanation of the trained version with the exact one.

``python -m bench agreement`` explains phantoms that the version has not seen, with every channel and every clinical
variable. It compares the fast method (the default) with the exact one (``explain=exact``: every subset of the
modalities, integrated gradients in 32 steps, many orders of the players). Printed:

- clinical contributions: root mean square error of the fast ones, and the standard error that they state;
- modalities: correlation, mean distance, and how often both methods name the same largest one;
- maps and regions: correlation of voxels within a channel, and of regions over all channels;
- deletion: change of the log-odds if the tenth of the strongest channel's voxels that a map ranks highest is set to
  zero, for both maps and at random. This test takes neither method as the reference.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from rich.progress import track

from app.inference import clinical_encoder, explain
from app.inference.ensemble_predictor import EXACT_METHOD, ExplanationMethod
from app.inference.model_input import ModelInput
from app.inference.model_version import ModelVersion
from app.phantoms import biology, cohort
from app.phantoms.biology import Preset
from app.registry.manifest import Manifest
from app.registry.model_store import ModelStore
from bench.model_stores import DEMO, MODEL_STORE

SEED = 7301  # not used in training


@dataclass(frozen=True)
class Comparison:
    """Both explanations of one patient. The first axis of length 2 is fast, exact.

    Attributes:
        clinical_error: Fast minus exact contribution of each clinical variable, log-odds.
        stated_error: Standard error that the fast explanation states.
        imaging: Contributions of the channels (2, c), log-odds.
        voxel_correlation: Correlation of the maps of each channel (c,).
        region_correlation: Correlation of the contributions of all regions.
        deletion: Change of the log-odds by deletion: fast map, exact map, random voxels.
    """

    clinical_error: np.ndarray
    stated_error: float
    imaging: np.ndarray
    voxel_correlation: list[float]
    region_correlation: float
    deletion: list[float]


def draw_patients(manifest: Manifest, count: int) -> list[ModelInput]:
    people, rng, cases = biology.draw(count, SEED, Preset.INTERACTION), np.random.default_rng(SEED), []
    for person, image in zip(people, cohort.images(people, SEED, manifest.grid, manifest.channels), strict=True):
        perfusion = cohort.measured_perfusion(person, rng)
        encoded = clinical_encoder.encode(cohort.record(person), manifest.clinical, perfusion)
        presence = np.ones(len(manifest.channels), dtype=bool)
        vector = np.concatenate([encoded.values, encoded.missing, presence.astype(np.float32)])
        cases.append(ModelInput(image.astype(np.float32), presence, vector, shown=encoded.shown))
    return cases


def log_odds_after_deletion(version: ModelVersion, case: ModelInput, channel: int, ranked: np.ndarray) -> float:
    """Return the log-odds after the first tenth of the voxels in ``ranked`` of one channel is set to zero."""
    image = case.image.copy()
    image[channel].reshape(-1)[ranked[: ranked.size // 10]] = 0
    return version.predict(replace(case, image=image)).log_odds


def correlation(one: np.ndarray, two: np.ndarray) -> float:
    return float(np.corrcoef(one, two)[0, 1])


def compare(version: ModelVersion, case: ModelInput, rng: np.random.Generator) -> Comparison:
    """Explain one patient by both methods."""
    manifest, methods = version.manifest, (ExplanationMethod(), EXACT_METHOD)
    both = [explain.explain(version.predictor, manifest, case, method=method) for method in methods]
    clinical, imaging = (
        np.asarray([[part.contribution for part in getattr(each.attribution, kind)] for each in both])
        for kind in ("clinical", "imaging")
    )
    maps = [[each.maps[spec.name].ravel() for spec in manifest.channels] for each in both]
    regions = [{(part.region, part.modality): part.contribution for part in each.attribution.regions} for each in both]
    channel = int(np.abs(imaging[1]).argmax())
    sign, log_odds = np.sign(imaging[1][channel]), version.predict(case).log_odds
    orders = [np.argsort(-sign * each[channel]) for each in maps]
    orders.append(rng.permutation(orders[0].size))
    return Comparison(
        clinical_error=clinical[0] - clinical[1],
        stated_error=both[0].error,
        imaging=imaging,
        voxel_correlation=[correlation(fast, exact) for fast, exact in zip(*maps, strict=True)],
        region_correlation=correlation(*(np.asarray([values[key] for key in regions[1]]) for values in regions)),
        deletion=[sign * (log_odds - log_odds_after_deletion(version, case, channel, order)) for order in orders],
    )


def main(count: int = 16) -> None:
    entry = ModelStore(MODEL_STORE).resolve(DEMO)
    version, rng = ModelVersion.load(entry.folder, entry.manifest, "cpu"), np.random.default_rng(0)
    cases = draw_patients(entry.manifest, count)
    results = [compare(version, case, rng) for case in track(cases, "Explaining", transient=True)]
    error = np.sqrt(np.mean(np.square([result.clinical_error for result in results])))
    stated = np.mean([result.stated_error for result in results])
    imaging = np.asarray([result.imaging for result in results])
    distance, size = np.abs(imaging[:, 0] - imaging[:, 1]).mean(), np.abs(imaging[:, 1]).mean()
    largest = np.abs(imaging).argmax(axis=2)
    same = int((largest[:, 0] == largest[:, 1]).sum())
    print(f"{entry.name}@{entry.version}, {count} phantoms, log-odds")
    print(f"clinical: root mean square error {error:.3f}; stated largest standard error {stated:.3f} on average")
    print(
        f"modalities: correlation {correlation(imaging[:, 0].ravel(), imaging[:, 1].ravel()):.3f}, mean distance "
        f"{distance:.3f} at a mean size of {size:.3f}, same largest modality in {same} of {count}"
    )
    medians = np.median([result.voxel_correlation for result in results], axis=0)
    parts = ", ".join(f"{spec.name} {value:.2f}" for spec, value in zip(entry.manifest.channels, medians, strict=True))
    print(f"maps, median correlation of voxels: {parts}")
    regions = [result.region_correlation for result in results]
    print(f"regions: median correlation {np.median(regions):.3f}, lowest {min(regions):.3f}")
    fast, exact, at_random = np.mean([result.deletion for result in results], axis=0)
    print(f"deletion, strongest channel: fast map {fast:.3f}, exact map {exact:.3f}, random voxels {at_random:.3f}")


if __name__ == "__main__":
    main()
