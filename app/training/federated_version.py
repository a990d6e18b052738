"""Writes the result of a federated fit as a version of its own: a recalibration, or new heads of the folds.

Design notes:
- Only what was fitted differs from the parent: the calibration, or the last linear layer of each fold. The calibration
  of new heads is the parent's, because the fit is on the calibrated scale; threshold and conformal sets are kept.
- A large ridge penalty gives the parent's heads, so that the penalty is the distance to the parent.
- The hashes of the patients are not in the manifest, because no site sends them: ``rlvo evaluate`` cannot know whether
  a cohort was one of the sites.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from app.evaluation import rounds
from app.evaluation.metrics import Array
from app.evaluation.recalibration import Recalibration, Update
from app.evaluation.rounds import Kind, Result
from app.inference import fold_files
from app.registry import signed_json
from app.registry.manifest import Manifest
from app.registry.model_store import StoredVersion
from app.sdk.errors import InvalidRequest
from app.training import head_features, recalibrate_version
from app.training.errors import CohortFault

EXTRA = "federated"


def write(found: Result, parent: StoredVersion, out: Path) -> tuple[Manifest | None, str]:
    """Write the version of a result to ``out``; return its manifest, and a text. None: the test found no update.

    Args:
        found: The result.
        parent: The version of the plan.
        out: New folder ``<model store>/<name>/<version>``.

    Raises:
        CohortFault: ``out`` exists.
        InvalidRequest: The result is of another version, or has too few patients of one outcome.
    """
    if out.exists():
        raise CohortFault([f"{out.parent.name} {out.name} exists; versions never change: give another --version"])
    if found.plan.predictor_digest != parent.digest:
        raise InvalidRequest(f"The result is of {found.plan.predictor}, and not of {parent.name}@{parent.version}")
    lineage: dict[str, object] = {
        "parent": f"{parent.name}@{parent.version}",
        "parent_digest": parent.digest,
        "result_digest": signed_json.digest(found.model_dump(mode="json")),
        "kind": found.plan.kind.value,
        "sites": list(found.sites),
        "left_out": list(found.left_out),
        "patients": found.patients,
        "events": found.events,
        "rounds": found.rounds,
        "ridge": found.plan.ridge,
    }
    if found.plan.kind is Kind.HEADS:
        return _write_heads(found, parent, out, lineage)
    try:
        chosen = rounds.recalibration_of(found)
    except ValueError as error:
        raise InvalidRequest(str(error)) from error
    return _write_recalibration(found, chosen, parent, out, lineage)


def _write_recalibration(
    found: Result, chosen: Recalibration, parent: StoredVersion, out: Path, lineage: dict[str, object]
) -> tuple[Manifest | None, str]:
    where = f"{found.patients} patients of {len(found.sites)} sites, {found.events} with the outcome"
    if chosen.update is Update.NONE:
        return None, (
            f"No update: {where}, do not support an update (closed test, p = {chosen.p_any:.2g}). "
            "No version was written."
        )
    no_labels = np.zeros(0, np.int64)
    manifest = recalibrate_version.recalibrated(
        parent.manifest, chosen, no_labels, np.zeros(0), out.parent.name, out.name
    )
    lineage |= {
        "update": chosen.update.value,
        "p_any": chosen.p_any,
        "intercept_estimate": asdict(chosen.estimates[0]),
        "slope_estimate": asdict(chosen.estimates[1]),
        "shrinkage": chosen.shrinkage,
        "intercept": chosen.intercept,
        "slope": chosen.slope,
    }
    text = (
        f"Federated recalibration: {chosen.update} (closed test, p = {chosen.p_any:.2g}), on {where}.\n"
        f"Log-odds = {chosen.intercept:+.3f} + {chosen.slope:.3f} times the log-odds of the parent.\n"
        "The threshold keeps its probability, and each patient keeps the conformal set."
    )
    return _write(parent, manifest, out, lineage, text), text


def _write_heads(
    found: Result, parent: StoredVersion, out: Path, lineage: dict[str, object]
) -> tuple[Manifest | None, str]:
    manifest = parent.manifest
    if found.plan.columns != (head_features.head_size(manifest) + 1,) * len(manifest.folds):
        raise InvalidRequest("The result does not fit the folds of the version")
    mean, deviation = head_features.standard(manifest)
    slope = manifest.calibration.slope
    if slope == 0:
        raise InvalidRequest("The version gives every patient one probability; its heads cannot be changed")
    changed, weights = {}, 0
    for fold, fit in zip(manifest.folds, found.fits, strict=True):
        change = np.asarray(fit.parameters[1:]) / deviation / slope
        shift = fit.parameters[0] / slope - float(change @ mean)
        content = fold_files.read_verified(parent.folder, fold.file, fold.sha256)
        changed[fold.file] = _changed_head(content, manifest.kind, change, shift)
        weights += len(fit.parameters)
    manifest = manifest.model_copy(
        update={
            "name": out.parent.name,
            "version": out.name,
            "metrics": {},
            "folds": tuple(fold.model_copy(update={"validation_auc": None}) for fold in manifest.folds),
        }
    )
    text = (
        f"Federated fit of {weights} weights of {len(manifest.folds)} heads, on {found.patients} patients of "
        f"{len(found.sites)} sites, {found.events} with the outcome; ridge penalty {found.plan.ridge:g}.\n"
        "Trunk, last block, modulation, calibration, threshold and conformal sets are those of the parent. Validate "
        "the version, and recalibrate it on new patients: the heads were fitted on these."
    )
    return _write(parent, manifest, out, lineage, text, changed), text


def _changed_head(content: bytes, kind: str, change: Array, shift: float) -> bytes:
    """File of a fold whose head has other weights (by ``change`` (c,)) and another intercept."""
    if kind == "logistic":
        fold = json.loads(content)
        coefficients = np.asarray(fold["coefficients"], np.float64) + change
        return json.dumps({"coefficients": coefficients.tolist(), "intercept": fold["intercept"] + shift}).encode()
    tensors = load_tensors(content)
    weight, bias = tensors["head.weight"].double(), tensors["head.bias"].double()
    weight[0, : len(change)] += torch.from_numpy(change)
    bias[0] += shift
    tensors["head.weight"], tensors["head.bias"] = weight.float().contiguous(), bias.float().contiguous()
    return save_tensors(tensors)


def _write(
    parent: StoredVersion,
    manifest: Manifest,
    out: Path,
    lineage: dict[str, object],
    text: str,
    changed: Mapping[str, bytes] | None = None,
) -> Manifest:
    manifest = manifest.model_copy(update={"extra": manifest.extra | {EXTRA: lineage}})
    return recalibrate_version.write_version(parent, manifest, out, _card(parent, manifest, lineage, text), changed)


def _card(parent: StoredVersion, manifest: Manifest, lineage: dict[str, object], text: str) -> str:
    rows = [f"| {name} | {value} |" for name, value in lineage.items() if not isinstance(value, dict)]
    parts = [f"# {manifest.name} {manifest.version}", manifest.intended_use, "## Federated fit"]
    parts += [text.replace("\n", "\n\n"), "\n".join(["| lineage | |", "|---|---|", *rows])]
    return "\n\n".join([*parts, "The card of the parent follows; its metrics do not hold here.", parent.card()])
