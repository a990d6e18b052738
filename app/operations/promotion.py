"""How a version comes to serve: loaded and checked on every live worker, then one rename of the alias.

Notable choices:
- Workers are asked by a row of the database, which they look at with each beat: any number, on any machines.
- Until every live worker has answered that the version is warm and its golden cases come out right, nothing changes. A
  single refusal, or silence, leaves the old version serving and says why.
- The old version is let go only after the flip, and by each worker only when nothing that was accepted for it is left.
- Used by the API in a thread and by the command line: it speaks plain blocking calls.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from app.database import audit, model_requests, workers
from app.database.session import Database
from app.registry.aliases import AliasChange
from app.registry.model_store import ModelStore, StoredVersion
from app.sdk.errors import Conflict, ModelNotReady

PATIENCE = 120.0
"""Seconds in which every live worker must have loaded a version."""
PAUSE = 0.05


class Promotion:
    """Moves aliases over what the workers have loaded.

    :param lease: seconds of silence after which a worker counts as dead and is not waited for
    :param alone: checks a version where no worker lives to do so; None: such a version is not taken
    """

    def __init__(
        self,
        database: Database,
        registry: ModelStore,
        lease: float,
        *,
        alone: Callable[[str, str], None] | None = None,
        patience: float = PATIENCE,
    ) -> None:
        self._database = database
        self._registry = registry
        self._lease = lease
        self._alone = alone
        self._patience = patience

    def load(self, name: str, version: str, *, by: str) -> StoredVersion:
        """Has every live worker load and check the version, and keep it. Raises ModelNotFound, ModelNotReady."""
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
        self._note(by, "model.load", entry)
        return entry

    def unload(self, name: str, version: str, *, by: str) -> StoredVersion:
        """Has every worker let the version go once nothing is left to do for it.

        Raises ModelNotFound, and Conflict where an alias means it.
        """
        entry = self._registry.resolve(f"{name}@{version}")
        meant = sorted(alias for alias, which in self._registry.aliases(name).items() if which == entry.version)
        if meant:
            raise Conflict(f"The version is what {', '.join(meant)} means; move the alias first")
        with self._database.session() as session:
            model_requests.request(session, *_pair(entry), wanted=False)
        self._note(by, "model.unload", entry)
        return entry

    def promote(self, name: str, alias: str, version: str, *, expected: str | None = None, by: str) -> AliasChange:
        """Loads and checks the version everywhere, moves the alias to it, and lets go of what it meant before.

        :param expected: the version that the alias must mean now
        :raises ModelNotFound, ModelNotReady, InvalidRequest: nothing has changed then
        :raises AliasConflict: somebody moved it meanwhile
        """
        entry = self.load(name, version, by=by)
        move = self._registry.set_alias(name, alias, entry.version, expected=expected, by=by)
        with self._database.session() as session:
            if move.previous and move.previous not in self._registry.aliases(name).values():
                model_requests.request(session, name, move.previous, wanted=False)
            detail = {"alias": alias, "version": entry.version, "previous": move.previous, "digest": entry.digest}
            audit.append(session, by, "model.alias", name, detail)
        return move

    def rollback(self, name: str, alias: str, *, expected: str | None = None, by: str) -> AliasChange:
        """Moves the alias back to what it meant before its last move, in the same way. Raises as `promote`."""
        return self.promote(name, alias, self._registry.before(name, alias), expected=expected, by=by)

    def _await_all(self, entry: StoredVersion, generation: int) -> None:
        key, until = f"{entry.name}@{entry.version}", time.monotonic() + self._patience
        while True:
            with self._database.reading() as session:
                live = workers.live(session, self._lease)
            if not live:
                if self._alone is None:
                    raise ModelNotReady("No worker is alive to load and check the version", retry_after=10)
                self._alone(*_pair(entry))
                return
            answers = [worker.load_results.get(key) for worker in live]
            told = [answer for answer in answers if answer and answer.generation == generation]
            for answer in told:
                if answer.error is not None:
                    raise ModelNotReady(f"A worker could not load the version: {answer.error}")
            if len(told) == len(live):
                return
            if time.monotonic() > until:
                raise ModelNotReady(
                    f"{len(live) - len(told)} of {len(live)} workers did not load the version in time", retry_after=30
                )
            time.sleep(PAUSE)

    def _note(self, by: str, action: str, entry: StoredVersion) -> None:
        with self._database.session() as session:
            audit.append(session, by, action, entry.name, {"version": entry.version, "digest": entry.digest})


def _pair(entry: StoredVersion) -> tuple[str, str]:
    return entry.name, entry.version
