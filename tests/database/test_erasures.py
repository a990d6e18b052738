"""An erasure is on record, and its certificate can be checked by whoever holds it."""

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
from tests.database.test_predictions import A, B, C, added, finished, volume


def erase(database: Database, prediction_id: str, tenant: str | None = "pacs") -> list[str]:
    with database.session() as session:
        return erasures.erase(session, prediction_id, tenant, actor="pacs", why="request")


def test_the_certificate_names_what_was_erased_and_what_stayed(database: Database) -> None:
    first = added(database, inputs={Input.CTA: volume(A), Input.NCCT: volume(B)})
    added(database, inputs={Input.CTA: volume(A)})
    finished(database, first, Artifact("maps/attribution-cta.nii.gz", C, 10, "application/gzip"))
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


def test_whoever_holds_the_certificate_can_check_it(database: Database) -> None:
    new = added(database)
    erase(database, new.id)
    with database.session() as session:
        audit.append(session, "pacs", "prediction.submit", "another")
        entry = erasures.certificate(session, new.id, "pacs", lambda digest: False).entry
        assert audit.verify(session).intact
    assert recomputed(entry) == entry.hash
    assert recomputed(entry.model_copy(update={"detail": {"why": "retention"}})) != entry.hash


def recomputed(entry: AuditEntry) -> str:
    """The entry's hash from the certificate alone, as docs/security.md says it."""
    members = [entry.seq, entry.at.isoformat(), entry.actor, entry.action, entry.target, entry.detail, entry.previous]
    return hashlib.sha256(
        json.dumps(members, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    ).hexdigest()


def test_what_was_not_erased_has_no_certificate(database: Database) -> None:
    new = added(database)
    with database.reading() as session, pytest.raises(NotFound):
        erasures.certificate(session, new.id, "pacs", lambda digest: False)


def test_nothing_is_erased_twice_or_by_another_tenant(database: Database) -> None:
    new = added(database)
    with pytest.raises(PredictionNotFound):
        erase(database, new.id, "another")
    erase(database, new.id)
    with pytest.raises(Erased):
        erase(database, new.id)
    with database.reading() as session:
        assert audit.verify(session).entries == 1


def test_a_subject_is_one_within_its_tenant(database: Database) -> None:
    mine = [added(database, subject="S-7").id for _ in range(2)]
    added(database, subject="S-8")
    added(database, caller="another", subject="S-7")
    erased = added(database, subject="S-7")
    erase(database, erased.id)
    with database.reading() as session:
        assert erasures.of_subject(session, "pacs", "S-7") == mine
        assert erasures.of_subject(session, "pacs", "S-9") == []


def test_what_is_due_is_told_by_age(database: Database) -> None:
    old = [added(database).id for _ in range(3)]
    with database.reading() as session:
        assert erasures.due(session, now() + timedelta(seconds=1), most=2) == old[:2]
        assert erasures.due(session, now() - timedelta(hours=1), most=9) == []


def test_no_page_of_the_file_keeps_an_erased_patient(database: Database) -> None:
    if not database.sqlite:
        pytest.skip("PostgreSQL's own vacuum does this; docs/security.md says how")
    canary = "CANARY-7f3a"
    ids = []
    for number in range(40):
        new = added(database, subject=canary, clinical={"age": f"{canary} {number} " * 40})
        finished(database, new)
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
    """All bytes of the SQLite file, free pages included."""
    with database.engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA secure_delete").scalar() == 1
    return Path(str(database.url.database)).read_bytes().decode("latin-1")
