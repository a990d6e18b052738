"""Promotion of model versions: every live worker loads and verifies the version, then the alias moves.

Design notes:
- A load request is a database row, which each worker reads with its heartbeat. Any number of workers may run.
- The alias moves only after every live worker has verified the golden cases. After one failure or a timeout, the old
  version stays and the error names the reason.
- A worker unloads the old version after the move, when all predictions that were accepted for it are finished.
- The calls block. The API runs them in a thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from app.database import audit, model_requests, workers
from app.database.session import Database
from app.registry.aliases import AliasChange
from app.registry.model_store import ModelStore, StoredVersion
from app.sdk.errors import Conflict, ModelNotReady

PATIENCE = 120.0  # default seconds within which every live worker must load a version
PAUSE = 0.05


class Promotion:
    """Loads, unloads and promotes model versions on all workers.

    A worker counts as lost after ``lease`` seconds without heartbeat. Live workers have ``load_timeout`` seconds to
    load a version. If no worker runs, ``check_here`` verifies a version (name, version); None refuses it.
    """

    def __init__(
        self,
        database: Database,
        registry: ModelStore,
        lease: float,
        *,
        check_here: Callable[[str, str], None] | None = None,
        load_timeout: float = PATIENCE,
    ) -> None:
        self._database = database
        self._registry = registry
        self._lease = lease
        self._check_here = check_here
        self._patience = load_timeout

    def load(self, name: str, version: str, *, by: str) -> StoredVersion:
        """Let every live worker load, verify and keep the version.

        Raises:
            ModelNotFound: There is no such version.
            ModelNotReady: A file is damaged, a worker failed, or a worker did not answer in time.
        """
        entry = self._registry.resolve(f"{name}@{version}")
        self._registry.verify(entry)
        with self._database.session() as session:
            already = any(d.wanted for d in model_requests.current(session) if (d.name, d.version) == _pair(entry))
            generation = model_requests.request(session, *_pair(entry), wanted=True)
        try:
            self._await_all(entry, generation)
        except ModelNotReady:
            if not already:
                with self._database.session() as session:
                    model_requests.request(session, *_pair(entry), wanted=False)
            raise
        self._audit(by, "model.load", entry)
        return entry

    def unload(self, name: str, version: str, *, by: str) -> StoredVersion:
        """Let every worker unload the version after its accepted predictions; raise Conflict if an alias has it."""
        entry = self._registry.resolve(f"{name}@{version}")
        aliases = sorted(alias for alias, which in self._registry.aliases(name).items() if which == entry.version)
        if aliases:
            raise Conflict(f"These aliases have this version: {', '.join(aliases)}. Move them first.")
        with self._database.session() as session:
            model_requests.request(session, *_pair(entry), wanted=False)
        self._audit(by, "model.unload", entry)
        return entry

    def promote(self, name: str, alias: str, version: str, *, expected: str | None = None, by: str) -> AliasChange:
        """Load and verify the version on all workers, move the alias to it, and unload its previous version.

        Raises:
            ModelNotFound: There is no such version.
            ModelNotReady: A worker did not load the version; the alias did not move.
            AliasConflict: The alias has another version than ``expected`` (None: any).
        """
        entry = self.load(name, version, by=by)
        change = self._registry.set_alias(name, alias, entry.version, expected=expected, by=by)
        with self._database.session() as session:
            if change.previous and change.previous not in self._registry.aliases(name).values():
                model_requests.request(session, name, change.previous, wanted=False)
            detail = {"alias": alias, "version": entry.version, "previous": change.previous, "digest": entry.digest}
            audit.append(session, by, "model.alias", name, detail)
        return change

    def rollback(self, name: str, alias: str, *, expected: str | None = None, by: str) -> AliasChange:
        """Move the alias back to its previous version, as `promote` does and with the same errors."""
        return self.promote(name, alias, self._registry.previous_version(name, alias), expected=expected, by=by)

    def _await_all(self, entry: StoredVersion, generation: int) -> None:
        key, deadline = f"{entry.name}@{entry.version}", time.monotonic() + self._patience
        while True:
            with self._database.reading() as session:
                live = workers.live(session, self._lease)
            if not live:
                if self._check_here is None:
                    raise ModelNotReady("No worker is running to load and verify the version", retry_after=10)
                self._check_here(*_pair(entry))
                return
            answers = [worker.load_results.get(key) for worker in live]
            current = [answer for answer in answers if answer and answer.generation == generation]
            for answer in current:
                if answer.error is not None:
                    raise ModelNotReady(f"A worker could not load the version: {answer.error}")
            if len(current) == len(live):
                return
            if time.monotonic() > deadline:
                raise ModelNotReady(
                    f"{len(live) - len(current)} of {len(live)} workers did not load the version in time",
                    retry_after=30,
                )
            time.sleep(PAUSE)

    def _audit(self, by: str, action: str, entry: StoredVersion) -> None:
        with self._database.session() as session:
            audit.append(session, by, action, entry.name, {"version": entry.version, "digest": entry.digest})


def _pair(entry: StoredVersion) -> tuple[str, str]:
    return entry.name, entry.version
