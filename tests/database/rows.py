"""Predictions in the database, for the tests of queries."""

from __future__ import annotations

from app.database import job_state, predictions
from app.database.predictions import Artifact, NewPrediction
from app.database.session import Database
from app.sdk.types import InputSummary
from tests.database.results import result
from tests.study import new_prediction

A, B, C = "a" * 64, "b" * 64, "c" * 64


def summary(digest: str) -> InputSummary:
    return InputSummary(sha256=digest, bytes=5 << 30, shape=[512, 512, 320], spacing_mm=[0.5, 0.5, 0.6])


def add_prediction(database: Database, **changes: object) -> NewPrediction:
    new = new_prediction(**changes)  # type: ignore[arg-type]
    with database.session() as session:
        predictions.add(session, new)
    return new


def finish(database: Database, new: NewPrediction, *artifacts: Artifact) -> None:
    with database.session() as session:
        study = job_state.start(session, new.id)
        assert study
        assert job_state.succeed(session, study, result(artifacts=artifacts))
