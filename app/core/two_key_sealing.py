"""Encrypt a document so that two named holders must come together to read it, and who encrypts it cannot.

Design notes:
- Each document has a random key (AES-256-GCM). For each pair of holders the key is split into two random shares, of
  which neither says anything; each share is encrypted to the public key of its holder (HPKE, RFC 9180, X25519).
- With three or four holders, any two of them open a document, so that one lost key does not lose the trial.
- The context (trial and prediction) is authenticated, so a sealed document cannot stand in for another one.
- A document is padded to full blocks, so that its length says nothing of its content.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite

from app.core.key_text import decode, encode, write_private
from app.sdk.errors import InvalidRequest

__all__ = [
    "BLOCK",
    "PrivateKey",
    "UnsealFailed",
    "generate",
    "open_sealed",
    "public_key",
    "public_text",
    "read_private",
    "seal",
]

BLOCK = 4096
PrivateKey = X25519PrivateKey
_KEY_BYTES, _NONCE_BYTES = 32, 12
_SUITE = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)


class UnsealFailed(Exception):
    """The keys are not those of two holders, or the sealed bytes are damaged or of another context."""


def generate(path: Path) -> str:
    """Write a new private key that only its owner can read; return the public key. An existing file is kept."""
    key = X25519PrivateKey.generate()
    write_private(path, key.private_bytes_raw())
    return public_text(key)


def read_private(path: Path) -> X25519PrivateKey:
    """Read the file of a private key. Raises InvalidRequest for a file without one."""
    try:
        return X25519PrivateKey.from_private_bytes(decode(path.read_text()))
    except (ValueError, UnicodeDecodeError) as error:
        raise InvalidRequest("A file contains no private key of a holder; `rlvo trial key` creates one") from error


def public_text(key: X25519PrivateKey) -> str:
    """Public key of a private key, in base64."""
    return encode(key.public_key().public_bytes_raw())


def public_key(text: str) -> X25519PublicKey:
    """Decode a public key of 32 bytes in base64. Raises ValueError."""
    return X25519PublicKey.from_public_bytes(decode(text))


def seal(document: bytes, holders: Sequence[str], context: str) -> bytes:
    """Encrypt a document.

    Args:
        document: The document; it contains no zero byte.
        holders: Public keys of two holders or more, in base64.
        context: What the document belongs to; needed to open it.

    Returns:
        The sealed document, as JSON text.
    """
    key, nonce = secrets.token_bytes(_KEY_BYTES), secrets.token_bytes(_NONCE_BYTES)
    shares: dict[str, list[str]] = {}
    for first, second in combinations(range(len(holders)), 2):
        one = secrets.token_bytes(_KEY_BYTES)
        parts = zip((first, second), (one, _xor(one, key)), strict=True)
        shares[f"{first}-{second}"] = [
            encode(_SUITE.encrypt(share, public_key(holders[holder]), info=_info(context, first, second)))
            for holder, share in parts
        ]
    padded = document.ljust(-(-len(document) // BLOCK) * BLOCK, b"\0")
    content = AESGCM(key).encrypt(nonce, padded, context.encode())
    return json.dumps({"shares": shares, "nonce": encode(nonce), "content": encode(content)}).encode()


def open_sealed(sealed: bytes, holders: Sequence[str], keys: Sequence[X25519PrivateKey], context: str) -> bytes:
    """Decrypt what ``seal`` returned.

    Args:
        sealed: The sealed document.
        holders: Public keys of all holders, in the order of ``seal``.
        keys: Private keys of two different holders.
        context: Context of ``seal``.

    Raises:
        UnsealFailed: The keys are not those of two holders, or bytes or context are others.
    """
    own = {public_text(key): key for key in keys}
    places = [place for place, holder in enumerate(holders) if holder in own][:2]
    if len(places) < 2:
        raise UnsealFailed("Two private keys of different holders are needed")
    first, second = places
    try:
        read = json.loads(sealed)
        info = _info(context, first, second)
        one, other = (
            _SUITE.decrypt(decode(share), own[holders[place]], info=info)
            for share, place in zip(read["shares"][f"{first}-{second}"], places, strict=True)
        )
        content = AESGCM(_xor(one, other)).decrypt(decode(read["nonce"]), decode(read["content"]), context.encode())
    except (InvalidTag, ValueError, KeyError, TypeError):
        raise UnsealFailed("A sealed document is damaged, or belongs to another trial or prediction") from None
    return content.rstrip(b"\0")


def _info(context: str, first: int, second: int) -> bytes:
    return f"rlvo-trial-share-1:{first}-{second}:{context}".encode()


def _xor(one: bytes, other: bytes) -> bytes:
    return bytes(a ^ b for a, b in zip(one, other, strict=True))
