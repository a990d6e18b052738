"""Ed25519 signatures of model versions, for stores that do not take a version from just anybody.

Notable choices:
- What is signed is the manifest's bytes, which hold the digest of every other file: one signature covers the version.
- `manifest.sig` holds one line per signature, base64 of 64 bytes; several may sign, one that is trusted is enough.
- Keys are the raw 32 bytes (RFC 8032), in base64; a private key's file must be readable by its owner alone.
- This is the only file that imports cryptography, and only a store with trusted keys imports this file.
"""

from __future__ import annotations

import base64
import binascii
import os
from collections.abc import Sequence
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from app.sdk.errors import InvalidRequest, ModelNotReady

SIGNATURE = "manifest.sig"


def generate(path: Path) -> str:
    """Writes a new private key, readable by its owner alone, and returns its public key. Raises FileExistsError."""
    key = Ed25519PrivateKey.generate()
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(_text(key.private_bytes_raw()) + "\n")
    return _text(key.public_key().public_bytes_raw())


def sign(folder: Path, key: Path) -> str:
    """Adds the key's signature to the version in ``folder``; the public key that it can be checked with.

    Raises InvalidRequest where the file holds no key.
    """
    try:
        private = Ed25519PrivateKey.from_private_bytes(_bytes(key.read_text()))
    except (ValueError, UnicodeDecodeError) as error:
        raise InvalidRequest("The file holds no Ed25519 private key; `rlvo models keygen` makes one") from error
    signature = _text(private.sign((folder / "manifest.json").read_bytes()))
    known = _signatures(folder)
    if signature not in known:
        temporary = folder / f"{SIGNATURE}.part"
        temporary.write_text("\n".join([*known, signature]) + "\n")
        temporary.replace(folder / SIGNATURE)
    return _text(private.public_key().public_bytes_raw())


def check(folder: Path, manifest: bytes, trusted: Sequence[str]) -> None:
    """Raises ModelNotReady unless one of the trusted keys signed the manifest's bytes."""
    keys = public_keys(trusted)
    for signature in _signatures(folder):
        for key in keys:
            try:
                key.verify(_bytes(signature), manifest)
            except (InvalidSignature, ValueError):
                continue
            return
    raise ModelNotReady("This model version is not signed by a key that this service trusts")


def public_keys(trusted: Sequence[str]) -> list[Ed25519PublicKey]:
    """The keys, each 32 bytes in base64. Raises InvalidRequest where one is not."""
    try:
        return [Ed25519PublicKey.from_public_bytes(_bytes(key)) for key in trusted]
    except ValueError as error:
        raise InvalidRequest("A trusted key is 32 bytes in base64; RLVO_TRUSTED_KEYS holds something else") from error


def _signatures(folder: Path) -> list[str]:
    try:
        return (folder / SIGNATURE).read_text(encoding="ascii", errors="replace").split()
    except FileNotFoundError:
        return []


def _text(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


def _bytes(text: str) -> bytes:
    try:
        return base64.b64decode(text.strip(), validate=True)
    except binascii.Error as error:
        raise ValueError("not base64") from error
