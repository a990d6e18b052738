"""Reviews add up, an outcome is corrected, and both go with their prediction."""

from __future__ import annotations

import threading

import pytest

from app.database import followup, predictions
from app.database.session import Database
from app.sdk.errors import Erased, NotFinished, PredictionNotFound
from app.sdk.followup import Etici, OutcomeDraft, ReviewDraft, ReviewReason, Verdict
from tests.database.test_predictions import added, finished

AGREE = ReviewDraft(reviewer="R-1", verdict=Verdict.AGREE)
OVERRIDE = ReviewDraft(reviewer="R-1", verdict=Verdict.OVERRIDE, reason=ReviewReason.OTHER, comment="CANARY")
REFRACTORY = OutcomeDraft(etici=Etici.LESS_THAN_HALF, rescue_treatment=True, final_stenosis_percent=72.5)
OPEN = OutcomeDraft(etici=Etici.TWO_THIRDS, rescue_treatment=False)


@pytest.fixture
def prediction(database: Database) -> str:
    new = added(database)
    finished(database, new)
    return new.id


def test_reviews_add_up_and_the_same_twice_is_one(database: Database, prediction: str) -> None:
    for draft, is_new in ((AGREE, True), (AGREE, False), (OVERRIDE, True), (AGREE, True)):
        with database.session() as session:
            review, new = followup.add_review(session, prediction, "pacs", draft)
        assert (review.verdict, new) == (draft.verdict, is_new)
    other = AGREE.model_copy(update={"reviewer": "R-2"})
    with database.session() as session:
        assert followup.add_review(session, prediction, "pacs", other)[1]
    with database.reading() as session:
        found = followup.reviews(session, prediction, "pacs")
    said = [(review.reviewer, review.verdict, review.reason) for review in found]
    assert said == [
        ("R-1", "agree", None),
        ("R-1", "override", "other"),
        ("R-1", "agree", None),
        ("R-2", "agree", None),
    ]
    assert found[1].comment == "CANARY"


def test_an_outcome_is_recorded_and_corrected(database: Database, prediction: str) -> None:
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


def test_only_what_succeeded_can_be_followed_up(database: Database) -> None:
    new = added(database)
    with database.session() as session, pytest.raises(NotFinished):
        followup.add_review(session, new.id, "pacs", AGREE)
    with database.session() as session, pytest.raises(NotFinished):
        followup.set_outcome(session, new.id, "pacs", OPEN)


def test_nobody_follows_up_another_callers_prediction(database: Database, prediction: str) -> None:
    with database.session() as session:
        for ask in (followup.reviews, followup.outcome):
            with pytest.raises(PredictionNotFound):
                ask(session, prediction, "other")
        with pytest.raises(PredictionNotFound):
            followup.add_review(session, prediction, "other", AGREE)


def test_an_erasure_takes_reviews_and_outcome_along(database: Database, prediction: str) -> None:
    with database.session() as session:
        followup.add_review(session, prediction, "pacs", OVERRIDE)
        followup.set_outcome(session, prediction, "pacs", REFRACTORY)
        predictions.erase(session, prediction, "pacs")
    with database.engine.connect() as connection:
        for table in ("reviews", "outcomes"):
            assert connection.exec_driver_sql(f"SELECT * FROM {table}").all() == []
    with database.session() as session, pytest.raises(Erased):
        followup.add_review(session, prediction, "pacs", AGREE)


def test_the_same_review_twice_at_once_is_one(database: Database, prediction: str) -> None:
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
