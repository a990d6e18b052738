"""Model store: references, versions, manifests, aliases and added versions."""

from __future__ import annotations

import hashlib
import json
import threading
from pathlib import Path

import pytest
from pydantic import ValidationError

from app.registry.manifest import Manifest
from app.registry.model_store import ModelStore
from app.sdk.errors import AliasConflict, InvalidRequest, ModelNotFound, ModelNotReady
from tests.factory import tiny_manifest
from tests.registry.publish import publish, publish_with_segmenter


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "store"


def test_empty_store_has_no_models(store: Path) -> None:
    registry = ModelStore(store)
    assert registry.names() == []
    assert registry.versions("tiny") == []
    with pytest.raises(ModelNotFound):
        registry.resolve("tiny")


def test_references_select_versions(store: Path) -> None:
    for version in ("1.0.0", "1.2.0", "1.10.0", "2.0.0-rc.1"):
        publish(store, version)
    registry = ModelStore(store)
    registry.set_alias("tiny", "champion", "1.2.0")
    registry.set_alias("tiny", "shadow", "2.0.0-rc.1")
    assert registry.names() == ["tiny"]
    assert [entry.version for entry in registry.versions("tiny")] == ["2.0.0-rc.1", "1.10.0", "1.2.0", "1.0.0"]
    assert registry.resolve("tiny").version == "1.2.0"
    assert registry.resolve("tiny@champion").version == "1.2.0"
    assert registry.resolve("tiny@shadow").version == "2.0.0-rc.1"
    assert registry.resolve("tiny@1.10.0").version == "1.10.0"
    assert registry.aliases("tiny") == {"champion": "1.2.0", "shadow": "2.0.0-rc.1"}


def test_name_without_champion_selects_the_newest_version(store: Path) -> None:
    publish(store, "1.9.0")
    publish(store, "1.10.0")
    assert ModelStore(store).resolve("tiny").version == "1.10.0"
    with pytest.raises(ModelNotFound):
        ModelStore(store).resolve("tiny@champion")


def test_digest_is_that_of_the_manifest(store: Path) -> None:
    content = (publish(store, "1.0.0") / "manifest.json").read_bytes()
    assert ModelStore(store).resolve("tiny").digest == "sha256:" + hashlib.sha256(content).hexdigest()


def test_manifest_of_an_earlier_release_loads_with_its_interval_level(store: Path) -> None:
    folder = publish(store, "1.0.0")
    document = json.loads((folder / "manifest.json").read_text())
    assert "interval_level" not in document
    (folder / "manifest.json").write_text(json.dumps(document | {"interval_level": 0.9}))
    assert ModelStore(store).resolve("tiny").manifest == Manifest.model_validate(document)


@pytest.mark.parametrize(
    "reference",
    [
        "",
        "@",
        "tiny@",
        "tiny@9.9.9",
        "tiny@shadow",
        "other",
        "../tiny",
        "tiny@../1.0.0",
        "tiny@1.0.0/..",
        "TINY",
        "a" * 99,
    ],
)
def test_unknown_reference_is_not_found(store: Path, reference: str) -> None:
    publish(store, "1.0.0")
    if reference == "tiny@":
        assert ModelStore(store).resolve(reference).version == "1.0.0"
        return
    with pytest.raises(ModelNotFound):
        ModelStore(store).resolve(reference)


def test_new_folder_is_found_at_once(store: Path) -> None:
    registry = ModelStore(store)
    assert registry.names() == []
    publish(store, "1.0.0")
    assert registry.resolve("tiny").version == "1.0.0"
    publish(store, "1.1.0")
    assert registry.resolve("tiny").version == "1.1.0"


def test_manifest_is_read_again_only_after_a_change(store: Path) -> None:
    folder = publish(store, "1.0.0")
    registry = ModelStore(store)
    first = registry.resolve("tiny")
    assert registry.resolve("tiny") is first
    changed = json.loads((folder / "manifest.json").read_text()) | {"licence": "other"}
    (folder / "manifest.json").write_text(json.dumps(changed))
    assert registry.resolve("tiny").manifest.licence == "other"
    assert registry.resolve("tiny").digest != first.digest


@pytest.mark.parametrize("content", ["", "{}", "[1]", '{"name": "tiny"}'])
def test_invalid_manifest_is_not_served(store: Path, content: str) -> None:
    publish(store, "1.0.0")
    (publish(store, "1.1.0") / "manifest.json").write_text(content)
    registry = ModelStore(store)
    with pytest.raises(ModelNotReady):
        registry.resolve("tiny@1.1.0")
    assert [entry.version for entry in registry.versions("tiny")] == ["1.0.0"]


