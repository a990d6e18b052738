"""A version that is added consists of regular files, and its manifest can be loaded."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from app.registry.manifest import Manifest
from app.registry.model_store import ModelStore
from app.sdk.errors import ModelNotFound, ModelNotReady
from tests.registry.publish import publish, publish_with_segmenter

MODEL_STORE = Path(__file__).resolve().parents[2] / "model_store"
SHIPPED = sorted(path.parent for path in MODEL_STORE.glob("rlvo-*/*/manifest.json"))
SECRET = "AWS_SECRET_ACCESS_KEY=of-the-operator"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A version elsewhere, with a card."""
    folder = publish(tmp_path / "elsewhere", "1.0.0")
    (folder / "card.md").write_text("# A card\n")
    return folder


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "secret"
    path.write_text(SECRET)
    return path


def link(folder: Path, name: str, target: Path) -> None:
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(target)


def content(store: Path) -> str:
    return "".join(path.read_text(errors="replace") for path in store.rglob("*") if path.is_file())


@pytest.mark.parametrize("name", ["card.md", "manifest.sig", "manifest.json", "fold-0.safetensors"])
def test_link_in_place_of_a_file_is_refused(folder: Path, secret: Path, tmp_path: Path, name: str) -> None:
    link(folder, name, secret)
    with pytest.raises(ModelNotReady, match=f"{name} .*not a link"):
        ModelStore(tmp_path / "store").add(folder)
    assert SECRET not in content(tmp_path / "store")
    assert ModelStore(tmp_path / "store").names() == []


@pytest.mark.parametrize("target", ["/proc/self/environ", "card-2.md", "/not/there"])
def test_link_to_any_place_is_refused(folder: Path, tmp_path: Path, target: str) -> None:
    (folder / "card-2.md").write_text("# Another card\n")
    link(folder, "card.md", Path(target))
    with pytest.raises(ModelNotReady, match=r"card\.md .*not a link"):
        ModelStore(tmp_path / "store").add(folder)


@pytest.mark.parametrize("kind", ["pipe", "folder"])
@pytest.mark.parametrize("name", ["card.md", "manifest.json", "fold-0.safetensors"])
def test_file_that_is_not_regular_is_refused(folder: Path, tmp_path: Path, kind: str, name: str) -> None:
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name) if kind == "pipe" else (folder / name).mkdir()
    with pytest.raises(ModelNotReady, match="regular file"):
        ModelStore(tmp_path / "store").add(folder)


def test_large_card_is_refused(folder: Path, tmp_path: Path) -> None:
    with (folder / "card.md").open("wb") as file:
        file.truncate(5 * 2**20)
    with pytest.raises(ModelNotReady, match=r"card\.md .*larger"):
        ModelStore(tmp_path / "store").add(folder)


def test_card_that_is_no_text_is_refused(folder: Path, tmp_path: Path) -> None:
    (folder / "card.md").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ModelNotReady, match="UTF-8"):
        ModelStore(tmp_path / "store").add(folder)


@pytest.mark.parametrize("part", ["segmenters", "segmenters/vessels", "segmenters/vessels/2.0.0"])
def test_linked_folder_of_a_segmenter_is_refused(tmp_path: Path, part: str) -> None:
    folder = publish_with_segmenter(tmp_path / "elsewhere")
    real = tmp_path / "elsewhere" / part
    real.rename(tmp_path / "real")
    real.symlink_to(tmp_path / "real")
    with pytest.raises(ModelNotReady, match="link"):
        ModelStore(tmp_path / "store").add(folder)


def test_path_to_the_folder_may_contain_links(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "latest").symlink_to(folder)
    entry = ModelStore(tmp_path / "store").add(tmp_path / "latest")
    assert entry.card() == "# A card\n"
    assert (entry.folder / "card.md").stat().st_mode & 0o777 == 0o644


def test_version_without_a_card_is_added(tmp_path: Path) -> None:
    assert ModelStore(tmp_path / "store").add(publish(tmp_path / "elsewhere", "1.0.0")).card() == ""


def test_link_in_the_store_is_not_served_as_a_card(folder: Path, secret: Path, tmp_path: Path) -> None:
    entry = ModelStore(tmp_path / "store").add(folder)
    link(entry.folder, "card.md", secret)
    assert entry.card() == ""


# Manifests ----------------------------------------------------------------------------------------------------------


def numbers(document: Any, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    """Paths of all numbers of a document; of a list, only those of its first entry."""
    if isinstance(document, dict):
        return [found for key, value in document.items() for found in numbers(value, (*path, key))]
    if isinstance(document, list):
        return numbers(document[0], (*path, 0)) if document else []
    return [path] if isinstance(document, int | float) and not isinstance(document, bool) else []


def changed(document: dict[str, Any], path: tuple[str | int, ...], value: object) -> str:
    document = copy.deepcopy(document)
    inner: Any = document
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return json.dumps(document)


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((MODEL_STORE / "rlvo-synthetic" / "1.0.0" / "manifest.json").read_text())
    loaded.pop("interval_level", None)
    return loaded


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e300, -1e300, 10**40, "1e999"])
def test_no_number_of_a_manifest_is_unbounded(document: dict[str, Any], value: object, tmp_path: Path) -> None:
    folder = tmp_path / "1.0.0"
    folder.mkdir()
    for path in numbers(document):
        if path[0] == "extra":
            continue
        (folder / "manifest.json").write_text(changed(document, path, value))
        with pytest.raises(ModelNotReady, match="cannot read the manifest") as refusal:
            ModelStore(tmp_path / "store").add(folder)
        assert len(refusal.value.detail) < 400, path


