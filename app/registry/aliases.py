"""The aliases of one model: which version each one means, and every move that ever made it so.

Notable choices:
- `aliases.json` is the truth, replaced in one rename: a reader sees the old meaning or the new one, never half of it.
- `aliases.log` is the history, one JSON line a move, synced before the rename. A line without its rename (a crash in
  between) is recognised, because the next move starts elsewhere, and is passed over.
- What a model, a version and an alias may be called stands here: names come from requests and become paths.
- Movers take the folder's lock, and may say which version they expect: of two at once, one is refused.
"""

from __future__ import annotations

import json
import os
import re
import secrets
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from app.core.filesystem import locked
from app.sdk.errors import AliasConflict, InvalidRequest, ModelNotFound

NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
VERSION = re.compile(r"[0-9]+\.[0-9]+\.[0-9]+(-[0-9a-z.]+)?")
ALIAS = re.compile(r"[a-z][a-z0-9-]{0,31}")

DEFAULT_ALIAS = "champion"
CHALLENGER = "challenger"
SHADOW = "shadow"
"""The version that scores live traffic after the answer is out."""


@dataclass(frozen=True)
class AliasChange:
    """An alias came to mean ``version``, after ``previous`` (None: it was new). ``at``: ISO 8601, UTC."""

    alias: str
    version: str
    previous: str | None
    at: str
    by: str


def present(folder: Path) -> dict[str, str]:
    """The aliases of the model in ``folder`` and the version that each one means."""
    try:
        found: dict[str, str] = json.loads((folder / "aliases.json").read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return {}
    return found


def history(folder: Path, alias: str) -> list[AliasChange]:
    """Every move of the alias that took effect, oldest first."""
    try:
        lines = (folder / "aliases.log").read_text(encoding="utf-8").splitlines()
    except (FileNotFoundError, NotADirectoryError):
        return []
    moves = [move for move in map(_read, lines) if move and move.alias == alias]
    after = [*(move.previous for move in moves[1:]), present(folder).get(alias)]
    return [move for move, next_from in zip(moves, after, strict=False) if move.version == next_from]


def before(folder: Path, alias: str) -> str:
    """The version that the alias meant before its last move. Raises ModelNotFound where there was none."""
    moves = history(folder, alias)
    if not moves or moves[-1].previous is None:
        raise ModelNotFound("This alias has no earlier version to go back to")
    return moves[-1].previous


def move(folder: Path, alias: str, version: str, *, expected: str | None, by: str) -> AliasChange:
    """Moves the alias.

    Raises InvalidRequest for what is no alias, AliasConflict where it does not mean ``expected``.
    """
    if not ALIAS.fullmatch(alias):
        raise InvalidRequest("An alias is a lower-case word of at most 32 letters, digits and dashes")
    with locked(folder) as descriptor:
        known = present(folder)
        if expected is not None and known.get(alias) != expected:
            raise AliasConflict("The alias means another version by now; read it again before moving it")
        made = AliasChange(alias, version, known.get(alias), datetime.now(UTC).isoformat(timespec="milliseconds"), by)
        if made.previous == version:
            return made
        with (folder / "aliases.log").open("a", encoding="utf-8") as log:
            log.write(json.dumps(asdict(made)) + "\n")
            log.flush()
            os.fsync(log.fileno())
        temporary = folder / f".aliases-{secrets.token_hex(8)}"
        with temporary.open("x") as file:
            json.dump(known | {alias: version}, file, indent=2, sort_keys=True)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(folder / "aliases.json")
        os.fsync(descriptor)
    return made


def _read(line: str) -> AliasChange | None:
    """The move in a line of the log; None for a line that a crash cut off."""
    try:
        return AliasChange(**json.loads(line))
    except (ValueError, TypeError):
        return None
