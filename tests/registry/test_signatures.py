"""Signatures: only versions that are signed with a trusted key, and unchanged since, are served."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from app.registry import signatures
from app.registry.model_store import ModelStore
from app.sdk.errors import InvalidRequest, ModelNotReady
from tests.registry.publish import publish


def test_only_versions_signed_with_a_trusted_key_are_served(tmp_path: Path) -> None:
    folder = publish(tmp_path / "store", "1.0.0")
    trusted, other = (signatures.generate(tmp_path / name) for name in ("trusted", "other"))
    assert (tmp_path / "trusted").stat().st_mode & 0o077 == 0
    strict = ModelStore(tmp_path / "store", [trusted])
    with pytest.raises(ModelNotReady, match="not signed"):
        strict.resolve("tiny@1.0.0")
    assert strict.versions("tiny") == []
    signatures.sign(folder, tmp_path / "other")
    with pytest.raises(ModelNotReady):
        strict.resolve("tiny@1.0.0")
    assert signatures.sign(folder, tmp_path / "trusted") == trusted
    assert strict.resolve("tiny@1.0.0").version == "1.0.0"
    assert ModelStore(tmp_path / "store", [other]).resolve("tiny").version == "1.0.0"
    before = (folder / "manifest.sig").read_text()
    signatures.sign(folder, tmp_path / "trusted")
    assert (folder / "manifest.sig").read_text() == before


def test_signature_does_not_fit_a_changed_manifest(tmp_path: Path) -> None:
    folder = publish(tmp_path / "store", "1.0.0")
    key = signatures.generate(tmp_path / "key")
    signatures.sign(folder, tmp_path / "key")
    registry = ModelStore(tmp_path / "store", [key])
    registry.resolve("tiny@1.0.0")
    manifest = folder / "manifest.json"
    changed = manifest.read_text().replace("Apache-2.0", "Apache-2.1")
    assert changed != manifest.read_text()
    manifest.write_text(changed)
    os.utime(manifest, (1, 1))
    with pytest.raises(ModelNotReady):
        registry.resolve("tiny@1.0.0")


@pytest.mark.parametrize("content", ["", "\n\n", "not base64!\n", "AAAA\n", "\u00e9\n"])
def test_invalid_signature_file_is_refused(tmp_path: Path, content: str) -> None:
    folder = publish(tmp_path / "store", "1.0.0")
    key = signatures.generate(tmp_path / "key")
    (folder / "manifest.sig").write_text(content)
    with pytest.raises(ModelNotReady):
        ModelStore(tmp_path / "store", [key]).resolve("tiny@1.0.0")


def test_invalid_key_is_refused(tmp_path: Path) -> None:
    folder = publish(tmp_path / "store", "1.0.0")
    (tmp_path / "nothing").write_text("short")
    with pytest.raises(InvalidRequest, match="no Ed25519 private key"):
        signatures.sign(folder, tmp_path / "nothing")
    with pytest.raises(InvalidRequest, match="RLVO_TRUSTED_KEYS"):
        ModelStore(tmp_path / "store", ["AAAA"]).resolve("tiny@1.0.0")
    signatures.generate(tmp_path / "key")
    with pytest.raises(FileExistsError):
        signatures.generate(tmp_path / "key")


def test_store_without_trusted_keys_loads_no_cryptography(tmp_path: Path) -> None:
    publish(tmp_path, "1.0.0")
    code = (
        "import sys; from pathlib import Path; from app.registry.model_store import ModelStore;"
        f"ModelStore(Path({str(tmp_path)!r})).resolve('tiny'); sys.exit('cryptography' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
