"""Predictions in the database, for the tests of queries."""

from __future__ import annotations

from sqlalchemy import update

from app.database import job_state, predictions
from app.database.predictions import Artifact, NewPrediction
from app.database.session import Database
from app.database.tables import PredictionRow
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


def add_answer(database: Database, values: dict[str, object], **changes: object) -> str:
    """Adds a finished prediction whose row has these values, such as a time and a probability; returns its id."""
    new = add_prediction(database, **changes)
    finish(database, new)
    with database.session() as session:
        session.execute(update(PredictionRow).where(PredictionRow.id == new.id).values(**values))
    return new.id
