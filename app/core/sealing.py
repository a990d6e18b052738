"""Encrypt a short text with a key of the settings (AES-256-GCM, NIST SP 800-38D)."""

from __future__ import annotations

import secrets

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

__all__ = ["open_text", "seal_text"]

_PURPOSE = b"rlvo-credentials-1"
_NONCE_BYTES = 12


def seal_text(text: str, key: bytes) -> bytes:
    """Encrypt a text with a key of 32 bytes: nonce, ciphertext and tag."""
    nonce = secrets.token_bytes(_NONCE_BYTES)
    return nonce + AESGCM(key).encrypt(nonce, text.encode(), _PURPOSE)


def open_text(sealed: bytes, key: bytes) -> str | None:
    """Decrypt what ``seal_text`` returned; None if the key is another one or the bytes are damaged."""
    try:
        return AESGCM(key).decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], _PURPOSE).decode()
    except (InvalidTag, ValueError):
        return None
