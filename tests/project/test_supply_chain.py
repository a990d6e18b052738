"""The lock file pins all packages of the image, with hashes and without an index."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[2]
LOCK = (ROOT / "requirements.lock").read_text()
ENTRY = re.compile(r"^(?P<name>[a-z0-9._-]+)==(?P<version>[^ ;\\]+)(?P<rest>(?:.*\\\n)+.*)", re.MULTILINE)
SEPARATE = {"torch"}
"""Installed before the lock, since its builds differ by device."""


def pinned() -> dict[str, set[Version]]:
    versions: dict[str, set[Version]] = {}
    for entry in ENTRY.finditer(LOCK):
        versions.setdefault(entry["name"], set()).add(Version(entry["version"]))
    return versions


def test_lock_has_hashes_and_names_no_index() -> None:
    entries = list(ENTRY.finditer(LOCK))
    assert len(entries) > 60
    assert len(entries) == len(re.findall(r"^[a-z0-9]", LOCK, re.MULTILINE))
    assert all(re.search(r"--hash=sha256:[0-9a-f]{64}", entry["rest"]) for entry in entries)
    assert not re.search(r"https?://|--index|--find-links|file:", LOCK)


def test_lock_contains_all_dependencies_of_the_service() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = ("openvino", "otel", "postgres", "s3")
    required = [
        *project["dependencies"],
        *(each for extra in extras for each in project["optional-dependencies"][extra]),
    ]
    versions = pinned()
    for requirement in map(Requirement, required):
        if requirement.name not in SEPARATE:
            name = requirement.name.lower().replace("_", "-")
            assert name in versions, f"`make lock`: {name} is not in requirements.lock"
            assert all(requirement.specifier.contains(each) for each in versions[name]), name


@pytest.mark.parametrize("name", ["requirements-build.lock", "requirements-torch.lock"])
def test_build_tool_and_torch_are_pinned_with_hashes(name: str) -> None:
    text = (ROOT / name).read_text()
    entries = list(ENTRY.finditer(text))
    assert {"requirements-build.lock": "hatchling", "requirements-torch.lock": "torch"}[name] in {
        entry["name"] for entry in entries
    }
    assert len(entries) == len(re.findall(r"^[a-z0-9]", text, re.MULTILINE))
    assert all(re.search(r"--hash=sha256:[0-9a-f]{64}", entry["rest"]) for entry in entries)
    assert not re.search(r"https?://|--index|--find-links|file:", text)


def test_torch_of_the_lock_fits_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (requirement,) = (each for each in map(Requirement, project["dependencies"]) if each.name == "torch")
    locked = re.search(r"^torch==([0-9.]+)", (ROOT / "requirements-torch.lock").read_text(), re.MULTILINE)
    assert locked
    assert requirement.specifier.contains(locked[1])


def test_image_is_built_from_the_locks() -> None:
    dockerfile = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")
    installs = re.findall(r"pip install [^;&\n]*", dockerfile)
    unpinned = [each for each in installs if "--require-hashes" not in each and not each.rstrip(" ;\\").endswith(" .")]
    assert ["TORCH_INDEX" in each for each in unpinned] == [True]  # docs/security.md says so
    assert "torch==" in unpinned[0]
    for name in ("requirements.lock", "requirements-build.lock", "requirements-torch.lock"):
        assert f"--require-hashes --requirement {name}" in dockerfile
        assert f"!{name}" in (ROOT / ".dockerignore").read_text().splitlines()
    assert "USER rlvo" in dockerfile


def test_page_names_what_is_not_pinned_by_hash() -> None:
    page = (ROOT / "docs" / "security.md").read_text()
    section = page.partition("## Supply chain")[2].partition("\n## ")[0]
    assert all(word in section for word in ("TORCH_INDEX", "base image", "BASE"))
