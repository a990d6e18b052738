"""The model store: which versions there are, which one an alias means, and whether their files are intact.

Notable choices:
- A version is a folder, `<name>/<version>/manifest.json` and the files that the manifest lists by digest. Dropping a
  complete folder in publishes it; nothing is registered elsewhere, so nothing has to be restarted.
- A version's digest is the sha-256 of its manifest's bytes, which hold the digests of all its other files.
- Aliases (`champion` is the default one) and every move of them are in `aliases.py`.
- Where keys are trusted, a version whose manifest none of them signed does not serve, whoever asks for it.
- Names come from requests: they are matched against the manifest's own patterns before they touch a path.
- No torch: the API process uses this too.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from app.core.filesystem import atomic_directory, sync
from app.registry import aliases as moves
from app.registry.aliases import ALIAS, DEFAULT_ALIAS, NAME, VERSION, AliasChange
from app.registry.manifest import Fold, GoldenCase, Manifest, SegmenterManifest, SegmenterRef
from app.sdk.errors import Conflict, ModelNotFound, ModelNotReady

_OPTIONAL = ("card.md", "manifest.sig")


@dataclass(frozen=True)
class StoredVersion:
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


class ModelStore:
    """The versions under ``folder``. Manifests are parsed once and again only when their file changes.

    :param trusted: Ed25519 public keys (see `signatures.public_keys`); none: versions need no signature
    """

    def __init__(self, folder: Path, trusted: Sequence[str] = ()) -> None:
        self.folder = folder
        self.trusted = tuple(trusted)
        self._parsed: dict[Path, tuple[tuple[int, int, int], StoredVersion]] = {}

    def resolve(self, reference: str) -> StoredVersion:
        """The version that ``name``, ``name@1.2.0`` or ``name@alias`` means.

        A bare name means its champion, or its newest version where no champion was ever named.
        Raises ModelNotFound, and ModelNotReady where the manifest cannot be understood.
        """
        name, _, which = reference.partition("@")
        if not NAME.fullmatch(name) or (which and not (VERSION.fullmatch(which) or ALIAS.fullmatch(which))):
            raise ModelNotFound("A model is named as `name`, `name@1.2.0` or `name@alias`")
        if VERSION.fullmatch(which):
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
            path.name for path in self.folder.iterdir() if NAME.fullmatch(path.name) and self.versions(path.name)
        )

    def versions(self, name: str) -> list[StoredVersion]:
        """The readable versions of ``name``, newest first; none for an unknown name."""
        folder = self.folder / name
        if not NAME.fullmatch(name) or not folder.is_dir():
            return []
        entries = []
        for path in folder.iterdir():
            if VERSION.fullmatch(path.name) and (path / "manifest.json").is_file():
                try:
                    entries.append(self._entry(name, path.name))
                except ModelNotReady:  # One damaged version does not hide the others; asked for by name, it says why.
                    continue
        return sorted(entries, key=lambda entry: _order(entry.version), reverse=True)

    def add(self, folder: Path) -> StoredVersion:
        """Copies a version into the store, whole or not at all, once its files are what its manifest says.

        :raises ModelNotReady: where a file is missing or damaged, the manifest not understood, a signature missing
        :raises Conflict: where the store has this version: versions never change
        """
        try:
            manifest = Manifest.model_validate_json((folder / "manifest.json").read_bytes())
        except (OSError, ValidationError) as error:
            raise ModelNotReady("The folder holds no manifest.json that this release understands") from error
        place = self.folder / manifest.name / manifest.version
        if place.exists():
            raise Conflict(f"{manifest.name} {manifest.version} is in the store already; versions never change")
        listed = [*(fold.file for fold in manifest.folds), *(case.file for case in manifest.golden)]
        listed += [each for each in _OPTIONAL if (folder / each).is_file()]
        with atomic_directory(place) as draft:
            _copy(folder, draft, ["manifest.json", *listed])
            self.verify(self._read(draft, (draft / "manifest.json").read_bytes()))
            if manifest.segmenter is not None:
                self._add_segmenter(folder.parent.parent, manifest.segmenter)
        return self._entry(manifest.name, manifest.version)

    def _add_segmenter(self, source: Path, named: SegmenterRef) -> None:
        """Brings along the vessel segmenter that a version names, from the store that it lies in."""
        place = _shelf(self.folder, named)
        if place.exists():
            read_segmenter(self.folder, named)
            return
        described, _ = read_segmenter(source, named)
        with atomic_directory(place) as draft:
            _copy(_shelf(source, named), draft, ["manifest.json", described.file])

    def aliases(self, name: str) -> dict[str, str]:
        """The aliases of ``name`` and the version that each one means."""
        return moves.present(self.folder / name) if NAME.fullmatch(name) else {}

    def history(self, name: str, alias: str) -> list[AliasChange]:
        """Every move of the alias, oldest first."""
        return moves.history(self.folder / name, alias) if NAME.fullmatch(name) else []

    def set_alias(
        self, name: str, alias: str, version: str, *, expected: str | None = None, by: str = "operator"
    ) -> AliasChange:
        """Moves ``alias`` of ``name`` to ``version``, which must exist; all who resolve see it at once.

        :param expected: the version that the alias must mean now, else AliasConflict; None: whichever
        :param by: who moved it, for the history
        """
        self._entry(name, version)
        return moves.move(self.folder / name, alias, version, expected=expected, by=by)

    def before(self, name: str, alias: str) -> str:
        """The version that the alias meant before its last move. Raises ModelNotFound where it never moved."""
        if not NAME.fullmatch(name) or alias not in self.aliases(name):
            raise ModelNotFound("There is no such alias; GET /v1/models lists those there are")
        return moves.before(self.folder / name, alias)

    def verify(self, entry: StoredVersion) -> None:
        """Checks the digest of every file that the manifest lists, read afresh.

        Raises ModelNotReady at the first that differs.
        """
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

    def _entry(self, name: str, version: str) -> StoredVersion:
        folder = self.folder / name / version
        path = folder / "manifest.json"
        if not (NAME.fullmatch(name) and VERSION.fullmatch(version)):
            raise ModelNotFound
        try:
            stat = path.stat()
            stamp = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
            if (known := self._parsed.get(path)) and known[0] == stamp:
                return known[1]
            content = path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            raise ModelNotFound("There is no such model version; GET /v1/models lists those there are") from None
        entry = self._read(folder, content)
        if (entry.name, entry.version) != (name, version):
            raise ModelNotReady("The manifest of this model version names another one")
        self._parsed[path] = (stamp, entry)
        return entry

    def _read(self, folder: Path, content: bytes) -> StoredVersion:
        """The version that a manifest's bytes describe, signed where it must be."""
        try:
            manifest = Manifest.model_validate_json(content)
        except ValidationError as error:
            raise ModelNotReady("The manifest of this model version cannot be understood by this release") from error
        if self.trusted:
            from app.registry import signatures  # only here: a store that trusts everybody needs no cryptography

            signatures.check(folder, content, self.trusted)
        return StoredVersion(manifest, folder, "sha256:" + hashlib.sha256(content).hexdigest())


