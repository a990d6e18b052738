"""Rows of silent trials on SQLite and PostgreSQL: entry, sealed answer, outcome, looks, stop and erasure."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import update

from app.database import followup, job_state, predictions, trials
from app.database.session import Database
from app.database.trial_tables import TrialEntryRow, TrialRow
from app.sdk.errors import Conflict, InternalError, NotFound, Sealed
from app.sdk.followup import OutcomeDraft, ReviewDraft, Verdict
from app.sdk.types import Status
from tests.study import MODEL, new_prediction

NAME = "silent"
PROTOCOL: dict[str, Any] = {
    "model": {"name": MODEL.name, "version": MODEL.version, "digest": MODEL.digest, "other_versions": "refuse"},
    "population": {"tenants": ["pacs"]},
    "holders": [{"name": "a", "public_key": "A"}, {"name": "b", "public_key": "B"}],
}
CIPHERTEXT = bytes(range(256)) * 40


def sealed_prediction(database: Database) -> str:
    """A prediction of the trial with its sealed answer."""
    new = new_prediction(return_address=b"address")
    with database.session() as session:
        predictions.add(session, new)
        study = job_state.start(session, new.id)
        assert study
        assert study.trial
        assert study.trial.holders == ("A", "B")
        result = job_state.PredictionResult(None, None, None, None, [], None, None, {}, sealed=CIPHERTEXT)
        assert job_state.succeed(session, study, result)
    return new.id


@pytest.fixture
def trial(database: Database) -> Database:
    with database.session() as session:
        trials.create(session, NAME, PROTOCOL)
    return database


def test_sealed_answer_is_kept_beside_an_empty_row(trial: Database) -> None:
    prediction_id = sealed_prediction(trial)
    with trial.reading() as session:
        prediction = predictions.find(session, prediction_id, "pacs")
        (entry,) = trials.entries(session, NAME)
        assert predictions.page(session, "pacs").items == [prediction]
        assert list(followup.followed(session, MODEL.name, MODEL.version)) == []
        assert followup.live_scores(session, MODEL.name, MODEL.version) == []
        with pytest.raises(Sealed):
            predictions.artifact(session, prediction_id, "pacs", "report.html")
    assert (prediction.status, prediction.sealed, prediction.probability) == (Status.SUCCEEDED, NAME, None)
    assert prediction.scores is None
    assert prediction.summary == "Sealed: silent trial silent."
    assert (entry.sealed, entry.prediction_id, entry.patient) == (CIPHERTEXT, prediction_id, "pacs/S-1")


def test_outcome_is_recorded_and_a_review_is_refused(trial: Database) -> None:
    prediction_id = sealed_prediction(trial)
    draft = OutcomeDraft(etici="3", rescue_treatment=False, final_stenosis_percent=10.0)
    with trial.session() as session:
        followup.set_outcome(session, prediction_id, "pacs", draft)
        assert trials.note_outcome(session, prediction_id, correction=False) == NAME
        (first,) = trials.entries(session, NAME)
        trials.note_unsealed(session, NAME)
        trials.note_outcome(session, prediction_id, correction=True)
        (second,) = trials.entries(session, NAME)
        with pytest.raises(Sealed):
            followup.add_review(session, prediction_id, "pacs", ReviewDraft(reviewer="R", verdict=Verdict.AGREE))
    assert (first.refractory, first.outcome_changes, first.changed_unsealed) == (False, 0, False)
    assert (second.outcome_changes, second.changed_unsealed) == (1, True)
    assert second.outcome_entered == first.outcome_entered


def test_outcome_of_a_prediction_outside_of_a_trial_has_no_note(trial: Database) -> None:
    new = new_prediction("elsewhere")
    with trial.session() as session:
        predictions.add(session, new)
        assert trials.note_outcome(session, new.id, correction=False) is None
        assert predictions.find(session, new.id, None).sealed is None


def test_erasure_deletes_the_sealed_answer_and_the_flow_still_counts(trial: Database) -> None:
    prediction_id = sealed_prediction(trial)
    with trial.session() as session:
        predictions.erase(session, prediction_id, "pacs")
        assert session.get(TrialEntryRow, prediction_id) is None
        (entry,) = trials.entries(session, NAME)
    assert (entry.erased, entry.sealed, entry.clinical) == (True, None, {})


def test_changed_protocol_stops_the_answers_of_its_sites(trial: Database) -> None:
    """Someone with access to the database puts an own key into the protocol."""
    holders = [*PROTOCOL["holders"][:1], {"name": "b", "public_key": "C"}]
    with trial.session() as session:
        session.execute(update(TrialRow).values(protocol=PROTOCOL | {"holders": holders}))
    with trial.session() as session, pytest.raises(InternalError, match="differs from its hash"):
        predictions.add(session, new_prediction())
    with trial.session() as session, pytest.raises(InternalError):
        predictions.add(session, new_prediction(model=MODEL.model_copy(update={"name": "other"})))


def test_looks_are_made_once_and_a_stopped_trial_seals_nothing(trial: Database) -> None:
    with trial.session() as session:
        trials.add_look(session, NAME, 1, 100, 16, "continue")
        with pytest.raises(Conflict):
            trials.add_look(session, NAME, 1, 101, 16, "continue")
        assert [(one.number, one.patients, one.verdict) for one in trials.looks(session, NAME)] == [
            (1, 100, "continue")
        ]
        with pytest.raises(Conflict, match="runs at one of these sites"):
            trials.create(session, "second", PROTOCOL)
        trials.stop(session, NAME, "done")
        with pytest.raises(Conflict, match="stopped already"):
            trials.stop(session, NAME, "again")
        assert trials.seals(trials.running_at(session, "pacs"), MODEL) is None
        trials.create(session, "second", PROTOCOL)
        assert trials.seals(trials.running_at(session, "pacs"), MODEL) == "second"
        assert [one.name for one in trials.listed(session)] == [NAME, "second"]
        with pytest.raises(NotFound):
            trials.find(session, "unknown")
