"""Checks of responses, and a finished prediction, for the tests of the API."""

from __future__ import annotations

from datetime import UTC, datetime

import httpx

from app.sdk.types import Decision, Flag, FoldSpread, Input, InputSummary, ModelRef, Prediction, Status


def problem(answer: httpx.Response) -> tuple[int, str]:
    """Checks the form of a problem document; returns its status and code."""
    assert answer.headers["content-type"] == "application/problem+json"
    assert len(answer.content) < 4096
    body = answer.json()
    assert body["type"] == f"/problems/{body['code']}"
    assert body["status"] == answer.status_code
    assert body["trace_id"] == answer.headers["x-trace-id"]
    assert body["title"]
    assert body["detail"]
    return answer.status_code, body["code"]


def prediction(**changes: object) -> Prediction:
    time = datetime(2026, 11, 23, 12, tzinfo=UTC)
    values = {
        "id": "0192f0c4-0000-7000-8000-000000000001",
        "status": Status.SUCCEEDED,
        "model": ModelRef(name="tiny", version="1.0.0", digest="sha256:" + "0" * 64),
        "subject": "S-1",
        "probability": 0.377,
        "interval": FoldSpread(low=0.2, high=0.5),
        "folds": [0.2, 0.5],
        "decision": Decision(refractory=True, threshold=0.22, rule="max F1"),
        "flags": [Flag(code="missing-modality", detail="tmax not given")],
        "inputs": {Input.CTA: InputSummary(sha256="1" * 64, bytes=9, shape=[2, 2, 2], spacing_mm=[1, 1, 1])},
        "created": time,
        "finished": time,
    }
    return Prediction.model_validate(values | changes)
