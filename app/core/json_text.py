"""JSON files of reports, in which a number that cannot be estimated is null; and the hash of a JSON document."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def write(path: Path, document: Mapping[str, object]) -> None:
    """Write a file in one step, in place of an earlier one."""
    draft = path.with_name(f".{path.name}.part")
    text = json.dumps(_finite(document), indent=1, ensure_ascii=False, allow_nan=False)
    draft.write_text(f"{text}\n", encoding="utf-8")
    draft.replace(path)


def add(path: Path, members: Mapping[str, object]) -> None:
    """Add members to the document in a file, or replace them."""
    write(path, json.loads(path.read_text(encoding="utf-8")) | members)


def canonical_hash(document: Mapping[str, object]) -> str:
    """SHA-256 of a document, in hex, as JSON with sorted members and without spaces."""
    canonical = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _finite(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
