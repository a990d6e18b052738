"""Aliases: history, rollback, and the state after a crash during a change."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from app.registry.model_store import ModelStore
from app.sdk.errors import ModelNotFound
from tests.registry.publish import publish


@pytest.fixture
def registry(tmp_path: Path) -> ModelStore:
    for version in ("1.0.0", "1.1.0", "2.0.0"):
        publish(tmp_path, version)
    return ModelStore(tmp_path)


def test_history_has_every_change_with_its_actor(registry: ModelStore) -> None:
    for version, by in (("1.0.0", "ann"), ("1.1.0", "bob"), ("1.1.0", "bob"), ("2.0.0", "ann")):
        registry.set_alias("tiny", "champion", version, by=by)
    registry.set_alias("tiny", "shadow", "1.1.0")
    changes = registry.history("tiny", "champion")
    assert [(change.previous, change.version, change.by) for change in changes] == [
        (None, "1.0.0", "ann"),
        ("1.0.0", "1.1.0", "bob"),
        ("1.1.0", "2.0.0", "ann"),
    ]
    assert [change.at for change in changes] == sorted(change.at for change in changes)
    assert [change.version for change in registry.history("tiny", "shadow")] == ["1.1.0"]
    assert registry.history("tiny", "other") == registry.history("../x", "champion") == []


def test_previous_version_is_that_before_the_last_change(registry: ModelStore) -> None:
    registry.set_alias("tiny", "champion", "1.0.0")
    with pytest.raises(ModelNotFound):
        registry.previous_version("tiny", "champion")
    registry.set_alias("tiny", "champion", "2.0.0")
    assert registry.previous_version("tiny", "champion") == "1.0.0"
    for name, alias in (("tiny", "shadow"), ("other", "champion"), ("../tiny", "champion")):
        with pytest.raises(ModelNotFound):
            registry.previous_version(name, alias)


def test_incomplete_change_after_a_crash_is_ignored(registry: ModelStore, tmp_path: Path) -> None:
    registry.set_alias("tiny", "champion", "1.0.0")
    log = tmp_path / "tiny" / "aliases.log"
    incomplete = json.loads(log.read_text()) | {"version": "2.0.0", "previous": "1.0.0"}
    with log.open("a") as file:
        file.write(json.dumps(incomplete) + "\n")  # logged, but not renamed
    assert [change.version for change in registry.history("tiny", "champion")] == ["1.0.0"]
    registry.set_alias("tiny", "champion", "1.1.0")
    with log.open("a") as file:
        file.write('{"alias": "champ')  # incomplete line
    assert [change.version for change in registry.history("tiny", "champion")] == ["1.0.0", "1.1.0"]
    assert registry.previous_version("tiny", "champion") == "1.0.0"
