"""Ed25519 signatures of model versions.

Design notes:
- The signed bytes are the manifest, which contains the digest of every other file. One signature covers the version.
- `manifest.sig` has one signature per line (64 bytes in base64). One signature with a trusted key is sufficient.
- Keys are 32 raw bytes (RFC 8032) in base64. Only the owner can read the file of a private key.
- Only a store with trusted keys, and what signs, imports this module and with it the cryptography library.
- Documents that leave a site are signed with the same keys (``app.registry.signed_json``).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from app.core.key_text import decode, encode, write_private
from app.sdk.errors import InvalidRequest, ModelNotReady

SIGNATURE = "manifest.sig"


def generate(path: Path) -> str:
    """Write a new private key that only its owner can read; return the public key. An existing file is kept."""
    key = Ed25519PrivateKey.generate()
    write_private(path, key.private_bytes_raw())
    return encode(key.public_key().public_bytes_raw())


def sign(folder: Path, key: Path) -> str:
    """Sign the version in ``folder``; return the public key. A file without a key raises InvalidRequest."""
    signature, public = sign_bytes((folder / "manifest.json").read_bytes(), key)
    present = _signatures(folder)
    if signature not in present:
        temporary = folder / f"{SIGNATURE}.part"
        temporary.write_text("\n".join([*present, signature]) + "\n")
        temporary.replace(folder / SIGNATURE)
    return public


def sign_bytes(content: bytes, key: Path) -> tuple[str, str]:
    """Sign bytes with the private key of a file; return signature and public key, both in base64.

    Raises:
        InvalidRequest: The file contains no key.
    """
    try:
        private = Ed25519PrivateKey.from_private_bytes(decode(key.read_text()))
    except (ValueError, UnicodeDecodeError) as error:
        raise InvalidRequest("The file contains no Ed25519 private key; `rlvo models keygen` creates one") from error
    return encode(private.sign(content)), encode(private.public_key().public_bytes_raw())


def is_signed(content: bytes, signature: str, public: str) -> bool:
    """Whether the signature of these bytes was made with the private key of ``public``; both are base64."""
    try:
        Ed25519PublicKey.from_public_bytes(decode(public)).verify(decode(signature), content)
    except (InvalidSignature, ValueError):
        return False
    return True


def check(folder: Path, manifest: bytes, trusted: Sequence[str]) -> None:
    """Raise ModelNotReady unless a trusted key signed the bytes of the manifest."""
    keys = public_keys(trusted)
    for signature in _signatures(folder):
        for key in keys:
            try:
                key.verify(decode(signature), manifest)
            except (InvalidSignature, ValueError):
                continue
            return
    raise ModelNotReady("This model version is not signed with a trusted key (RLVO_TRUSTED_KEYS)")


def public_keys(trusted: Sequence[str]) -> list[Ed25519PublicKey]:
    """Decode public keys, each 32 bytes in base64; a wrong key raises InvalidRequest."""
    try:
        return [Ed25519PublicKey.from_public_bytes(decode(key)) for key in trusted]
    except ValueError as error:
        raise InvalidRequest("Each trusted key (RLVO_TRUSTED_KEYS, --trust) must be 32 bytes in base64") from error


def _signatures(folder: Path) -> list[str]:
    try:
        return (folder / SIGNATURE).read_text(encoding="ascii", errors="replace").split()
    except FileNotFoundError:
        return []
