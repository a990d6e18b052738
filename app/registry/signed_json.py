"""JSON documents that leave or enter a site, with Ed25519 signatures.

Design notes:
- The file is ``{"document": ..., "signatures": [{"public_key": ..., "signature": ...}]}``. Signed are the bytes of
  ``canonical(document)``, so that spaces and the order of members do not matter.
- A wrong signature is refused everywhere. With trusted keys, a document without a signature of one of them is refused.
- Files are small: a larger one than ``LARGEST`` is not read.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.sdk.errors import InvalidRequest

LARGEST = 64 * 2**20


@dataclass(frozen=True)
class SignedDocument:
    """A document and the public keys (base64) that signed it."""

    content: dict[str, Any]
    keys: tuple[str, ...]


def canonical(document: Mapping[str, Any]) -> bytes:
    """Bytes of a document: sorted members, no spaces, ASCII; NaN and infinity raise ValueError."""
    return json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def digest(document: Mapping[str, Any]) -> str:
    """SHA-256 of a document, as ``sha256:...``."""
    return f"sha256:{hashlib.sha256(canonical(document)).hexdigest()}"


def write(path: Path, document: Mapping[str, Any], key: Path | None = None) -> str:
    """Write a document in one step, signed if a private key is given; return the public key, or "".

    Raises:
        InvalidRequest: The key file contains no key.
    """
    signatures = []
    if key is not None:
        from app.registry.signatures import sign_bytes

        signature, public = sign_bytes(canonical(document), key)
        signatures.append({"public_key": public, "signature": signature})
    text = json.dumps({"document": document, "signatures": signatures}, indent=1, allow_nan=False)
    draft = path.with_name(f".{path.name}.part")
    draft.write_text(f"{text}\n", encoding="utf-8")
    draft.replace(path)
    return str(signatures[0]["public_key"]) if signatures else ""


def read(path: Path, trusted: Sequence[str] = ()) -> SignedDocument:
    """Read a document and check its signatures.

    Args:
        path: The file.
        trusted: Public keys (base64), of which one must have signed; empty: any or none.

    Raises:
        InvalidRequest: The file is no such document, a signature is wrong, or no trusted key signed it.
    """
    if path.stat().st_size > LARGEST:
        raise InvalidRequest(f"{path.name} is larger than {LARGEST // 2**20} MiB, so it is no document of rlvo")
    try:
        envelope = json.loads(path.read_bytes())
        content, signatures = envelope["document"], envelope["signatures"]
        pairs = [(str(one["public_key"]), str(one["signature"])) for one in signatures]
        if not isinstance(content, dict):
            raise TypeError
        signed = canonical(content)
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise InvalidRequest(
            f"{path.name} is no document of rlvo: a JSON object with document and signatures"
        ) from error
    if pairs or trusted:
        from app.registry.signatures import is_signed, public_keys

        public_keys(trusted)
        if not all(is_signed(signed, signature, public) for public, signature in pairs):
            raise InvalidRequest(f"A signature of {path.name} does not fit its content; ask for the file again")
    keys = tuple(public for public, _ in pairs)
    if trusted and not set(keys) & set(trusted):
        raise InvalidRequest(f"{path.name} is not signed with a trusted key (--trust)")
    return SignedDocument(content, keys)
