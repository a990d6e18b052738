"""Checks whether the service can answer a prediction now, within a fixed time.

Design notes:
- A disk, a bucket or a database can hang instead of failing. So each check of them runs in a thread that nothing else
  uses, and a request waits at most `LIMIT` seconds for it.
- A check that hangs keeps its thread. Later requests share this check, so the number of threads is bounded.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from app.database import workers
from app.sdk.errors import RlvoError

if TYPE_CHECKING:
    from app.api.dependencies import Services

LIMIT = 1.0  # seconds; the usual timeout of a probe is a little longer
NO_ANSWER = "timeout"
_UNAVAILABLE = "unavailable"
_UNREAD_LEDGER = "the ledger of erasures cannot be read"

Check = Callable[[], str | None]


class ReadinessProbe:
    """The readiness checks of one service process."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._running: dict[str, asyncio.Future[str]] = {}

    async def run(self) -> dict[str, str]:
        """Returns the result of each check within `LIMIT` seconds; the service is ready if all results are ``ok``."""
        checks: dict[str, Check] = {
            "database": self._services.database.ping,
            "storage": self._services.storage.probe,
            "worker": self._worker_fault,
        }
        results = {name: self._start(name, check) for name, check in checks.items()}
        await asyncio.wait(results.values(), timeout=LIMIT)
        return {
            "service": "draining" if self._services.draining else "ok",
            **{name: result.result() if result.done() else NO_ANSWER for name, result in results.items()},
            "erasures": "ok" if self._services.erasures_replayed.is_set() else _UNREAD_LEDGER,
        }

    def _start(self, name: str, check: Check) -> asyncio.Future[str]:
        """The result of the running check of this name, or of a new one."""
        if (running := self._running.get(name)) is not None:
            return running
        loop = asyncio.get_running_loop()
        result: asyncio.Future[str] = loop.create_future()

        def finish(text: str) -> None:
            self._running.pop(name, None)
            result.set_result(text)

        def run() -> None:
            text = _result(check)
            with suppress(RuntimeError):  # the service has ended
                loop.call_soon_threadsafe(finish, text)

        self._running[name] = result
        try:
            threading.Thread(target=run, name=f"readiness-{name}", daemon=True).start()
        except RuntimeError:  # the system refuses new threads
            finish(_UNAVAILABLE)
        return result

    def _worker_fault(self) -> str | None:
        """Why no live worker can use the default model, or None if one can."""
        services = self._services
        model = services.registry.resolve(services.settings.default_model)
        with services.database.reading() as session:
            live = workers.live(session, services.settings.lease)
        wanted = f"{model.name}@{model.version}"
        if any(wanted in worker.models for worker in live):
            return None
        return services.worker_fault() or ("the default model is being loaded" if live else "no live worker")


def is_ready(results: dict[str, str]) -> bool:
    """Returns whether all readiness checks succeeded."""
    return all(result == "ok" for result in results.values())


def _result(check: Check) -> str:
    try:
        return check() or "ok"
    except RlvoError as error:
        return error.code
    except Exception:  # noqa: BLE001 - a check that fails in any way means that the service is not ready
        return _UNAVAILABLE
