"""Model store: finds, adds and verifies model versions.

Design notes:
- A version is a folder `<name>/<version>` with `manifest.json` and the files that the manifest lists. A complete folder
  is published; no restart and no other registration is needed.
- The digest of a version is the sha-256 of its manifest, which contains the digests of all its other files.
- If keys are trusted, only versions whose manifest is signed with one of them are served.
- Names of requests are checked against patterns before they become paths.
- The module imports no torch, since the API process uses it too.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from app.core.filesystem import atomic_directory
from app.registry import aliases as alias_files
from app.registry import version_files
from app.registry.aliases import ALIAS, DEFAULT_ALIAS, NAME, VERSION, AliasChange
from app.registry.manifest import Manifest, SegmenterManifest, SegmenterRef
from app.sdk.errors import Conflict, ModelNotFound, ModelNotReady

_OPTIONAL = ("card.md", "manifest.sig")
_SHIPPED = Path(__file__).parent / "shipped"  # in an installed package only; an update of the package replaces it


@dataclass(frozen=True)
class StoredVersion:
    """Model version in the store; ``digest`` is ``sha256:<hex>`` of its manifest."""

    manifest: Manifest
    folder: Path
    digest: str

    @property
    def name(self) -> str:
        """Name of the model."""
        return self.manifest.name

    @property
    def version(self) -> str:
        """Version number, such as ``1.2.0``."""
        return self.manifest.version

    def card(self) -> str:
        """Return the model card, Markdown; empty if the version has no card, or a link in its place."""
        try:
            return version_files.read(self.folder, "card.md").decode(errors="replace")
        except ModelNotReady:
            return ""


class ModelStore:
    """Model versions under ``folder``; a manifest is parsed again only when its file changes.

    ``trusted`` holds Ed25519 public keys (see `signatures.public_keys`); without any, versions need no signature.
    """

    def __init__(self, folder: Path, trusted: Sequence[str] = ()) -> None:
        self.folder = folder
        self.trusted = tuple(trusted)
        self._parsed: dict[Path, tuple[tuple[int, int, int], StoredVersion]] = {}

    def resolve(self, reference: str) -> StoredVersion:
        """Return the version of ``name``, ``name@1.2.0`` or ``name@alias``.

        A name alone selects the champion, or the newest version if there is no champion.

        Raises:
            ModelNotFound: There is no such model, version or alias.
            ModelNotReady: The manifest is not valid, or a required signature is missing.
        """
        name, _, which = reference.partition("@")
        if not NAME.fullmatch(name) or (which and not (VERSION.fullmatch(which) or ALIAS.fullmatch(which))):
            raise ModelNotFound("A model reference has the form `name`, `name@1.2.0` or `name@alias`")
        if VERSION.fullmatch(which):
            return self._entry(name, which)
        aliases = self.aliases(name)
        if (alias := which or DEFAULT_ALIAS) in aliases:
            return self._entry(name, aliases[alias])
        versions = self.versions(name)
        if which or not versions:
            raise ModelNotFound("There is no such model or alias; GET /v1/models (`rlvo models list`) lists all")
        return versions[0]

    def names(self) -> list[str]:
        """Return the sorted names of all models that have at least one version."""
        if not self.folder.is_dir():
            return []
        return sorted(
            path.name for path in self.folder.iterdir() if NAME.fullmatch(path.name) and self.versions(path.name)
        )

    def versions(self, name: str) -> list[StoredVersion]:
        """Return the readable versions of ``name``, newest first; an unknown name has none."""
        folder = self.folder / name
        if not NAME.fullmatch(name) or not folder.is_dir():
            return []
        entries = []
        for path in folder.iterdir():
            if VERSION.fullmatch(path.name) and (path / "manifest.json").is_file():
                try:
                    entries.append(self._entry(name, path.name))
                except ModelNotReady:  # resolving this version raises the reason; the others stay usable
                    continue
        return sorted(entries, key=lambda entry: _order(entry.version), reverse=True)

    def add(self, folder: Path) -> StoredVersion:
        """Verify a version and copy it into the store, completely or not at all.

        Raises:
            ModelNotReady: A file is missing or damaged, the manifest is not valid, or a required signature is missing.
            Conflict: The store has this version already, or belongs to the installed package.
        """
        self._require_own_folder()
        manifest = _parsed(version_files.read(folder, "manifest.json"))
        target = self.folder / manifest.name / manifest.version
        if target.exists():
            raise Conflict(f"{manifest.name} {manifest.version} is in the store already; versions never change")
        listed = [part.file for part in manifest.files]
        listed += [each for each in _OPTIONAL if version_files.exists(folder, each)]
        with atomic_directory(target) as draft:
            for file in ("manifest.json", *listed):
                version_files.copy(folder, draft, file)
            self.verify(self._read(draft, version_files.read(draft, "manifest.json")))
            _check_card(draft)
            if manifest.segmenter is not None:
                self._add_segmenter(folder.parent.parent, manifest.segmenter)
        return self._entry(manifest.name, manifest.version)

    def _add_segmenter(self, source: Path, reference: SegmenterRef) -> None:
        """Copy the vessel segmenter of a version from the store ``source``, unless it is in this store already."""
        target = _segmenter_folder(self.folder, reference)
        if target.exists():
            read_segmenter(self.folder, reference)
            return
        folder = version_files.check_folder(source, "segmenters", reference.name, reference.version)
        with atomic_directory(target) as draft:
            version_files.copy(folder, draft, "manifest.json")
            version_files.copy(folder, draft, _segmenter_manifest(draft).file)
            _segmenter_in(draft, reference)

    def aliases(self, name: str) -> dict[str, str]:
        """Return the aliases of ``name`` and their versions."""
        return alias_files.current_versions(self.folder / name) if NAME.fullmatch(name) else {}

    def history(self, name: str, alias: str) -> list[AliasChange]:
        """Return all changes of the alias, oldest first."""
        return alias_files.history(self.folder / name, alias) if NAME.fullmatch(name) else []

    def set_alias(
        self, name: str, alias: str, version: str, *, expected: str | None = None, by: str = "operator"
    ) -> AliasChange:
        """Set ``alias`` of ``name`` to ``version``, which must exist; every process sees the change at once.

        If the alias has another version than ``expected`` (None: any), AliasConflict is raised. ``by`` is the actor.
        The store of the installed package raises Conflict.
        """
        self._require_own_folder()
        self._entry(name, version)
        return alias_files.set_alias(self.folder / name, alias, version, expected=expected, by=by)

    def previous_version(self, name: str, alias: str) -> str:
        """Return the version of the alias before its last change; ModelNotFound if there is none."""
        if not NAME.fullmatch(name) or alias not in self.aliases(name):
            raise ModelNotFound("There is no such alias; GET /v1/models (`rlvo models list`) lists all")
        return alias_files.previous_version(self.folder / name, alias)

    def read(self, folder: Path) -> StoredVersion:
        """Return the version in a folder, which need not be in the store.

        Raises:
            ModelNotReady: The manifest is missing or not valid, or a required signature is missing.
        """
        return self._read(folder, version_files.read(folder, "manifest.json"))

    def verify(self, entry: StoredVersion) -> None:
        """Check the digest of every file that the manifest lists; a wrong file raises ModelNotReady."""
        manifest = entry.manifest
        for part in manifest.files:
            try:
                with (entry.folder / part.file).open("rb") as file:
                    intact = hashlib.file_digest(file, "sha256").hexdigest() == part.sha256
            except OSError:
                intact = False
            if not intact:
                raise ModelNotReady("A file of this model version is missing or differs from its manifest")

    def _require_own_folder(self) -> None:
        if self.folder.resolve() == _SHIPPED.resolve():
            raise Conflict(
                "The versions that come with the package cannot be changed, because its next update replaces them. Set "
                "RLVO_MODEL_STORE to a folder of your own."
            )

    def _entry(self, name: str, version: str) -> StoredVersion:
        folder = self.folder / name / version
        path = folder / "manifest.json"
        if not (NAME.fullmatch(name) and VERSION.fullmatch(version)):
            raise ModelNotFound
        try:
            stat = path.stat()
            stamp = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
            if (cached := self._parsed.get(path)) and cached[0] == stamp:
                return cached[1]
            content = path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            raise ModelNotFound(
                "There is no such model version; GET /v1/models (`rlvo models list`) lists all"
            ) from None
        except OSError as error:
            raise ModelNotReady("The manifest of this model version cannot be read; check its permissions") from error
        entry = self._read(folder, content)
        if (entry.name, entry.version) != (name, version):
            raise ModelNotReady("The manifest of this model version has another name or version than its folder")
        self._parsed[path] = (stamp, entry)
        return entry

    def _read(self, folder: Path, content: bytes) -> StoredVersion:
        """Parse the bytes of a manifest and check its signature if keys are trusted."""
        manifest = _parsed(content)
        if self.trusted:
            from app.registry import signatures  # here: without trusted keys no cryptography library is needed

            signatures.check(folder, content, self.trusted)
        return StoredVersion(manifest, folder, "sha256:" + hashlib.sha256(content).hexdigest())


def _order(version: str) -> tuple[tuple[int, ...], bool, str]:
    """Sort key of a semantic version: 1.0.0-rc.1 comes before 1.0.0."""
    numbers, _, prerelease = version.partition("-")
    return tuple(map(int, numbers.split("."))), not prerelease, prerelease


def read_segmenter(store: Path, reference: SegmenterRef) -> tuple[SegmenterManifest, bytes]:
    """Read manifest and weights of a vessel segmenter; missing or wrong files raise ModelNotReady."""
    return _segmenter_in(_segmenter_folder(store, reference), reference)


def _segmenter_in(folder: Path, reference: SegmenterRef) -> tuple[SegmenterManifest, bytes]:
    manifest = _segmenter_manifest(folder)
    try:
        weights = (folder / manifest.file).read_bytes()
    except OSError as error:
        raise ModelNotReady("The vessel segmenter of this model version is missing or damaged") from error
    if hashlib.sha256(weights).hexdigest() != reference.sha256:
        raise ModelNotReady(f"The sha-256 of {manifest.file} differs from that of the vessel segmenter in the manifest")
    return manifest, weights


def _segmenter_manifest(folder: Path) -> SegmenterManifest:
    try:
        return SegmenterManifest.model_validate_json((folder / "manifest.json").read_bytes())
    except (OSError, ValidationError) as error:
        raise ModelNotReady("The vessel segmenter of this model version is missing or damaged") from error


def _segmenter_folder(store: Path, reference: SegmenterRef) -> Path:
    return store / "segmenters" / reference.name / reference.version


def _parsed(content: bytes) -> Manifest:
    """Parse the bytes of a manifest; ModelNotReady names the first member that is wrong, and what is expected."""
    try:
        return Manifest.model_validate_json(content)
    except ValidationError as error:
        fault = error.errors(include_input=False, include_url=False)[0]
        place = ".".join(map(str, fault["loc"]))[:80] or "manifest.json"
        raise ModelNotReady(
            f"This release cannot read the manifest of this model version: {place}: {fault['msg']}"
        ) from error


def _check_card(folder: Path) -> None:
    if version_files.exists(folder, "card.md"):
        try:
            version_files.read(folder, "card.md").decode()
        except UnicodeDecodeError as error:
            raise ModelNotReady("card.md of the model version must be UTF-8 text") from error
