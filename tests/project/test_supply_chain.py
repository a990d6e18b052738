"""What the image is made of: pinned, with hashes, from no particular index, and enough for the service."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[2]
LOCK = (ROOT / "requirements.lock").read_text()
ENTRY = re.compile(r"^(?P<name>[a-z0-9._-]+)==(?P<version>[^ ;\\]+)(?P<rest>(?:.*\\\n)+.*)", re.MULTILINE)
BY_ITSELF = {"torch"}
"""Installed before the lock: its builds differ by device."""


def pinned() -> dict[str, set[Version]]:
    found: dict[str, set[Version]] = {}
    for entry in ENTRY.finditer(LOCK):
        found.setdefault(entry["name"], set()).add(Version(entry["version"]))
    return found


def test_every_package_has_hashes_and_no_index_is_named() -> None:
    entries = list(ENTRY.finditer(LOCK))
    assert len(entries) > 60
    assert len(entries) == len(re.findall(r"^[a-z0-9]", LOCK, re.MULTILINE))
    assert all(re.search(r"--hash=sha256:[0-9a-f]{64}", entry["rest"]) for entry in entries)
    assert not re.search(r"https?://|--index|--find-links|file:", LOCK)


def test_the_lock_has_all_that_the_service_asks_for() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = ("openvino", "otel", "postgres", "s3")
    asked = [*project["dependencies"], *(each for extra in extras for each in project["optional-dependencies"][extra])]
    versions = pinned()
    for requirement in map(Requirement, asked):
        if requirement.name not in BY_ITSELF:
            name = requirement.name.lower().replace("_", "-")
            assert name in versions, f"`make lock`: {name} is not in requirements.lock"
            assert all(requirement.specifier.contains(each) for each in versions[name]), name


def test_the_image_is_built_from_the_lock() -> None:
    dockerfile = (ROOT / "Dockerfile").read_text()
    assert "--require-hashes --requirement requirements.lock" in dockerfile
    assert "USER rlvo" in dockerfile
    assert "!requirements.lock" in (ROOT / ".dockerignore").read_text().splitlines()
