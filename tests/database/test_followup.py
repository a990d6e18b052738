"""Reviews are added, an outcome is corrected, and both are erased with their prediction."""

from __future__ import annotations

import threading

import pytest

from app.database import followup, predictions
from app.database.session import Database
from app.sdk.errors import Erased, NotFinished, PredictionNotFound
from app.sdk.followup import Etici, OutcomeDraft, ReviewDraft, ReviewReason, Verdict
from tests.database.rows import add_prediction, finish

AGREE = ReviewDraft(reviewer="R-1", verdict=Verdict.AGREE)
OVERRIDE = ReviewDraft(reviewer="R-1", verdict=Verdict.OVERRIDE, reason=ReviewReason.OTHER, comment="CANARY")
REFRACTORY = OutcomeDraft(etici=Etici.LESS_THAN_HALF, rescue_treatment=True, final_stenosis_percent=72.5)
OPEN = OutcomeDraft(etici=Etici.TWO_THIRDS, rescue_treatment=False)


@pytest.fixture
def prediction(database: Database) -> str:
    new = add_prediction(database)
    finish(database, new)
    return new.id


def test_reviews_are_added_and_a_repetition_is_not(database: Database, prediction: str) -> None:
    for draft, is_new in ((AGREE, True), (AGREE, False), (OVERRIDE, True), (AGREE, True)):
        with database.session() as session:
            review, new = followup.add_review(session, prediction, "pacs", draft)
        assert (review.verdict, new) == (draft.verdict, is_new)
    other = AGREE.model_copy(update={"reviewer": "R-2"})
    with database.session() as session:
        assert followup.add_review(session, prediction, "pacs", other)[1]
    with database.reading() as session:
        reviews = followup.reviews(session, prediction, "pacs")
    assert [(review.reviewer, review.verdict, review.reason) for review in reviews] == [
        ("R-1", "agree", None),
        ("R-1", "override", "other"),
        ("R-1", "agree", None),
        ("R-2", "agree", None),
    ]
    assert reviews[1].comment == "CANARY"


def test_outcome_is_stored_and_corrected(database: Database, prediction: str) -> None:
    with database.reading() as session:
        assert followup.outcome(session, prediction, "pacs") is None
    for draft, refractory in ((REFRACTORY, True), (OPEN, None)):
        with database.session() as session:
            followup.set_outcome(session, prediction, "pacs", draft)
        with database.reading() as session:
            outcome = followup.outcome(session, prediction, "pacs")
        assert outcome is not None
        assert (outcome.etici, outcome.final_stenosis_percent) == (draft.etici, draft.final_stenosis_percent)
        assert outcome.refractory is refractory


def test_only_successful_predictions_have_followup(database: Database) -> None:
    new = add_prediction(database)
    with database.session() as session, pytest.raises(NotFinished):
        followup.add_review(session, new.id, "pacs", AGREE)
    with database.session() as session, pytest.raises(NotFinished):
        followup.set_outcome(session, new.id, "pacs", OPEN)


def test_other_callers_have_no_access_to_followup(database: Database, prediction: str) -> None:
    with database.session() as session:
        for query in (followup.reviews, followup.outcome):
            with pytest.raises(PredictionNotFound):
                query(session, prediction, "other")
        with pytest.raises(PredictionNotFound):
            followup.add_review(session, prediction, "other", AGREE)


def test_erasure_deletes_reviews_and_outcome(database: Database, prediction: str) -> None:
    with database.session() as session:
        followup.add_review(session, prediction, "pacs", OVERRIDE)
        followup.set_outcome(session, prediction, "pacs", REFRACTORY)
        predictions.erase(session, prediction, "pacs")
    with database.engine.connect() as connection:
        for table in ("reviews", "outcomes"):
            assert connection.exec_driver_sql(f"SELECT * FROM {table}").all() == []
    with database.session() as session, pytest.raises(Erased):
        followup.add_review(session, prediction, "pacs", AGREE)


def test_concurrent_equal_reviews_are_one(database: Database, prediction: str) -> None:
    def send() -> None:
        with database.session() as session:
            followup.add_review(session, prediction, "pacs", AGREE)

    threads = [threading.Thread(target=send) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with database.reading() as session:
        assert len(followup.reviews(session, prediction, "pacs")) == 1