Change = Callable[[dict[str, Any]], None]


def put(path: str, value: object) -> Change:
    def change(document: dict[str, Any]) -> None:
        *outer, last = path.split(".")
        inner: Any = document
        for key in outer:
            inner = inner[int(key) if key.isdigit() else key]
        inner[int(last) if last.isdigit() else last] = value

    return change


UNUSABLE: dict[str, Change] = {
    "more filters than memory": put("architecture.filters", 100_000),
    "no filter": put("architecture.filters", 0),
    "a long clinical vector": put("architecture.clinical_size", 10**6),
    "another size of the clinical vector": put("architecture.clinical_size", 3),
    "a modulation of nothing": lambda d: d["architecture"].update(scale=False, shift=False),
    "a grid of one voxel": put("grid.shape", [1, 1, 1]),
    "a grid larger than memory": put("grid.shape", [1024, 1024, 1024]),
    "a negative grid": put("grid.shape", [-45, 54, 45]),
    "a singular affine": put("grid.affine.0.0", 0),
    "a rotated affine": put("grid.affine.0.1", 1.5),
    "an affine with another last row": put("grid.affine.3", [0, 0, 1, 1]),
    "an affine of three rows": lambda d: d["grid"]["affine"].pop(),
    "an affine of five rows": lambda d: d["grid"]["affine"].append([0, 0, 0, 1]),
    "a voxel of a micrometre": put("grid.affine.0.0", 0.001),
    "a channel twice": lambda d: d["channels"].__setitem__(1, d["channels"][0]),
    "a missing channel": lambda d: d["channels"].pop(),
    "an empty window": put("channels.0.window", [5, 5]),
    "an inverted window": put("channels.0.window", [100, 0]),
    "a standard deviation of 0": put("channels.0.std", 0),
    "a variable twice": lambda d: d["clinical"]["variables"].append(d["clinical"]["variables"][0]),
    "no fold": put("folds", []),
    "one file for two folds": lambda d: d["folds"].__setitem__(1, d["folds"][0]),
    "the manifest as a fold": put("folds.0.file", "manifest.json"),
    "a path as a fold": put("folds.0.file", "../fold-0.safetensors"),
    "a golden case without a logit": put("golden.0.logits", []),
    "a golden case with one logit": put("golden.0.logits", [0.5]),
    "no background": put("background.vectors", []),
    "a short background": put("background.vectors.0", [0.0]),
    "a short precision": lambda d: d["out_of_distribution"]["precision"].pop(),
    "a short mean": lambda d: d["out_of_distribution"]["mean"].pop(),
    "a threshold of 1": put("threshold.value", 1),
    "a negative slope": put("calibration.slope", -1),
    "a version of 5000 digits": put("version", "9" * 5000 + ".0.0"),
    "an unknown member": put("filters", 4),
    "an unknown schema": put("schema_version", 5),
    "parts of voxels in schema 2": put("channels.0.parts", 2),
    "more parts than voxels fit": lambda d: d.update(
        schema_version=4, grid=d["grid"] | {"shape": [256] * 3}, channels=[d["channels"][0] | {"parts": 4}]
    ),
    "a number as text": put("threshold.value", "half"),
}


@pytest.mark.parametrize("change", UNUSABLE.values(), ids=UNUSABLE.keys())
def test_manifest_that_cannot_be_loaded_is_not_added(document: dict[str, Any], change: Change, tmp_path: Path) -> None:
    document = copy.deepcopy(document)
    change(document)
    folder = tmp_path / "1.0.0"
    folder.mkdir()
    (folder / "manifest.json").write_text(json.dumps(document))
    with pytest.raises(ModelNotReady, match="cannot read the manifest") as refusal:
        ModelStore(tmp_path / "store").add(folder)
    assert "\n" not in refusal.value.detail
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff", b"[" * 100_000, b'{"name": "x"' + b" " * 100])
def test_file_that_is_no_manifest_is_not_added(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_bytes(content)
    with pytest.raises(ModelNotReady, match="cannot read the manifest"):
        ModelStore(tmp_path / "store").add(tmp_path)


@pytest.mark.parametrize("version", SHIPPED, ids=lambda path: f"{path.parent.name}@{path.name}")
def test_shipped_versions_can_be_added(version: Path, tmp_path: Path) -> None:
    entry = ModelStore(tmp_path / "store").add(version)
    assert entry.digest == ModelStore(MODEL_STORE).resolve(f"{entry.name}@{entry.version}").digest
    assert Manifest.model_validate_json(entry.manifest.model_dump_json()) == entry.manifest


@pytest.mark.parametrize("reference", ["tiny@" + "9" * 300 + ".0.0", "tiny@1.0.0-" + "a" * 300, "a" * 300])
def test_reference_longer_than_a_file_name_is_not_found(folder: Path, reference: str) -> None:
    with pytest.raises(ModelNotFound):
        ModelStore(folder.parents[1]).resolve(reference)
