"""Start and end of a service process: folders, tables, and the tasks that run while it answers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from anyio import create_task_group, move_on_after, to_thread
from fastapi import FastAPI

from app.api import dicom_uploads, study_intake
from app.api.dependencies import Services
from app.database import idempotency
from app.storage.factory import secure

REPLAY_PATIENCE = 10.0  # seconds that the start waits for the ledger of erasures; until it is read, /readyz is 503


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Prepares folders and tables and repeats the erasures of the ledger; at the end drains and closes.

    The change watcher runs during all of this time. A ledger that cannot be read delays the start by `REPLAY_PATIENCE`
    only: then its erasures are repeated while the service answers.
    """
    services: Services = app.state.services
    await to_thread.run_sync(secure, services.settings)
    await to_thread.run_sync(dicom_uploads.clear, services.settings)
    await to_thread.run_sync(services.database.upgrade)
    await to_thread.run_sync(services.queue.upgrade)
    await services.write(idempotency.forget, services.owner)
    async with create_task_group() as tasks:
        tasks.start_soon(services.watcher.run)
        await to_thread.run_sync(services.eraser.reserve.fill)
        tasks.start_soon(services.replay_erasures)
        tasks.start_soon(services.held_keys.renew_always)
        tasks.start_soon(services.index_received)
        tasks.start_soon(study_intake.run, services)
        with move_on_after(REPLAY_PATIENCE):
            await services.erasures_replayed.wait()
        try:
            yield
        finally:
            services.drain()
            tasks.cancel_scope.cancel()
    await to_thread.run_sync(services.database.close)
    await to_thread.run_sync(services.traces.close)