def _order(version: str) -> tuple[tuple[int, ...], bool, str]:
    """Semantic versioning's order, as far as it is used: 1.0.0-rc.1 comes before 1.0.0."""
    numbers, _, prerelease = version.partition("-")
    return tuple(map(int, numbers.split("."))), not prerelease, prerelease


def read_segmenter(store: Path, named: SegmenterRef) -> tuple[SegmenterManifest, bytes]:
    """A vessel segmenter of a model store, and its weights.

    :raises ModelNotReady: where it is missing, or its weights are not the ones that were named
    """
    shelf = _shelf(store, named)
    try:
        described = SegmenterManifest.model_validate_json((shelf / "manifest.json").read_bytes())
        weights = (shelf / described.file).read_bytes()
    except (OSError, ValidationError) as error:
        raise ModelNotReady("the vessel segmenter that the manifest names is missing or damaged") from error
    if hashlib.sha256(weights).hexdigest() != named.sha256:
        raise ModelNotReady(f"{described.file} of the vessel segmenter is not the one that was named (sha-256 differs)")
    return described, weights


def _shelf(store: Path, named: SegmenterRef) -> Path:
    return store / "segmenters" / named.name / named.version


def _copy(source: Path, to: Path, files: Sequence[str]) -> None:
    for file in files:
        if not (source / file).is_file():
            raise ModelNotReady(f"{file}, which the manifest lists, is missing")
        shutil.copyfile(source / file, to / file)
        sync(to / file)
