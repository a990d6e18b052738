"""Order, filters and cursors of the list of predictions."""

from __future__ import annotations

import itertools

import pytest

from app.database import followup, predictions
from app.database.session import Database
from app.database.tables import PredictionRow
from app.sdk.errors import InvalidRequest
from app.sdk.followup import ReviewDraft, ReviewReason, Verdict
from app.sdk.sorting import Sort
from tests.database.rows import add_prediction, finish

ROWS = [("b_1", 0.25), ("A-2", 0.25), (None, None), ("c.3", 0.75), ("b_1", None)]
"""Subject and probability, oldest first."""


def pages(database: Database, limit: int, **options: object) -> list[tuple[str | None, float | None]]:
    """Subject and probability of the predictions of all pages."""
    seen: list[tuple[str | None, float | None]] = []
    cursor = None
    with database.reading() as session:
        while True:
            page = predictions.page(session, "pacs", limit=limit, cursor=cursor, **options)  # type: ignore[arg-type]
            seen += [(item.subject, item.probability) for item in page.items]
            cursor = page.next
            if cursor is None:
                return seen


def subjects(database: Database, **options: object) -> list[str | None]:
    return [subject for subject, _ in pages(database, 5, **options)]


@pytest.fixture
def listed(database: Database) -> Database:
    for subject, probability in ROWS:
        new = add_prediction(database, subject=subject)
        if probability is not None:
            finish(database, new)
            with database.session() as session:
                session.get_one(PredictionRow, new.id).probability = probability
    return database


def test_pages_of_every_order_show_each_prediction_once(listed: Database) -> None:
    first, second, nothing, likely, open_one = ROWS
    expected = {
        Sort.NEWEST: [open_one, likely, nothing, second, first],
        Sort.OLDEST: [first, second, nothing, likely, open_one],
        Sort.HIGHEST: [likely, second, first, open_one, nothing],
        Sort.LOWEST: [first, second, likely, nothing, open_one],
    }
    for limit in (1, 2, 100):
        assert {sort: pages(listed, limit, sort=sort) for sort in expected} == expected
    # Databases differ in the order of letters, not in where a missing subject stands.
    ascending = pages(listed, 2, sort=Sort.SUBJECT)
    assert sorted(map(repr, ascending)) == sorted(map(repr, ROWS))
    assert ascending[-1] == nothing
    assert pages(listed, 2, sort=Sort.SUBJECT_DESCENDING) == [*ascending[-2::-1], nothing]


def test_list_is_filtered_by_a_part_of_the_subject(database: Database) -> None:
    for subject in ("S_1", "s_10", "Sx1", None):
        add_prediction(database, subject=subject)
    assert subjects(database, subject_contains="s_1") == ["s_10", "S_1"]  # the underscore is no wildcard
    assert subjects(database, subject_contains="x") == ["Sx1"]


def test_list_shows_the_last_verdict_of_each_reviewer_and_is_filtered_by_it(database: Database) -> None:
    new = add_prediction(database, subject="seen")
    finish(database, new)
    add_prediction(database, subject="unseen")
    assert subjects(database, reviewed=True) == []
    with database.session() as session:
        for verdict in (Verdict.AGREE, Verdict.OVERRIDE):
            draft = ReviewDraft(reviewer="R-1", verdict=verdict, reason=ReviewReason.OTHER)
            followup.add_review(session, new.id, "pacs", draft)
        followup.add_review(session, new.id, "pacs", ReviewDraft(verdict=Verdict.AGREE), "Ana's key")
    assert subjects(database, reviewed=True) == ["seen"]
    assert subjects(database, reviewed=False) == ["unseen"]
    with database.reading() as session:
        (found,) = predictions.page(session, "pacs", reviewed=True).items
        assert predictions.find(session, new.id, "pacs").verdicts == found.verdicts
    assert [(each.reviewer, each.verdict) for each in found.verdicts] == [("R-1", "override"), ("Ana's key", "agree")]


def test_cursor_of_the_documented_form_is_refused_or_read(database: Database) -> None:
    """No such cursor reaches the database with a value that it does not take: no number, or a NUL."""
    of_time, without_value, of_zero = "9" * 48, "1" * 33, f"0{'00' * 8}{'1' * 32}"
    wrong = [f"07ff8{'0' * 44}", f"000{'1' * 32}", f"0ff{'1' * 32}", "f" * 290]
    valid = {
        Sort.NEWEST: {of_time},
        Sort.OLDEST: {of_time},
        Sort.SUBJECT: {without_value},
        Sort.SUBJECT_DESCENDING: {without_value},
        Sort.LOWEST: {without_value, of_zero},
        Sort.HIGHEST: {without_value, of_zero},
    }
    with database.reading() as session:
        for sort, cursor in itertools.product(Sort, [of_time, without_value, of_zero, *wrong]):
            try:
                assert predictions.page(session, "pacs", cursor=cursor, sort=sort).items == []
                read = True
            except InvalidRequest:
                read = False
            assert read == (cursor in valid[sort]), (sort, cursor)
