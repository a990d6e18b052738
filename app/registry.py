"""The model store: which versions there are, which one an alias means, and whether their files are intact.

Notable choices:
- A version is a folder, `<name>/<version>/manifest.json` and the files that the manifest lists by digest. Dropping a
  complete folder in publishes it; nothing is registered elsewhere, so nothing has to be restarted.
- A version's digest is the sha-256 of its manifest's bytes, which hold the digests of all its other files.
- Aliases (`champion` is the default one) lie in `<name>/aliases.json`, replaced in one rename.
- Names come from requests: they are matched against the manifest's own patterns before they touch a path.
- No torch: the API process uses this too.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from app.manifest import Fold, GoldenCase, Manifest
from app.sdk.errors import AliasConflict, InvalidRequest, ModelNotFound, ModelNotReady

DEFAULT_ALIAS = "champion"

_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
_VERSION = re.compile(r"[0-9]+\.[0-9]+\.[0-9]+(-[0-9a-z.]+)?")
_ALIAS = re.compile(r"[a-z][a-z0-9-]{0,31}")


@dataclass(frozen=True)
class Entry:
    """One version on the shelf; ``digest`` is ``sha256:<hex>`` of its manifest."""

    manifest: Manifest
    folder: Path
    digest: str

    @property
    def name(self) -> str:
        return self.manifest.name

    @property
    def version(self) -> str:
        return self.manifest.version


class Registry:
    """The versions under ``folder``. Manifests are parsed once and again only when their file changes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._parsed: dict[Path, tuple[tuple[int, int, int], Entry]] = {}

    def resolve(self, reference: str) -> Entry:
        """The version that ``name``, ``name@1.2.0`` or ``name@alias`` means.

        A bare name means its champion, or its newest version where no champion was ever named.
        Raises ModelNotFound, and ModelNotReady where the manifest cannot be understood.
        """
        name, _, which = reference.partition("@")
        if not _NAME.fullmatch(name) or (which and not (_VERSION.fullmatch(which) or _ALIAS.fullmatch(which))):
            raise ModelNotFound("A model is named as `name`, `name@1.2.0` or `name@alias`")
        if _VERSION.fullmatch(which):
            return self._entry(name, which)
        aliases = self.aliases(name)
        if (alias := which or DEFAULT_ALIAS) in aliases:
            return self._entry(name, aliases[alias])
        versions = self.versions(name)
        if which or not versions:
            raise ModelNotFound("There is no such model or alias; GET /v1/models lists those there are")
        return versions[0]

    def names(self) -> list[str]:
        """Every name that has at least one version, in order."""
        if not self.folder.is_dir():
            return []
        return sorted(
            path.name for path in self.folder.iterdir() if _NAME.fullmatch(path.name) and self.versions(path.name)
        )

    def versions(self, name: str) -> list[Entry]:
        """The readable versions of ``name``, newest first; none for an unknown name."""
        folder = self.folder / name
        if not _NAME.fullmatch(name) or not folder.is_dir():
            return []
        entries = []
        for path in folder.iterdir():
            if _VERSION.fullmatch(path.name) and (path / "manifest.json").is_file():
                try:
                    entries.append(self._entry(name, path.name))
                except ModelNotReady:  # One damaged version does not hide the others; asked for by name, it says why.
                    continue
        return sorted(entries, key=lambda entry: _order(entry.version), reverse=True)

    def aliases(self, name: str) -> dict[str, str]:
        """The aliases of ``name`` and the version that each one means."""
        if not _NAME.fullmatch(name):
            return {}
        try:
            found: dict[str, str] = json.loads((self.folder / name / "aliases.json").read_bytes())
        except FileNotFoundError:
            return {}
        return found

    def set_alias(self, name: str, alias: str, version: str, *, expected: str | None = None) -> None:
        """Moves ``alias`` of ``name`` to ``version``, which must exist.

        :param expected: the version that the alias must mean now, else AliasConflict; None: whichever
        """
        if not _ALIAS.fullmatch(alias):
            raise InvalidRequest("An alias is a lower-case word of at most 32 letters, digits and dashes")
        self._entry(name, version)
        folder = self.folder / name
        with _locked(folder) as descriptor:
            aliases = self.aliases(name)
            if expected is not None and aliases.get(alias) != expected:
                raise AliasConflict("The alias means another version by now; read it again before moving it")
            temporary = folder / f".aliases-{secrets.token_hex(8)}"
            with temporary.open("x") as file:
                json.dump(aliases | {alias: version}, file, indent=2, sort_keys=True)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(folder / "aliases.json")
            os.fsync(descriptor)

    def verify(self, entry: Entry) -> None:
        """Checks the digest of every file that the manifest lists. Raises ModelNotReady at the first that differs."""
        manifest = entry.manifest
        listed: list[Fold | GoldenCase] = [*manifest.folds, *manifest.golden]
        for part in listed:
            try:
                with (entry.folder / part.file).open("rb") as file:
                    intact = hashlib.file_digest(file, "sha256").hexdigest() == part.sha256
            except FileNotFoundError:
                intact = False
            if not intact:
                raise ModelNotReady("A file of this model version is missing or is not the one its manifest lists")

    def _entry(self, name: str, version: str) -> Entry:
        folder = self.folder / name / version
        path = folder / "manifest.json"
        if not (_NAME.fullmatch(name) and _VERSION.fullmatch(version)):
            raise ModelNotFound
        try:
            stat = path.stat()
            stamp = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
            if (known := self._parsed.get(path)) and known[0] == stamp:
                return known[1]
            content = path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            raise ModelNotFound("There is no such model version; GET /v1/models lists those there are") from None
        try:
            manifest = Manifest.model_validate_json(content)
        except ValidationError as error:
            raise ModelNotReady("The manifest of this model version cannot be understood by this release") from error
        if (manifest.name, manifest.version) != (name, version):
            raise ModelNotReady("The manifest of this model version names another one")
        entry = Entry(manifest, folder, "sha256:" + hashlib.sha256(content).hexdigest())
        self._parsed[path] = (stamp, entry)
        return entry


def _order(version: str) -> tuple[tuple[int, ...], bool, str]:
    """Semantic versioning's order, as far as it is used: 1.0.0-rc.1 comes before 1.0.0."""
    numbers, _, prerelease = version.partition("-")
    return tuple(map(int, numbers.split("."))), not prerelease, prerelease


@contextmanager
def _locked(folder: Path) -> Iterator[int]:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield descriptor
    finally:
        os.close(descriptor)
