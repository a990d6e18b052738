"""The same study gives the same number by every interface, and the result survives a restart."""

from __future__ import annotations

import json
import math
import sqlite3
import subprocess
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import nibabel
import numpy as np
import pytest

from app.sdk import Input, Prediction, Status
from app.sdk.types import FiguresState
from tests.deployment import wait

from .service_process import RunningService

pytestmark = pytest.mark.xdist_group("e2e")


@pytest.fixture(scope="module")
def by_client(service: RunningService, study: dict[str, Any]) -> Prediction:
    with service.client() as client:
        return client.predict(**study)


def test_contributions_add_up_to_the_probability(by_client: Prediction) -> None:
    assert by_client.status is Status.SUCCEEDED
    assert by_client.probability is not None
    assert by_client.interval is not None
    assert by_client.interval.low <= by_client.probability <= by_client.interval.high
    attribution = by_client.attribution
    assert attribution is not None
    parts = [part.contribution for part in [*attribution.clinical, *attribution.imaging]]
    total = attribution.base + sum(parts)
    assert math.isclose(total, math.log(by_client.probability / (1 - by_client.probability)), abs_tol=1e-4)


def test_maps_have_the_grid_of_the_sent_volumes(
    service: RunningService, by_client: Prediction, study: dict[str, Any], tmp_path: Path
) -> None:
    assert by_client.attribution is not None
    assert {"attribution-ncct", "attribution-cta"} <= set(by_client.attribution.maps)
    with service.client() as client:
        for modality in (Input.NCCT, Input.CTA):
            saved = nibabel.load(client.map(by_client.id, f"attribution-{modality}", tmp_path))
            sent = nibabel.load(study[modality])
            assert saved.shape == sent.shape
            np.testing.assert_allclose(saved.affine, sent.affine, atol=1e-4)
            assert np.isfinite(saved.get_fdata()).all()


def test_curl_gives_the_same_number(service: RunningService, by_client: Prediction, study: dict[str, Any]) -> None:
    command = ["curl", "--silent", "--fail-with-body", f"{service.url}/v1/predictions"]
    for name in ("ncct", "cta"):
        command += ["--form", f"{name}=@{study[name]}"]
    run = subprocess.run(
        [*command, "--form-string", f"clinical={json.dumps(study['clinical'])}"], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stdout
    assert json.loads(run.stdout)["probability"] == by_client.probability


def test_plain_http_gives_the_same_number(
    service: RunningService, by_client: Prediction, study: dict[str, Any]
) -> None:
    with study["ncct"].open("rb") as ncct, study["cta"].open("rb") as cta:
        answer = httpx.post(
            f"{service.url}/v1/predictions",
            files={
                "cta": ("x.nii.gz", cta, "application/gzip"),
                "ncct": ("y.nii.gz", ncct),
                "clinical": (None, json.dumps(study["clinical"]), "application/json"),
            },
            timeout=60,
        )
    assert answer.status_code == 200, answer.text
    assert answer.json()["probability"] == by_client.probability


def test_command_line_gives_the_same_number(
    service: RunningService, by_client: Prediction, patient: dict[str, Path], tmp_path: Path
) -> None:
    arguments = ["predict", "--ncct", str(patient["ncct"]), "--cta", str(patient["cta"])]
    arguments += ["--clinical", str(patient["clinical"]), "--url", service.url]
    as_json = service.rlvo(*arguments, "--json", "--maps", str(tmp_path / "maps"))
    assert as_json.returncode == 0, as_json.stderr
    assert json.loads(as_json.stdout)["probability"] == by_client.probability
    assert (tmp_path / "maps" / "attribution-cta.nii.gz").is_file()
    as_text = service.rlvo(*arguments)
    assert f"{by_client.probability:.1%}" in as_text.stdout
    assert "Research use only" in as_text.stdout


def test_replay_gives_the_same_number(service: RunningService, by_client: Prediction) -> None:
    run = service.rlvo("replay", by_client.id)
    assert run.returncode == 0, run.stderr
    assert f"stored {by_client.probability:.9f}" in run.stdout
    assert service.rlvo("replay", "0192f3a4-7c1e-7b7e-9d0a-3f5a1c2b4d6e").returncode == 2


def test_prediction_of_an_earlier_release_is_read_and_replayed(
    service: RunningService, study: dict[str, Any], by_client: Prediction
) -> None:
    with service.client() as client:
        prediction_id = client.predict(**study, explain=False).id
        with closing(sqlite3.connect(service.folder / "rlvo.sqlite")) as connection, connection:
            interval = json.dumps({"level": 0.9, "low": 0.001, "high": 0.999})
            connection.execute("UPDATE predictions SET interval = ? WHERE id = ?", (interval, prediction_id))
        assert client.get(prediction_id).interval == by_client.interval
    run = service.rlvo("replay", prediction_id)
    assert run.returncode == 0, run.stderr


def test_one_idempotency_key_makes_one_prediction(service: RunningService, study: dict[str, Any]) -> None:
    with service.client() as client:
        first = client.predict(**study, idempotency_key="once")
        assert client.predict(**study, idempotency_key="once") == first


def test_restart_keeps_predictions_and_maps(service: RunningService, by_client: Prediction, tmp_path: Path) -> None:
    with service.client() as client:
        assert by_client.attribution is not None
        before = client.map(by_client.id, by_client.attribution.maps[0], tmp_path / "before.nii.gz").read_bytes()
        assert service.stop() == 0
        service.start()
        drawn = by_client.model_copy(update={"figures": FiguresState.READY})  # meanwhile, or at the restart
        wait(lambda: client.get(by_client.id) == drawn)
        assert client.map(by_client.id, by_client.attribution.maps[0], tmp_path / "after.nii.gz").read_bytes() == before
        assert by_client.id in {each.id for each in client.list()}
