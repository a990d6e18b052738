"""Checks whether the service can answer a prediction now."""

from __future__ import annotations

from collections.abc import Callable

from app.api.dependencies import Services
from app.database import workers
from app.sdk.errors import RlvoError


async def run_checks(services: Services) -> dict[str, str]:
    """Returns the result of each readiness check; the service is ready if all results are ``ok``."""
    return {
        "service": "draining" if services.draining else "ok",
        "database": await _run(services, services.database.ping),
        "storage": await _run(services, services.storage.probe),
        "worker": await _run(services, lambda: _worker_fault(services)),
        "erasures": "ok" if services.erasures_replayed else "the ledger of erasures cannot be read",
    }


def is_ready(results: dict[str, str]) -> bool:
    """Returns whether all readiness checks succeeded."""
    return all(result == "ok" for result in results.values())


async def _run(services: Services, check: Callable[[], str | None]) -> str:
    try:
        return await services.run_in_thread(check) or "ok"
    except RlvoError as error:
        return error.code
    except OSError:
        return "unavailable"


def _worker_fault(services: Services) -> str | None:
    """Why no live worker can use the default model, or None if one can."""
    model = services.registry.resolve(services.settings.default_model)
    with services.database.reading() as session:
        live = workers.live(session, services.settings.lease)
    if not live:
        return "no live worker"
    wanted = f"{model.name}@{model.version}"
    return None if any(wanted in worker.models for worker in live) else "the default model is being loaded"
