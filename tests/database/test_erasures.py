"""Erasures are recorded, and the holder of a certificate can check it."""

from __future__ import annotations

import hashlib
import json
from datetime import timedelta
from pathlib import Path

import pytest

from app.database import audit, erasures, followup
from app.database.predictions import Artifact
from app.database.session import Database, now
from app.sdk.errors import Erased, NotFound, PredictionNotFound
from app.sdk.followup import ReviewDraft, Verdict
from app.sdk.types import AuditEntry, Input
from tests.database.rows import A, B, C, add_prediction, finish, summary


def erase(database: Database, prediction_id: str, tenant: str | None = "pacs") -> list[str]:
    with database.session() as session:
        return erasures.erase(session, prediction_id, tenant, actor="pacs", why="request")


def test_certificate_lists_erased_and_shared_blobs(database: Database) -> None:
    first = add_prediction(database, inputs={Input.CTA: summary(A), Input.NCCT: summary(B)})
    add_prediction(database, inputs={Input.CTA: summary(A)})
    finish(database, first, Artifact("maps/attribution-cta.nii.gz", C, 10, "application/gzip"))
    assert erase(database, first.id) == [B, C]
    with database.reading() as session:
        pending = erasures.certificate(session, first.id, "pacs", lambda digest: digest == C)
        done = erasures.certificate(session, first.id, "pacs", lambda digest: False)
        with pytest.raises(PredictionNotFound):
            erasures.certificate(session, first.id, "another", lambda digest: False)
    assert [(blob.sha256, blob.gone) for blob in pending.blobs] == [(B, True), (C, False)]
    assert not pending.complete
    assert done.complete
    assert done.shared == 1
    assert done.entry.detail["why"] == "request"
    assert done.entry.actor == "pacs"


def test_holder_of_a_certificate_can_check_it(database: Database) -> None:
    new = add_prediction(database)
    erase(database, new.id)
    with database.session() as session:
        audit.append(session, "pacs", "prediction.submit", "another")
        entry = erasures.certificate(session, new.id, "pacs", lambda digest: False).entry
        assert audit.verify(session).intact
    assert recomputed(entry) == entry.hash
    assert recomputed(entry.model_copy(update={"detail": {"why": "retention"}})) != entry.hash


def recomputed(entry: AuditEntry) -> str:
    """Hash of the entry, from the certificate alone, as docs/security.md describes it."""
    members = [entry.seq, entry.at.isoformat(), entry.actor, entry.action, entry.target, entry.detail, entry.previous]
    return hashlib.sha256(
        json.dumps(members, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    ).hexdigest()


def test_prediction_that_is_not_erased_has_no_certificate(database: Database) -> None:
    new = add_prediction(database)
    with database.reading() as session, pytest.raises(NotFound):
        erasures.certificate(session, new.id, "pacs", lambda digest: False)


def test_erasure_is_refused_twice_and_for_other_tenants(database: Database) -> None:
    new = add_prediction(database)
    with pytest.raises(PredictionNotFound):
        erase(database, new.id, "another")
    erase(database, new.id)
    with pytest.raises(Erased):
        erase(database, new.id)
    with database.reading() as session:
        assert audit.verify(session).entries == 1


def test_subject_belongs_to_its_tenant(database: Database) -> None:
    ids = [add_prediction(database, subject="S-7").id for _ in range(2)]
    add_prediction(database, subject="S-8")
    add_prediction(database, caller="another", subject="S-7")
    erased = add_prediction(database, subject="S-7")
    erase(database, erased.id)
    with database.reading() as session:
        assert erasures.of_subject(session, "pacs", "S-7") == ids
        assert erasures.of_subject(session, "pacs", "S-9") == []


def test_due_predictions_are_listed_by_the_age_of_their_answer(database: Database) -> None:
    old = [add_prediction(database) for _ in range(4)]
    for new in (old[2], old[0], old[1]):
        finish(database, new)
    soon = now() + timedelta(seconds=1)
    with database.reading() as session:
        assert erasures.due(session, soon, most=2) == [old[2].id, old[0].id]
        assert erasures.due(session, now() - timedelta(hours=1), most=9) == []
        assert erasures.overdue(session, soon) == 1
        assert erasures.overdue(session, now() - timedelta(hours=1)) == 0


def test_no_page_of_the_file_keeps_erased_patient_data(database: Database) -> None:
    if not database.sqlite:
        pytest.skip("on PostgreSQL, VACUUM does this; see docs/security.md")
    canary = "CANARY-7f3a"
    ids = []
    for number in range(40):
        new = add_prediction(database, subject=canary, clinical={"age": f"{canary} {number} " * 40})
        finish(database, new)
        with database.session() as session:
            followup.add_review(
                session, new.id, "pacs", ReviewDraft(reviewer="A", verdict=Verdict.AGREE, comment=f"{canary} {number}")
            )
        ids.append(new.id)
    assert canary in content(database)
    for prediction_id in ids:
        erase(database, prediction_id)
    assert canary not in content(database)


def content(database: Database) -> str:
    """All bytes of the SQLite file, with its free pages."""
    with database.engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA secure_delete").scalar() == 1
    return Path(str(database.url.database)).read_bytes().decode("latin-1")