def test_version_in_a_folder_of_another_name_is_not_served(store: Path) -> None:
    publish(store, "1.0.0").rename(store / "tiny" / "3.0.0")
    with pytest.raises(ModelNotReady):
        ModelStore(store).resolve("tiny@3.0.0")


def test_alias_changes_only_from_the_expected_version(store: Path) -> None:
    publish(store, "1.0.0")
    publish(store, "2.0.0")
    registry = ModelStore(store)
    registry.set_alias("tiny", "champion", "1.0.0")
    with pytest.raises(AliasConflict):
        registry.set_alias("tiny", "champion", "2.0.0", expected="2.0.0")
    registry.set_alias("tiny", "champion", "2.0.0", expected="1.0.0")
    assert registry.resolve("tiny").version == "2.0.0"
    with pytest.raises(ModelNotFound):
        registry.set_alias("tiny", "champion", "9.0.0")
    for alias in ("", "../x", "1.0.0", "UP"):
        with pytest.raises(InvalidRequest):
            registry.set_alias("tiny", alias, "1.0.0")
    assert registry.aliases("tiny") == {"champion": "2.0.0"}


def test_simultaneous_alias_changes_are_all_kept(store: Path) -> None:
    publish(store, "1.0.0")
    threads = [
        threading.Thread(target=ModelStore(store).set_alias, args=("tiny", f"alias-{number}", "1.0.0"))
        for number in range(12)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(ModelStore(store).aliases("tiny")) == 12
    assert sorted(path.name for path in (store / "tiny").iterdir() if path.is_file()) == ["aliases.json", "aliases.log"]


def test_every_file_is_verified(store: Path) -> None:
    folder = publish(store, "1.0.0")
    registry = ModelStore(store)
    entry = registry.resolve("tiny")
    registry.verify(entry)
    fold = folder / entry.manifest.folds[0].file
    fold.write_bytes(b"other weights")
    with pytest.raises(ModelNotReady):
        registry.verify(entry)
    fold.unlink()
    with pytest.raises(ModelNotReady):
        registry.verify(entry)


def test_added_version_includes_its_segmenter(store: Path, tmp_path: Path) -> None:
    elsewhere, registry = tmp_path / "elsewhere", ModelStore(store)
    folder = publish_with_segmenter(elsewhere)
    source = elsewhere / "segmenters" / "vessels" / "2.0.0"
    source.rename(tmp_path / "away")
    with pytest.raises(ModelNotReady, match="missing"):
        registry.add(folder)
    (tmp_path / "away").rename(source)
    weights = (source / "weights.safetensors").read_bytes()
    (source / "weights.safetensors").write_bytes(weights[:-1])
    with pytest.raises(ModelNotReady, match="sha-256"):
        registry.add(folder)
    assert registry.names() == []
    (source / "weights.safetensors").write_bytes(weights)
    assert registry.add(folder).version == "1.0.0"
    (source / "weights.safetensors").unlink()
    assert (store / "segmenters" / "vessels" / "2.0.0" / "weights.safetensors").read_bytes() == weights
    reference = Manifest.model_validate_json((folder / "manifest.json").read_text()).segmenter
    # The segmenter of the second version is in the store already.
    other = publish(elsewhere, "1.1.0")
    manifest = Manifest.model_validate_json((other / "manifest.json").read_text())
    (other / "manifest.json").write_text(manifest.model_copy(update={"segmenter": reference}).model_dump_json())
    assert registry.add(other).version == "1.1.0"
    assert registry.names() == ["tiny"]


def test_manifest_whose_channels_have_parts_needs_schema_4_and_others_are_written_as_before() -> None:
    plain = tiny_manifest()
    document = plain.model_dump()
    assert all("parts" not in channel for channel in document["channels"])
    document["channels"] = [channel | {"parts": 2} for channel in document["channels"]]
    with pytest.raises(ValidationError, match="parts of voxels need schema_version 4"):
        Manifest.model_validate(document)
    divided = Manifest.model_validate(document | {"schema_version": 4})
    assert Manifest.model_validate_json(divided.model_dump_json()) == divided
    assert [channel.parts for channel in divided.channels] == [2, 2]
    assert divided.model_dump(exclude={"channels", "schema_version"}) == plain.model_dump(
        exclude={"channels", "schema_version"}
    )
