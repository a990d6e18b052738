"""Operations on model versions and aliases: ``client.registry``, blocking or asynchronous like the client.

    with Client(url, api_key=key) as rlvo:
        rlvo.registry.promote("mine", "1.1.0")
        rlvo.registry.rollback("mine")

Design notes:
- A move carries the entity tag of the alias in ``If-Match``, so that it fails if another operator moved the alias.
- A move is never retried: after a lost response a retry could move the alias twice.
"""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from typing import Protocol, TypeVar

from ._calls import Call, Steps, Verbs
from ._replies import parse, parse_all, require_response
from .errors import NotFound
from .models import Alias, AliasDraft, AliasMove, ShadowReport
from .types import ModelVersionInfo

__all__ = ["AsyncRegistry", "Registry"]

T = TypeVar("T")
CHAMPION = "champion"
MOVE_TIMEOUT = 180.0
"""Seconds added to the timeout of the client, because every worker loads and verifies the version first."""


class _RegistryVerbs:
    """Methods of the registry as generators of steps."""

    def __init__(self, verbs: Verbs) -> None:
        self._verbs = verbs

    def alias(self, model: str, alias: str) -> Steps[Alias]:
        return parse(Alias, (yield from self._verbs.exchange(Call("GET", _path(model, alias)))))

    def history(self, model: str, alias: str) -> Steps[Sequence[AliasMove]]:
        return (yield from self.alias(model, alias)).history

    def promote(self, model: str, version: str, alias: str) -> Steps[Alias]:
        headers = yield from self._if_match(model, alias)
        document = AliasDraft(version=version).model_dump_json()
        call = Call("PUT", _path(model, alias), headers=headers, document=document, extra_timeout=MOVE_TIMEOUT)
        return parse(Alias, require_response((yield call)))

    def rollback(self, model: str, alias: str) -> Steps[Alias]:
        headers = yield from self._if_match(model, alias)
        call = Call("POST", f"{_path(model, alias)}/rollback", headers=headers, extra_timeout=MOVE_TIMEOUT)
        return parse(Alias, require_response((yield call)))

    def load_or_unload(self, model: str, version: str, verb: str) -> Steps[ModelVersionInfo]:
        call = Call("POST", f"/v1/models/{model}/versions/{version}/{verb}", extra_timeout=MOVE_TIMEOUT)
        return parse(ModelVersionInfo, require_response((yield call)))

    def shadow(self, model: str) -> Steps[Sequence[ShadowReport]]:
        return parse_all(ShadowReport, (yield from self._verbs.exchange(Call("GET", f"/v1/models/{model}/shadow"))))

    def _if_match(self, model: str, alias: str) -> Steps[dict[str, str]]:
        """``If-Match`` header with the current entity tag of the alias; empty for a new alias."""
        try:
            current = yield from self._verbs.exchange(Call("GET", _path(model, alias)))
        except NotFound:
            return {}
        return {"If-Match": current.headers["ETag"]}


def _path(model: str, alias: str) -> str:
    return f"/v1/models/{model}/aliases/{alias}"


class _Run(Protocol):
    def __call__(self, steps: Steps[T]) -> T: ...


class _RunAsync(Protocol):
    def __call__(self, steps: Steps[T]) -> Awaitable[T]: ...


class Registry:
    """Model registry of the service of a ``Client``; moves need an API key with the scope ``models:admin``."""

    def __init__(self, verbs: Verbs, run: _Run) -> None:
        self._verbs = _RegistryVerbs(verbs)
        self._run = run

    def alias(self, model: str, alias: str = CHAMPION) -> Alias:
        """Return the version of an alias and all moves of the alias."""
        return self._run(self._verbs.alias(model, alias))

    def history(self, model: str, alias: str = CHAMPION) -> Sequence[AliasMove]:
        """Return all moves of an alias, oldest first."""
        return self._run(self._verbs.history(model, alias))

    def promote(self, model: str, version: str, alias: str = CHAMPION) -> Alias:
        """Move an alias after every worker has loaded the version and verified its golden cases.

        Raises:
            ModelNotReady: A worker could not load or verify the version; the alias is unchanged.
            EtagMismatch, AliasConflict: Another operator moved the alias.
        """
        return self._run(self._verbs.promote(model, version, alias))

    def rollback(self, model: str, alias: str = CHAMPION) -> Alias:
        """Move an alias back to the version before its last move; raises the errors of ``promote``."""
        return self._run(self._verbs.rollback(model, alias))

    def load(self, model: str, version: str) -> ModelVersionInfo:
        """Let every worker load, verify and keep a version."""
        return self._run(self._verbs.load_or_unload(model, version, "load"))

    def unload(self, model: str, version: str) -> ModelVersionInfo:
        """Let every worker unload a version after its last job."""
        return self._run(self._verbs.load_or_unload(model, version, "unload"))

    def shadow(self, model: str) -> Sequence[ShadowReport]:
        """Compare the shadow scores of versions with the predictions that were returned."""
        return self._run(self._verbs.shadow(model))


class AsyncRegistry:
    """``Registry`` to await."""

    def __init__(self, verbs: Verbs, run: _RunAsync) -> None:
        self._verbs = _RegistryVerbs(verbs)
        self._run = run

    async def alias(self, model: str, alias: str = CHAMPION) -> Alias:
        """See ``Registry.alias``."""
        return await self._run(self._verbs.alias(model, alias))

    async def history(self, model: str, alias: str = CHAMPION) -> Sequence[AliasMove]:
        """See ``Registry.history``."""
        return await self._run(self._verbs.history(model, alias))

    async def promote(self, model: str, version: str, alias: str = CHAMPION) -> Alias:
        """See ``Registry.promote``."""
        return await self._run(self._verbs.promote(model, version, alias))

    async def rollback(self, model: str, alias: str = CHAMPION) -> Alias:
        """See ``Registry.rollback``."""
        return await self._run(self._verbs.rollback(model, alias))

    async def load(self, model: str, version: str) -> ModelVersionInfo:
        """See ``Registry.load``."""
        return await self._run(self._verbs.load_or_unload(model, version, "load"))

    async def unload(self, model: str, version: str) -> ModelVersionInfo:
        """See ``Registry.unload``."""
        return await self._run(self._verbs.load_or_unload(model, version, "unload"))

    async def shadow(self, model: str) -> Sequence[ShadowReport]:
        """See ``Registry.shadow``."""
        return await self._run(self._verbs.shadow(model))
