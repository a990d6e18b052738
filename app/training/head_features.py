"""Inputs of the heads of a version's folds for the patients of a cohort, standardised by the version itself.

Design notes:
- The head is the last linear layer: of a network on the pooled output of the last block, of a logistic version on the
  clinical vector. Trunk, last block and modulation do not change, so the inputs are computed once.
- Mean and SD are those of the manifest's training patients, which all sites share. Without them, nothing is shifted.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from app.evaluation.metrics import Array
from app.inference import explain
from app.inference.model_version import ModelVersion
from app.network.backends import Precision
from app.registry.manifest import Manifest
from app.training.dataset import Dataset, Vectors, to_model_input
from app.training.site_data import SiteData


def standard(manifest: Manifest) -> tuple[Array, Array]:
    """Mean (c,) and SD (c,) of the inputs of the heads."""
    reference = manifest.out_of_distribution
    if manifest.kind == "logistic" or reference is None:
        size = head_size(manifest)
        return np.zeros(size), np.ones(size)
    covariance = np.linalg.pinv(np.asarray(reference.precision), hermitian=True)
    deviation = np.sqrt(np.clip(np.diag(covariance), 0, None))
    return np.asarray(reference.mean), np.where(deviation > 1e-6, deviation, 1.0)


def head_size(manifest: Manifest) -> int:
    """Inputs of one head, without the intercept."""
    if manifest.kind == "logistic":
        return int(explain.presence_bits(manifest).stop)
    return manifest.architecture.pooled_channels


def add(data: SiteData, folder: Path, manifest: Manifest, cohort: Dataset) -> SiteData:
    """Return the data of a site with the features of its cohort (n patients).

    Args:
        data: Data of the same patients, in the same order.
        folder: Folder of the version.
        manifest: Its manifest.
        cohort: The patients.
    """
    version = ModelVersion.load(folder, manifest, "auto", precision=Precision.FLOAT32)  # sites have other devices
    vectors = Vectors.of(cohort, manifest.clinical)
    mean, deviation = standard(manifest)
    features, logits = [], []
    for row in range(len(cohort)):
        case = to_model_input(cohort, vectors, manifest.clinical, row)
        image = explain.network_image(case, version.reference)
        features.append((version.predictor.head_inputs(image, case.clinical) - mean) / deviation)
        logits.append(explain.log_odds(version.predictor.logits(image, case.clinical), manifest.calibration))
    return replace(data, features=np.stack(features, axis=1).astype(np.float64), fold_log_odds=np.stack(logits, axis=1))
