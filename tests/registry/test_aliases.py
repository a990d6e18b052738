"""Aliases: their history, the way back, and what a crash in the middle of a move leaves."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from app.registry.model_store import ModelStore
from app.sdk.errors import ModelNotFound
from tests.registry.test_model_store import publish


@pytest.fixture
def registry(tmp_path: Path) -> ModelStore:
    for version in ("1.0.0", "1.1.0", "2.0.0"):
        publish(tmp_path, version)
    return ModelStore(tmp_path)


def test_every_move_is_kept_with_who_made_it(registry: ModelStore) -> None:
    for version, by in (("1.0.0", "ann"), ("1.1.0", "bob"), ("1.1.0", "bob"), ("2.0.0", "ann")):
        registry.set_alias("tiny", "champion", version, by=by)
    registry.set_alias("tiny", "shadow", "1.1.0")
    moves = registry.history("tiny", "champion")
    assert [(move.previous, move.version, move.by) for move in moves] == [
        (None, "1.0.0", "ann"),
        ("1.0.0", "1.1.0", "bob"),
        ("1.1.0", "2.0.0", "ann"),
    ]
    assert [move.at for move in moves] == sorted(move.at for move in moves)
    assert [move.version for move in registry.history("tiny", "shadow")] == ["1.1.0"]
    assert registry.history("tiny", "other") == registry.history("../x", "champion") == []


def test_the_way_back_is_the_version_before(registry: ModelStore) -> None:
    registry.set_alias("tiny", "champion", "1.0.0")
    with pytest.raises(ModelNotFound):
        registry.before("tiny", "champion")
    registry.set_alias("tiny", "champion", "2.0.0")
    assert registry.before("tiny", "champion") == "1.0.0"
    for name, alias in (("tiny", "shadow"), ("other", "champion"), ("../tiny", "champion")):
        with pytest.raises(ModelNotFound):
            registry.before(name, alias)


def test_a_move_that_a_crash_cut_short_never_happened(registry: ModelStore, tmp_path: Path) -> None:
    registry.set_alias("tiny", "champion", "1.0.0")
    log = tmp_path / "tiny" / "aliases.log"
    cut_short = json.loads(log.read_text()) | {"version": "2.0.0", "previous": "1.0.0"}
    with log.open("a") as file:
        file.write(json.dumps(cut_short) + "\n")  # logged, but the rename never came
    assert [move.version for move in registry.history("tiny", "champion")] == ["1.0.0"]
    registry.set_alias("tiny", "champion", "1.1.0")
    with log.open("a") as file:
        file.write('{"alias": "champ')  # cut off within a line
    assert [move.version for move in registry.history("tiny", "champion")] == ["1.0.0", "1.1.0"]
    assert registry.before("tiny", "champion") == "1.0.0"
