"""API keys: shown once, stored as a hash, revoked without return."""

from __future__ import annotations

from datetime import timedelta

import pytest

from app.database import api_keys
from app.database.api_keys import Scope
from app.database.session import Database, now
from app.sdk.errors import InvalidRequest, Unauthenticated


def test_key_has_its_name_tenant_and_scopes(database: Database) -> None:
    with database.session() as session:
        secret = api_keys.create(session, "pacs", ["read", Scope.PREDICT])
        shared = api_keys.create(session, "dashboard", [Scope.READ], tenant="pacs")
    with database.reading() as session:
        caller = api_keys.authenticate(session, secret)
        assert (caller.name, caller.tenant, caller.scopes) == ("pacs", "pacs", {Scope.READ, Scope.PREDICT})
        assert api_keys.authenticate(session, shared).tenant == "pacs"
        assert [key.name for key in api_keys.listed(session)] == ["pacs", "dashboard"]


def test_secret_is_not_in_the_database(database: Database) -> None:
    with database.session() as session:
        secret = api_keys.create(session, "pacs")
    with database.engine.connect() as connection:
        stored = str(connection.exec_driver_sql("SELECT * FROM api_keys").all())
    assert secret not in stored
    assert secret.removeprefix("rlvo_") not in stored
    assert len(secret) > 40


def test_only_valid_keys_authenticate(database: Database) -> None:
    with database.session() as session:
        expired = api_keys.create(session, "old", expires=now() - timedelta(seconds=1))
        valid = api_keys.create(session, "new", expires=now() + timedelta(hours=1))
        revoked = api_keys.create(session, "gone")
        key_id = next(key.id for key in api_keys.listed(session) if key.name == "gone")
        assert api_keys.revoke(session, key_id)
        assert not api_keys.revoke(session, key_id)
        assert not api_keys.revoke(session, "unknown")
    with database.reading() as session:
        assert api_keys.authenticate(session, valid).name == "new"
        for secret in (expired, revoked, "", "rlvo_", valid + "x", valid[:-1], "\udcff"):
            with pytest.raises(Unauthenticated):
                api_keys.authenticate(session, secret)


@pytest.mark.parametrize(("name", "scopes"), [("pacs", ["admin"]), ("", ["read"]), ("x" * 65, ["read"])])
def test_invalid_key_is_refused(database: Database, name: str, scopes: list[str]) -> None:
    with database.session() as session, pytest.raises(InvalidRequest):
        api_keys.create(session, name, scopes)
