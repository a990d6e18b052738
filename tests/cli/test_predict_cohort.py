"""`rlvo predict --cohort`: every study once, in a file that grows line by line, whatever interrupts it."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from app.cli import predict_cohort as command
from app.cli.predict_cohort import predict_cohort
from app.sdk.client import Client
from app.sdk.errors import TransportError
from app.sdk.types import ModelRef, Prediction, Status
from app.training.cohort import to_predict
from app.training.errors import CohortFault


def table(folder: Path, *lines: str) -> Path:
    for name in ("a", "b", "c"):
        (folder / f"{name}.nii").write_bytes(name.encode())
    path = folder / "cohort.csv"
    path.write_text("\n".join(("patient,cta,age", *lines)) + "\n")
    return path


class Service(Client):
    """The client's verbs over a service that predicts at once: one prediction per key, as the real one keeps them."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, dict[str, object]]] = []
        self.made: dict[str, str] = {}
        self.away_after = 10**6

    def submit(self, *, on_progress: object = None, idempotency_key: str | None = None, **study: object) -> Prediction:
        if len(self.sent) >= self.away_after:
            raise TransportError
        assert idempotency_key
        self.sent.append((idempotency_key, study))
        return self._prediction(self.made.setdefault(idempotency_key, f"p{len(self.made)}"))

    def wait(self, prediction_id: str, *, seconds: float | None = 0, on_progress: object = None) -> Prediction:
        return self._prediction(prediction_id)

    def _prediction(self, prediction_id: str) -> Prediction:
        model = ModelRef(name="tiny", version="1.0.0", digest="sha256:0")
        return Prediction(
            id=prediction_id, status=Status.SUCCEEDED, model=model, probability=0.25, created="2026-01-01T00:00:00Z"
        )


def run(service: Service, path: Path, out: Path) -> tuple[dict[str, int], int]:
    ticks: list[None] = []
    ended = predict_cohort(service, to_predict(path), out, model=None, explain=False, done=lambda: ticks.append(None))
    return ended, len(ticks)


def test_a_cohort_is_predicted_behind_the_acute_studies(tmp_path: Path) -> None:
    path, service = table(tmp_path, "P1,a.nii,71", "P2,b.nii,"), Service()
    assert run(service, path, tmp_path / "out.csv") == ({"succeeded": 2}, 2)
    lines = list(csv.DictReader((tmp_path / "out.csv").read_text().splitlines()))
    assert [(line["patient"], line["probability"], line["prediction"]) for line in lines] == [
        ("P1", "0.250000", "p0"),
        ("P2", "0.250000", "p1"),
    ]
    sent = service.sent[0][1]
    assert sent["priority"] == "batch"
    assert sent["subject"] == "P1"
    assert sent["clinical"] == {"age": 71}
    assert sent["explain"] is False
    json.dumps(sent["clinical"])


def test_an_interrupted_cohort_goes_on_and_sends_nothing_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "AHEAD", 2)
    path, service = table(tmp_path, "P1,a.nii,71", "P2,b.nii,72", "P3,c.nii,73"), Service()
    service.away_after = 2
    with pytest.raises(TransportError):
        run(service, path, tmp_path / "out.csv")
    done = (tmp_path / "out.csv").read_text()
    assert "P1" in done
    with (tmp_path / "out.csv").open("a") as file:
        file.write("P2,succ")  # cut off within a line
    service.away_after = 10**6
    assert run(service, path, tmp_path / "out.csv") == ({"succeeded": 2}, 3)
    lines = list(csv.DictReader((tmp_path / "out.csv").read_text().splitlines()))
    assert [line["patient"] for line in lines] == ["P1", "P2", "P3"]
    assert len(service.made) == 3  # P2 was sent twice, under one key
    assert run(service, path, tmp_path / "out.csv") == ({}, 3)


def test_another_content_is_another_study(tmp_path: Path) -> None:
    path, service = table(tmp_path, "P1,a.nii,71"), Service()
    run(service, path, tmp_path / "one.csv")
    (tmp_path / "a.nii").write_bytes(b"other")
    run(service, path, tmp_path / "two.csv")
    assert len(service.made) == 2


def test_every_fault_of_the_table_is_told_before_anything_is_sent(tmp_path: Path) -> None:
    path = table(tmp_path, "P1,a.nii,71", "P1,b.nii,72", "P3,,73", "P4,gone.nii,740")
    with pytest.raises(CohortFault) as told:
        to_predict(path)
    faults = str(told.value.args) + str(told.value.__dict__)
    for word in ("row 2", "row 3", "row 4", "row 5"):
        assert word in faults
