"""Weights that are not finite numbers are not loaded, promoted, served or scored."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load, save

from app.inference.model_cache import ModelCache
from app.inference.model_version import ModelVersion
from app.registry.manifest import Manifest
from app.sdk.errors import InternalError, ModelNotReady
from tests.factory import tiny_case, tiny_version

Change = Callable[[dict[str, torch.Tensor]], None]


@pytest.fixture
def store(tmp_path: Path) -> Path:
    tiny_version(tmp_path)
    return tmp_path


def rewrite(folder: Path, change: Change, fold: int = 0) -> None:
    """Change the weights of a fold and sign the manifest again: every digest is right."""
    file = folder / f"fold-{fold}.safetensors"
    weights = load(file.read_bytes())
    change(weights)
    file.write_bytes(save(weights))
    sign_again(folder, f"fold-{fold}.safetensors")


def sign_again(folder: Path, name: str) -> None:
    document = json.loads((folder / "manifest.json").read_text())
    for part in (*document["folds"], *document["golden"]):
        if part["file"] == name:
            part["sha256"] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(document))


def without_golden_cases(folder: Path) -> None:
    document = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(document | {"golden": []}))


def set_value(name: str, value: float) -> Change:
    def change(weights: dict[str, torch.Tensor]) -> None:
        weights[name].view(-1)[0] = value

    return change


def check(store: Path) -> None:
    ModelCache(store, "cpu").check("tiny", "1.0.0")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", ["head.weight", "head.bias", "trunk.stem.conv.weight", "block.norm2.running_var"])
def test_weight_that_is_not_finite_is_refused(store: Path, name: str, value: float) -> None:
    check(store)
    rewrite(store / "tiny" / "1.0.0", set_value(name, value))
    with pytest.raises(ModelNotReady, match="not finite"):
        check(store)


def test_second_fold_is_checked_too(store: Path) -> None:
    rewrite(store / "tiny" / "1.0.0", set_value("head.weight", float("nan")), fold=1)
    with pytest.raises(ModelNotReady, match=r"fold-1\.safetensors .*not finite"):
        check(store)


@pytest.mark.parametrize("golden", [True, False])
def test_finite_weights_with_answers_that_are_not_finite_are_refused(store: Path, *, golden: bool) -> None:
    """The root of a negative variance is no number."""
    folder = store / "tiny" / "1.0.0"
    rewrite(folder, set_value("trunk.stem.norm.running_var", -4.0))
    if not golden:
        without_golden_cases(folder)
    with pytest.raises(ModelNotReady, match=r"golden case|finite"):
        check(store)


def test_golden_case_with_a_nan_is_no_agreement(store: Path) -> None:
    """A maximum of Python ignores NaN, so such a case agreed with every manifest."""
    folder = store / "tiny" / "1.0.0"
    manifest = Manifest.model_validate_json((folder / "manifest.json").read_text())
    case = tiny_case(manifest)
    case.image[0, 0, 0, 0] = np.nan
    (folder / "golden-0.safetensors").write_bytes(case.to_bytes())
    sign_again(folder, "golden-0.safetensors")
    with pytest.raises(ModelNotReady, match="golden cases differ"):
        check(store)


def test_version_without_golden_cases_is_loaded_if_it_computes_numbers(store: Path) -> None:
    without_golden_cases(store / "tiny" / "1.0.0")
    check(store)


@pytest.mark.parametrize("member", ["intercept", "coefficients"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_logistic_fold_that_is_not_finite_is_refused(tmp_path: Path, member: str, value: float) -> None:
    folder = tiny_version(tmp_path, kind="logistic")
    fold = json.loads((folder / "fold-0.json").read_text())
    fold[member] = value if member == "intercept" else [value, *fold[member][1:]]
    (folder / "fold-0.json").write_text(json.dumps(fold))
    sign_again(folder, "fold-0.json")
    with pytest.raises(ModelNotReady, match="finite"):
        check(tmp_path)


@pytest.mark.parametrize("fold", [b"{}", b"[]", b"null", b'{"coefficients": [], "intercept": []}', b"1e999"])
def test_logistic_fold_of_another_form_is_refused(tmp_path: Path, fold: bytes) -> None:
    folder = tiny_version(tmp_path, kind="logistic")
    (folder / "fold-0.json").write_bytes(fold)
    sign_again(folder, "fold-0.json")
    with pytest.raises(ModelNotReady):
        check(tmp_path)


def test_study_with_an_answer_that_is_not_finite_fails(store: Path) -> None:
    """Finite weights and golden cases, and one image for which the network overflows."""
    folder = store / "tiny" / "1.0.0"
    manifest = Manifest.model_validate_json((folder / "manifest.json").read_text())
    version = ModelVersion.load(folder, manifest, "cpu")
    case = tiny_case(manifest)
    assert 0 < version.predict(case).probability < 1
    case.image[:] = np.finfo(np.float32).max
    with pytest.raises(InternalError, match="no finite number"):
        version.predict(case)


@pytest.mark.parametrize("damage", ["no tensors", "other tensors", "another shape", "no metadata"])
def test_golden_case_of_another_form_is_refused(store: Path, damage: str) -> None:
    folder = store / "tiny" / "1.0.0"
    file = folder / "golden-0.safetensors"
    if damage == "no tensors":
        file.write_bytes(b"no tensors")
    else:
        tensors = load(file.read_bytes())
        if damage == "another shape":
            tensors["image"] = tensors["image"][:, :3].contiguous()
        elif damage == "no metadata":
            tensors.pop("words")
        else:
            tensors = {"x": torch.zeros(1)}
        file.write_bytes(save(tensors))
    sign_again(folder, "golden-0.safetensors")
    with pytest.raises(ModelNotReady):
        check(store)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("not_a_field", "number"),
        ("smoking", "number"),
        ("occlusion_site", "flag"),
        ("perfusion.software", "number"),
        ("perfusion", "number"),
        ("final_stenosis_percent", "number"),
    ],
)
def test_variable_that_no_record_can_give_is_refused(store: Path, name: str, kind: str) -> None:
    folder = store / "tiny" / "1.0.0"
    document = json.loads((folder / "manifest.json").read_text())
    names = [variable["name"] for variable in document["clinical"]["variables"]]
    if name in names:  # smoking is a category: replace its columns by those of a number
        document["clinical"]["variables"][names.index(name)]["name"] = "sex"
    document["clinical"]["variables"][0] |= {"name": name, "kind": kind}
    (folder / "manifest.json").write_text(json.dumps(document))
    with pytest.raises(ModelNotReady):
        check(store)
