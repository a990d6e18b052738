"""Errors of CT perfusion on known residue functions, and of the vessel mask on drawn vessel trees.

``python -m bench errors`` prints the tables of docs/imaging.md.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
from scipy import ndimage

from app.imaging import vessels
from app.imaging.perfusion import ctp, summary
from app.imaging.perfusion.deconvolution import haemodynamics
from app.imaging.registration import brain_mask
from app.network.unet import VesselNet
from app.registry.manifest import SegmenterManifest
from tests.imaging import heads

MNI = np.eye(4)
SEGMENTERS = Path(__file__).resolve().parents[1] / "model_store/segmenters"
TISSUES = ((60.0, 4.0), (25.0, 4.8), (20.0, 9.0), (6.0, 12.0))
DELAYS = (0.0, 2.0, 4.0, 6.0)
CORE_DEPTHS = (0.08, 0.15, 0.20, 0.25, 0.28)  # flow of the core / normal flow


def residue_table() -> None:
    """Print CBF and CBV as shares of the truth, and Tmax minus the delay, over all delays; 1000 noisy curves each."""
    print("| residue | CBF, MTT | noise HU | CBF / true (sd) | CBV / true (sd) | Tmax - delay, s (sd) |")
    print("|---|---|---|---|---|---|")
    times = np.arange(0, 60, 1.5)
    rng = np.random.default_rng(0)
    for plug in (False, True):
        for cbf, mtt in TISSUES:
            for noise in (0.0, 1.0):
                cbf_shares, cbv_shares, lateness = [], [], []
                for delay in DELAYS:
                    clean = heads.tissue_curve(times, cbf=cbf, mtt=mtt, delay=delay, plug=plug)
                    curves = clean + noise * rng.standard_normal((1000 if noise else 1, times.size))
                    measured = haemodynamics(curves, heads.gamma_variate(times), 1.5)
                    cbf_shares.append(measured.cbf / cbf)
                    cbv_shares.append(measured.cbv / (cbf * mtt / 60))
                    lateness.append(measured.tmax - delay)
                shares = map(np.concatenate, (cbf_shares, cbv_shares))
                cells = [f"{np.mean(values):.2f} ({np.std(values):.2f})" for values in shares]
                cells.append(f"{np.median(lateness):.1f} ({_robust_sd(np.concatenate(lateness)):.1f})")
                kind = "plug flow" if plug else "exponential"
                print(f"| {kind} | {cbf:.0f}, {mtt:.1f} s | {noise:.0f} | {' | '.join(cells)} |")


def _robust_sd(values: np.ndarray) -> float:
    """Return the standard deviation computed from the middle 68 %, which outliers do not change."""
    low, high = np.percentile(values, [16, 84])
    return float(high - low) / 2


def series_table() -> None:
    """Print the core and the volume with Tmax > 6 s of whole series, with the true volumes."""
    print("\n| step, s | noise HU | core mL (true) | Tmax > 6 s mL (true) | flags |")
    print("|---|---|---|---|---|")
    for step, noise in ((1.0, 3.0), (1.5, 0.0), (1.5, 3.0), (1.5, 6.0), (2.0, 3.0), (3.0, 3.0)):
        series, labels = heads.series(step_s=step, frames=int(60 / step), noise=noise)
        voxel_ml = abs(np.linalg.det(series.affine[:3, :3])) / 1000
        maps = ctp.deconvolve(series, MNI)
        volumes = summary.summarise(maps.by_input(), MNI).summary
        core, delayed = ((labels >= label).sum() * voxel_ml for label in (heads.CORE, heads.PENUMBRA))
        codes = ", ".join(flag.code for flag in maps.flags) or "none"
        numbers = f"{volumes.core_ml:.0f} ({core:.0f}) | {volumes.tmax6_ml:.0f} ({delayed:.0f})"
        print(f"| {step} | {noise:.0f} | {numbers} | {codes} |")


def core_table() -> None:
    """Print the core of whole series by residue function, depth of the core and noise; normal flow is 50."""
    print("\n| residue | flow of the core / normal | noise HU | rCBF in the core, median | core mL (true) |")
    print("|---|---|---|---|---|")
    for plug, depth, noise in itertools.product((False, True), CORE_DEPTHS, (0.0, 3.0, 6.0)):
        core = (depth * heads.HAEMODYNAMICS[heads.NORMAL][0], 10.0, 8.0)
        series, labels = heads.series(noise=noise, core=core, plug=plug)
        voxel_ml = abs(np.linalg.det(series.affine[:3, :3])) / 1000
        maps = ctp.deconvolve(series, MNI)
        found = summary.summarise(maps.by_input(), MNI)
        inside = (labels == heads.CORE) & (maps.cbf.data > 0)
        relative = np.median(maps.cbf.data[inside]) / (found.reference_cbf or np.nan)
        true = (labels == heads.CORE).sum() * voxel_ml
        kind = "plug flow" if plug else "exponential"
        numbers = f"{relative:.2f} | {found.summary.core_ml:.0f} ({true:.0f})"
        print(f"| {kind} | {depth:.2f} | {noise:.0f} | {numbers} |", flush=True)


def vessel_table() -> None:
    """Print the agreement of each segmenter with drawn vessel trees."""
    segmenters = {"rules": vessels.segment, **_trained_segmenters()}
    print(
        "\n| segmenter | voxel mm | noise HU | contrast HU | NCCT | Dice | precision | recall | centre line, "
        "least branch |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for edge, noise, contrast in ((0.6, 15, 350), (0.9, 15, 350), (0.9, 30, 350), (0.9, 15, 220), (1.25, 15, 350)):
        shape = tuple(int(n / edge) for n in (190, 220, 190))
        drawn = heads.angiogram(shape, (edge,) * 3, noise=noise, contrast=contrast)
        near_brain = brain_mask.distance(drawn.cta.affine, shape, MNI) < 3
        truth = drawn.vessels & near_brain
        for (name, segment), bone in itertools.product(segmenters.items(), (None, drawn.ncct)):
            mask = segment(drawn.cta, MNI, bone).data > 0
            both = np.count_nonzero(mask & truth)
            near = ndimage.binary_dilation(mask)
            lowest = min(_share_inside(near, line, drawn.cta.affine, near_brain) for line in drawn.lines)
            dice = 2 * both / (np.count_nonzero(mask) + np.count_nonzero(truth))
            print(
                f"| {name} | {edge} | {noise} | {contrast} | {'yes' if bone else 'no'} | {dice:.2f} "
                f"| {both / max(1, mask.sum()):.2f} | {both / truth.sum():.2f} | {lowest:.2f} |",
                flush=True,
            )


def _trained_segmenters() -> dict[str, vessels.Segmenter]:
    """Return the segmenters of the model store."""
    segmenters = {}
    for path in sorted(SEGMENTERS.glob("*/*/manifest.json")):
        manifest = SegmenterManifest.model_validate_json(path.read_bytes())
        net = VesselNet.from_bytes((path.parent / manifest.file).read_bytes(), manifest.filters)
        segmenters[f"{manifest.name} {manifest.version}"] = vessels.learned_segmenter(net)
    return segmenters


def _share_inside(mask: np.ndarray, line: np.ndarray, affine: np.ndarray, near_brain: np.ndarray) -> float:
    """Return the share of the points of a centre line (n, 3), world mm, near the brain that are inside the mask."""
    at = np.round((line - affine[:3, 3]) / np.diag(affine)[:3]).astype(int)
    at = at[np.all((at >= 0) & (at < mask.shape), axis=1)]
    at = at[near_brain[tuple(at.T)]]
    return float(mask[tuple(at.T)].mean())


def main() -> None:
    residue_table()
    series_table()
    core_table()
    vessel_table()


if __name__ == "__main__":
    main()
