"""What operators ask of a service's registry: ``client.registry``, blocking or to await as the client itself.

    with Client(url, api_key=key) as rlvo:
        rlvo.registry.promote("rlvo-synthetic", "1.1.0")
        rlvo.registry.rollback("rlvo-synthetic")

Notable choices:
- A move is sent with the alias' entity tag as it was read a moment before, and is never sent twice: whoever moves the
  alias in between wins, and an answer that got lost moves nothing once more.
- What a service refused for good (a version that does not load) is not asked again.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

from ._calls import Call, Steps, Verbs
from ._replies import read, read_all, understood
from .errors import NotFound
from .models import Alias, AliasDraft, AliasMove, ShadowReport
from .types import ModelVersionInfo

__all__ = ["AsyncRegistry", "Registry"]

T = TypeVar("T")
CHAMPION = "champion"
PATIENCE = 180.0
"""Seconds that a move may take beyond the client's own timeout: every worker loads and checks the version first."""


class _Verbs:
    """The verbs as steps, for both kinds of client."""

    def __init__(self, verbs: Verbs) -> None:
        self._verbs = verbs

    def alias(self, model: str, alias: str) -> Steps[Alias]:
        return read(Alias, (yield from self._verbs.exchange(Call("GET", _path(model, alias)))))

    def history(self, model: str, alias: str) -> Steps[Sequence[AliasMove]]:
        return (yield from self.alias(model, alias)).history

    def promote(self, model: str, version: str, alias: str) -> Steps[Alias]:
        document = AliasDraft(version=version).model_dump_json()
        call = Call(
            "PUT",
            _path(model, alias),
            headers=(yield from self._tag(model, alias)),
            document=document,
            patience=PATIENCE,
        )
        return read(Alias, understood((yield call)))

    def rollback(self, model: str, alias: str) -> Steps[Alias]:
        headers = yield from self._tag(model, alias)
        call = Call("POST", f"{_path(model, alias)}/rollback", headers=headers, patience=PATIENCE)
        return read(Alias, understood((yield call)))

    def keep(self, model: str, version: str, verb: str) -> Steps[ModelVersionInfo]:
        call = Call("POST", f"/v1/models/{model}/versions/{version}/{verb}", patience=PATIENCE)
        return read(ModelVersionInfo, understood((yield call)))

    def shadow(self, model: str) -> Steps[Sequence[ShadowReport]]:
        return read_all(ShadowReport, (yield from self._verbs.exchange(Call("GET", f"/v1/models/{model}/shadow"))))

    def _tag(self, model: str, alias: str) -> Steps[dict[str, str]]:
        """The header that names the alias as it is now; none where there is no such alias yet."""
        try:
            seen = yield from self._verbs.exchange(Call("GET", _path(model, alias)))
        except NotFound:
            return {}
        return {"If-Match": seen.headers["ETag"]}


def _path(model: str, alias: str) -> str:
    return f"/v1/models/{model}/aliases/{alias}"


class Registry:
    """The registry of the service that a ``Client`` speaks to. Moves need a key with the scope ``models:admin``."""

    def __init__(self, verbs: Verbs, run: Callable[[Steps[Any]], Any]) -> None:
        self._verbs = _Verbs(verbs)
        self._run = run

    def alias(self, model: str, alias: str = CHAMPION) -> Alias:
        """What an alias means, with every move of it."""
        found: Alias = self._run(self._verbs.alias(model, alias))
        return found

    def history(self, model: str, alias: str = CHAMPION) -> Sequence[AliasMove]:
        """Every move of an alias, oldest first."""
        found: Sequence[AliasMove] = self._run(self._verbs.history(model, alias))
        return found

    def promote(self, model: str, version: str, alias: str = CHAMPION) -> Alias:
        """Moves an alias once every worker has loaded the version and its golden cases come out right.

        :raises ModelNotReady: a worker could not load it, and nothing has changed; the detail says why
        :raises EtagMismatch, AliasConflict: somebody moved the alias meanwhile
        """
        moved: Alias = self._run(self._verbs.promote(model, version, alias))
        return moved

    def rollback(self, model: str, alias: str = CHAMPION) -> Alias:
        """Moves an alias back to what it meant before its last move. Raises as ``promote``."""
        moved: Alias = self._run(self._verbs.rollback(model, alias))
        return moved

    def load(self, model: str, version: str) -> ModelVersionInfo:
        """Has every worker load and check a version, and keep it."""
        found: ModelVersionInfo = self._run(self._verbs.keep(model, version, "load"))
        return found

    def unload(self, model: str, version: str) -> ModelVersionInfo:
        """Has every worker let a version go once nothing is left to do for it."""
        found: ModelVersionInfo = self._run(self._verbs.keep(model, version, "unload"))
        return found

    def shadow(self, model: str) -> Sequence[ShadowReport]:
        """How versions that were scored in the shadow compare with what was answered."""
        found: Sequence[ShadowReport] = self._run(self._verbs.shadow(model))
        return found


class AsyncRegistry:
    """``Registry`` to await."""

    def __init__(self, verbs: Verbs, run: Callable[[Steps[Any]], Awaitable[Any]]) -> None:
        self._verbs = _Verbs(verbs)
        self._run = run

    async def alias(self, model: str, alias: str = CHAMPION) -> Alias:
        """See ``Registry.alias``."""
        found: Alias = await self._run(self._verbs.alias(model, alias))
        return found

    async def history(self, model: str, alias: str = CHAMPION) -> Sequence[AliasMove]:
        """See ``Registry.history``."""
        found: Sequence[AliasMove] = await self._run(self._verbs.history(model, alias))
        return found

    async def promote(self, model: str, version: str, alias: str = CHAMPION) -> Alias:
        """See ``Registry.promote``."""
        moved: Alias = await self._run(self._verbs.promote(model, version, alias))
        return moved

    async def rollback(self, model: str, alias: str = CHAMPION) -> Alias:
        """See ``Registry.rollback``."""
        moved: Alias = await self._run(self._verbs.rollback(model, alias))
        return moved

    async def load(self, model: str, version: str) -> ModelVersionInfo:
        """See ``Registry.load``."""
        found: ModelVersionInfo = await self._run(self._verbs.keep(model, version, "load"))
        return found

    async def unload(self, model: str, version: str) -> ModelVersionInfo:
        """See ``Registry.unload``."""
        found: ModelVersionInfo = await self._run(self._verbs.keep(model, version, "unload"))
        return found

    async def shadow(self, model: str) -> Sequence[ShadowReport]:
        """See ``Registry.shadow``."""
        found: Sequence[ShadowReport] = await self._run(self._verbs.shadow(model))
        return found
