"""How far the quick explanation of the trained version agrees with the exact one. ``python -m bench agreement``

Phantoms that the version has never seen, at all that they have: every channel, every fact of the record. For each, the
quick rules (the default) and the exact ones (``explain=exact``: every subset of the modalities, integrated gradients in
32 steps, many orders of entry). Judged by:
- clinical contributions: root mean square error of the quick ones, beside the standard error that they state;
- modalities: correlation, mean distance, and how often both name the same largest one;
- maps and regions: correlation of voxels within a channel, and of regions over all channels;
- deletion: what zeroing the tenth of the strongest channel's voxels that a map ranks highest takes away from the
  log-odds that imaging adds or takes, by either map and at random. Here no rule is the judge of the other.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

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

SEED = 7301  # of no phantom that any version was trained on
STORE = Path(__file__).resolve().parents[1] / "model_store"


def patients(manifest: Manifest, count: int) -> list[ModelInput]:
    people, rng, found = biology.draw(count, SEED, Preset.INTERACTION), np.random.default_rng(SEED), []
    for person, image in zip(people, cohort.images(people, SEED, manifest.grid, manifest.channels), strict=True):
        encoded = clinical_encoder.encode(cohort.record(person), manifest.clinical, cohort.measured(person, rng))
        presence = np.ones(len(manifest.channels), dtype=bool)
        vector = np.concatenate([encoded.values, encoded.missing, presence.astype(np.float32)])
        found.append(ModelInput(image.astype(np.float32), presence, vector, shown=encoded.shown))
    return found


def deleted(version: ModelVersion, case: ModelInput, channel: int, ranked: np.ndarray) -> float:
    """Log-odds with a tenth of a channel's voxels zeroed, the first in ``ranked``."""
    image = case.image.copy()
    image[channel].reshape(-1)[ranked[: ranked.size // 10]] = 0
    return version.predict(replace(case, image=image)).log_odds


def correlation(one: np.ndarray, two: np.ndarray) -> float:
    return float(np.corrcoef(one, two)[0, 1])


def main(count: int = 16) -> None:
    entry = ModelStore(STORE).resolve("rlvo-synthetic")
    version, manifest = ModelVersion.load(entry.folder, entry.manifest, "cpu"), entry.manifest
    names, rng = [spec.name for spec in manifest.channels], np.random.default_rng(0)
    errors, stated, shares, largest, voxels, regions, drops = [], [], [], [], [], [], []
    for case in track(patients(manifest, count), "Explaining", transient=True):
        quick, exact = (
            explain.explain(version.committee, manifest, case, method=how)
            for how in (ExplanationMethod(), EXACT_METHOD)
        )
        parts = [np.asarray([each.contribution for each in why.attribution.clinical]) for why in (quick, exact)]
        errors.append(parts[0] - parts[1])
        stated.append(quick.error)
        imaging = [np.asarray([each.contribution for each in why.attribution.imaging]) for why in (quick, exact)]
        shares.append(imaging)
        largest.append(np.abs(imaging[0]).argmax() == np.abs(imaging[1]).argmax())
        voxels.append([correlation(quick.maps[name].ravel(), exact.maps[name].ravel()) for name in names])
        by = [
            {(each.region, each.modality): each.contribution for each in why.attribution.regions}
            for why in (quick, exact)
        ]
        regions.append(correlation(*(np.asarray([part[key] for key in by[1]]) for part in by)))
        channel = int(np.abs(imaging[1]).argmax())
        sign, whole = np.sign(imaging[1][channel]), version.predict(case).log_odds
        orders = [np.argsort(-sign * why.maps[names[channel]].ravel()) for why in (quick, exact)]
        orders.append(rng.permutation(orders[0].size))
        drops.append([sign * (whole - deleted(version, case, channel, order)) for order in orders])
    both = np.asarray(shares)
    apart = both[:, 0] - both[:, 1]
    error, apart, typical = np.sqrt(np.mean(np.square(errors))), np.abs(apart).mean(), np.abs(both[:, 1]).mean()
    print(f"{entry.name}@{entry.version}, {count} phantoms, log-odds")
    print(f"clinical: error {error:.3f} (root mean square); largest stated standard error {np.mean(stated):.3f} (mean)")
    print(
        f"modalities: correlation {correlation(both[:, 0].ravel(), both[:, 1].ravel()):.3f}, mean distance "
        f"{apart:.3f} where a share is {typical:.3f}, same largest {np.sum(largest)} of {count}"
    )
    middle = np.median(np.asarray(voxels), axis=0)
    print("maps, median correlation: " + ", ".join(f"{n} {c:.2f}" for n, c in zip(names, middle, strict=True)))
    print(f"regions: median correlation {np.median(regions):.3f}, least {min(regions):.3f}")
    mean = np.mean(drops, axis=0)
    print(
        f"deletion of a tenth of the strongest channel: quick {mean[0]:.3f}, exact {mean[1]:.3f}, random {mean[2]:.3f}"
    )


if __name__ == "__main__":
    main()
