"""An invalid study is refused with advice. Only an audit entry is stored."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import nibabel
import numpy as np
import pytest

from app.sdk import Problem

from .service_process import RunningService, eventually

pytestmark = pytest.mark.xdist_group("e2e")

Parts = dict[str, Any]


def truncated(patient: dict[str, Path], _: Path) -> Parts:
    return {"cta": patient["cta"].read_bytes()[:-5000]}


def text_file(patient: dict[str, Path], _: Path) -> Parts:
    return {"cta": b"Dear colleague, please find the patient's CT attached.\n" * 20}


def rgb(patient: dict[str, Path], folder: Path) -> Parts:
    colours = np.zeros((8, 8, 8), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    nibabel.save(nibabel.Nifti1Image(colours, np.eye(4)), folder / "rgb.nii.gz")
    return {"cta": patient["cta"].read_bytes(), "tmax": (folder / "rgb.nii.gz").read_bytes()}


def series_as_cta(patient: dict[str, Path], folder: Path) -> Parts:
    voxels = np.arange(8 * 8 * 8 * 5, dtype=np.int16).reshape(8, 8, 8, 5)
    nibabel.save(nibabel.Nifti1Image(voxels, np.diag([20, 20, 20, 1])), folder / "4d.nii.gz")
    return {"cta": (folder / "4d.nii.gz").read_bytes()}


def mask_elsewhere(patient: dict[str, Path], folder: Path) -> Parts:
    cta = nibabel.load(patient["cta"])
    shape = (cta.shape[0], cta.shape[1], cta.shape[2] // 2)
    mask = np.zeros(shape, np.uint8)
    mask[4:8, 4:8, 4:8] = 1
    nibabel.save(nibabel.Nifti1Image(mask, cta.affine), folder / "mask.nii.gz")
    return {"cta": patient["cta"].read_bytes(), "vessels": (folder / "mask.nii.gz").read_bytes()}


def clinical(document: str) -> Callable[[dict[str, Path], Path], Parts]:
    return lambda patient, _: {"cta": patient["cta"].read_bytes(), "clinical": document}


def no_volume(patient: dict[str, Path], _: Path) -> Parts:
    return {"clinical": json.dumps({"age": 74})}


def one_file_in_two_fields(patient: dict[str, Path], _: Path) -> Parts:
    return {"cta": patient["cta"].read_bytes(), "ncct": patient["cta"].read_bytes()}


def only_ncct(patient: dict[str, Path], _: Path) -> Parts:
    return {"ncct": patient["ncct"].read_bytes()}


CASES = {
    "truncated": (truncated, 422, "nifti-invalid"),
    "text": (text_file, 422, "nifti-invalid"),
    "rgb": (rgb, 422, "nifti-invalid"),
    "series-as-cta": (series_as_cta, 422, "nifti-invalid"),
    "mask-on-another-grid": (mask_elsewhere, 422, "geometry-mismatch"),
    "one-file-in-two-fields": (one_file_in_two_fields, 422, "modality-implausible"),
    "unknown-field": (clinical('{"age": 74, "mrs_90d": 3}'), 422, "clinical-invalid"),
    "nan": (clinical('{"age": NaN}'), 400, "malformed-json"),
    "infinity": (clinical('{"age": 1e999}'), 400, "malformed-json"),
    "string-for-number": (clinical('{"age": "74"}'), 422, "clinical-invalid"),
    "not-an-object": (clinical("[74]"), 422, "clinical-invalid"),
    "no-volume": (no_volume, 422, "missing-required-input"),
    "another-models-input": (only_ncct, 422, "missing-required-input"),
}


@pytest.mark.parametrize("case", CASES)
def test_invalid_study_is_refused_and_not_stored(
    service: RunningService, patient: dict[str, Path], tmp_path: Path, case: str
) -> None:
    make, status, code = CASES[case]
    parts = make(patient, tmp_path)
    # Figures are drawn later, while the worker is idle, and are files, too.
    unfinished = (
        "SELECT count(*) FROM predictions WHERE status IN ('queued', 'running')"
        " OR (status = 'succeeded' AND figures = 'pending')"
    )
    eventually(lambda: service.query(unfinished) == [(0,)] and not service.scratch(), "idle")
    stored = service.blobs()
    rows = service.query("SELECT count(*) FROM predictions")
    [(audited,)] = service.query("SELECT coalesce(max(seq), 0) FROM audit")

    answer = httpx.post(
        f"{service.url}/v1/predictions",
        files={name: (None if name == "clinical" else "DOE^JANE.nii.gz", part) for name, part in parts.items()},
        timeout=60,
    )

    problem = Problem.model_validate(answer.json())
    assert (answer.status_code, problem.code) == (status, code), answer.text
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert problem.type == f"/problems/{code}"
    assert len(problem.detail) > 20
    assert "DOE" not in answer.text
    assert service.blobs() == stored
    assert service.query("SELECT count(*) FROM predictions") == rows
    entries = service.query("SELECT action, detail FROM audit WHERE seq > ?", audited)
    assert [(action, json.loads(detail)["code"]) for action, detail in entries] == [("prediction.refuse", code)]


@pytest.mark.parametrize(("offset", "status"), [(0, "succeeded"), (1024, "failed")])
def test_values_without_intercept_fail_with_advice(
    service: RunningService, patient: dict[str, Path], tmp_path: Path, offset: int, status: str
) -> None:
    """A GE scanner's padding of -2000 outside a circle; with HU inside it passes, with stored values it does not."""
    cta = nibabel.load(patient["cta"])
    values = np.asarray(cta.dataobj) + offset
    x, y = (np.linspace(-1, 1, n) for n in values.shape[:2])
    values[np.hypot(x[:, None], y) > 1.1] = -2000
    nibabel.save(nibabel.Nifti1Image(values.astype(np.int16), cta.affine), tmp_path / "cta.nii.gz")

    content = (tmp_path / "cta.nii.gz").read_bytes()
    answer = httpx.post(
        f"{service.url}/v1/predictions",
        files={"cta": ("cta.nii.gz", content)},
        headers={"Prefer": "wait=120"},
        timeout=150,
    )

    prediction = httpx.get(service.url + answer.headers["location"], timeout=60).json()
    assert prediction["status"] == status
    assert answer.status_code == (422 if offset else 200)
    if offset:
        assert answer.json()["code"] == prediction["error"]["code"] == "modality-implausible"
        assert "intercept" in answer.json()["detail"]
        assert answer.json()["prediction"] == prediction["id"]


def test_problem_type_has_a_page(service: RunningService) -> None:
    answer = httpx.get(f"{service.url}/problems/geometry-mismatch", timeout=60)
    assert answer.status_code == 200
    assert "do not lie on matching grids" in answer.text
