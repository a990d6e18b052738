"""The lock file pins all packages of the image, with hashes and without an index."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

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


def test_image_is_built_from_the_lock() -> None:
    dockerfile = (ROOT / "Dockerfile").read_text()
    assert "--require-hashes --requirement requirements.lock" in dockerfile
    assert "USER rlvo" in dockerfile
    assert "!requirements.lock" in (ROOT / ".dockerignore").read_text().splitlines()
