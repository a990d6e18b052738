"""Perfusion maps that cannot be right are refused by the running service, or their decision is withheld."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from app.sdk import Client
from app.sdk.errors import ImplausibleModality

from .service_process import RunningService

pytestmark = pytest.mark.xdist_group("e2e")


def study(patient: dict[str, Path], **changed: Path) -> dict[str, Any]:
    volumes = {name: patient[name] for name in ("ncct", "cta", "tmax", "cbf")}
    return {**volumes, **changed, "clinical": json.loads(patient["clinical"].read_text()), "explain": False}


def rewritten(path: Path, folder: Path, values: np.ndarray) -> Path:
    nibabel.save(nibabel.Nifti1Image(values.astype(np.float32), nibabel.load(path).affine), folder / path.name)
    return folder / path.name


def test_tmax_in_tenths_is_refused(service: RunningService, patient: dict[str, Path], tmp_path: Path) -> None:
    tenths = rewritten(patient["tmax"], tmp_path, nibabel.load(patient["tmax"]).get_fdata() * 10)
    with Client(service.url) as client, pytest.raises(ImplausibleModality, match="not tenths"):
        client.predict(**study(patient, tmax=tenths))


def test_blanked_core_withholds_the_decision_and_the_core(
    service: RunningService, patient: dict[str, Path], tmp_path: Path
) -> None:
    tmax, cbf = (nibabel.load(patient[name]).get_fdata() for name in ("tmax", "cbf"))
    core = (tmax > 8) & (cbf > 0)
    maps = {
        "tmax": rewritten(patient["tmax"], tmp_path, np.where(core, np.nan, tmax)),
        "cbf": rewritten(patient["cbf"], tmp_path, np.where(core, np.nan, cbf)),
    }
    with Client(service.url) as client:
        plain = client.predict(**study(patient))
        blanked = client.predict(**study(patient, **maps))
        accepted = client.predict(**study(patient, **maps), accept_warnings=True)
    assert "core-blanked" not in plain.withheld
    assert plain.perfusion
    assert plain.perfusion.core_ml is not None
    assert "core-blanked" in blanked.withheld
    assert blanked.decision is None
    assert blanked.perfusion is None or blanked.perfusion.core_ml is None
    assert accepted.decision is not None
