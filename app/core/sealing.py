"""Encrypt a short text with a key of the settings (AES-256-GCM, NIST SP 800-38D)."""

from __future__ import annotations

import secrets

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

__all__ = ["CREDENTIALS", "open_text", "seal_text"]

CREDENTIALS = b"rlvo-credentials-1"
_NONCE_BYTES = 12


def seal_text(text: str, key: bytes, purpose: bytes = CREDENTIALS) -> bytes:
    """Encrypt a text with a key of 32 bytes and a random nonce.

    Args:
        text: the text.
        key: 32 bytes.
        purpose: what the text is; authenticated with it, so that a text of another purpose is not taken for it.

    Returns:
        Nonce, ciphertext and tag.
    """
    nonce = secrets.token_bytes(_NONCE_BYTES)
    return nonce + AESGCM(key).encrypt(nonce, text.encode(), purpose)


def open_text(sealed: bytes, key: bytes, purpose: bytes = CREDENTIALS) -> str | None:
    """Decrypt what ``seal_text`` returned; None if key or purpose are others, or the bytes are damaged."""
    try:
        return AESGCM(key).decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], purpose).decode()
    except (InvalidTag, ValueError):
        return None
