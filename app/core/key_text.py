"""Keys and signatures as base64 text, and files of private keys."""

from __future__ import annotations

import base64
import binascii
import os
from pathlib import Path


def encode(raw: bytes) -> str:
    """Bytes as base64 text."""
    return base64.b64encode(raw).decode()


def decode(text: str) -> bytes:
    """Bytes of a base64 text. Raises ValueError."""
    try:
        return base64.b64decode(text.strip(), validate=True)
    except binascii.Error as error:
        raise ValueError("not base64") from error


def write_private(path: Path, raw: bytes) -> None:
    """Write a private key to a new file that only its owner can read. Raises FileExistsError; the file is kept."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(encode(raw) + "\n")
