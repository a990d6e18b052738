"""Aliases of one model: the version of each alias and the history of its changes.

Design notes:
- `aliases.json` holds the current versions and is replaced by one rename, so a reader never sees a partial file.
- `aliases.log` holds the history, one JSON line per change, synced before the rename. After a crash between both, the
  line does not fit the next change and is skipped.
- The patterns of model names, versions and aliases are defined here, since names of requests become paths.
- A change locks the folder and may name the expected version, so one of two simultaneous changes is refused.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from app.core.filesystem import locked
from app.registry.manifest import NAME_PATTERN, VERSION_PATTERN
from app.sdk.errors import AliasConflict, InvalidRequest, ModelNotFound

NAME, VERSION = re.compile(NAME_PATTERN), re.compile(VERSION_PATTERN)
ALIAS = re.compile(r"[a-z][a-z0-9-]{0,31}")

DEFAULT_ALIAS = "champion"
SHADOW = "shadow"  # alias of the version that scores live predictions after the answer was sent


@dataclass(frozen=True)
class AliasChange:
    """Change of an alias from ``previous`` (None: new alias) to ``version``; ``at`` is ISO 8601 in UTC."""

    alias: str
    version: str
    previous: str | None
    at: str
    by: str


def current_versions(folder: Path) -> dict[str, str]:
    """Return the aliases of the model in ``folder`` and their versions."""
    try:
        aliases: dict[str, str] = json.loads((folder / "aliases.json").read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return {}
    return aliases


def history(folder: Path, alias: str) -> list[AliasChange]:
    """Return the changes of the alias that took effect, oldest first."""
    try:
        lines = (folder / "aliases.log").read_text(encoding="utf-8").splitlines()
    except (FileNotFoundError, NotADirectoryError):
        return []
    changes = [change for change in map(_read, lines) if change and change.alias == alias]
    after = [*(change.previous for change in changes[1:]), current_versions(folder).get(alias)]
    return [change for change, next_from in zip(changes, after, strict=False) if change.version == next_from]


def previous_version(folder: Path, alias: str) -> str:
    """Return the version of the alias before its last change; ModelNotFound if there is none."""
    changes = history(folder, alias)
    if not changes or changes[-1].previous is None:
        raise ModelNotFound("This alias has no earlier version to roll back to")
    return changes[-1].previous


def alias_of_tenant(tenant: str) -> str:
    """Alias that chooses the version of a tenant: ``site-north`` for ``north``.

    A tenant with other letters than an alias, such as ``North``, gets a part of its sha-256, so that no two share one.
    """
    if ALIAS.fullmatch(plain := f"site-{tenant}"):
        return plain
    readable = re.sub(r"[^a-z0-9]+", "-", tenant.lower())[:18].strip("-")
    return f"site-{readable}-{hashlib.sha256(tenant.encode()).hexdigest()[:8]}"


def set_alias(folder: Path, alias: str, version: str, *, expected: str | None, by: str) -> AliasChange:
    """Set the alias to ``version`` and record the change.

    Raises:
        InvalidRequest: The alias has a wrong form.
        AliasConflict: The version of the alias is not ``expected``.
    """
    if not ALIAS.fullmatch(alias):
        raise InvalidRequest("An alias is a lower-case letter and up to 31 lower-case letters, digits and dashes")
    with locked(folder) as descriptor:
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        versions = current_versions(folder)
        if expected is not None and versions.get(alias) != expected:
            raise AliasConflict("The alias was changed meanwhile; read it again, then repeat the change")
        change = AliasChange(alias, version, versions.get(alias), now, by)
        if change.previous == version:
            return change
        with (folder / "aliases.log").open("a", encoding="utf-8") as log:
            if not log.tell():
                os.fchmod(log.fileno(), 0o644)
            log.write(json.dumps(asdict(change)) + "\n")
            log.flush()
            os.fsync(log.fileno())
        temporary = folder / f".aliases-{secrets.token_hex(8)}"
        with temporary.open("x") as file:
            os.fchmod(file.fileno(), 0o644)  # an operator with another account reads it too
            json.dump(versions | {alias: version}, file, indent=2, sort_keys=True)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(folder / "aliases.json")
        os.fsync(descriptor)
    return change


def _read(line: str) -> AliasChange | None:
    """Parse a line of the log; None for an incomplete line after a crash."""
    try:
        return AliasChange(**json.loads(line))
    except (ValueError, TypeError):
        return None
