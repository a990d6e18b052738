"""Loading and unloading of model versions in one worker, as operators request it.

Design notes:
- A version is loaded and checked while the current job runs. A failure changes only the load result of this worker.
- A version is unloaded only when no unfinished prediction names it.
- After a load that met a lost device, the process must end; first the operator's request gets its result.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

from app.database import job_state, model_requests
from app.database.model_requests import LoadRequest
from app.database.session import Database
from app.database.workers import LoadResult
from app.inference.device_errors import device_lost
from app.inference.model_cache import ModelCache
from app.sdk.errors import RlvoError

log = logging.getLogger("rlvo.model_loading")


class ModelLoader:
    """Carries out the load requests in one worker; ``device_error`` is the error by which a load lost the device."""

    def __init__(self, database: Database, model_cache: ModelCache) -> None:
        self._database = database
        self._model_cache = model_cache
        self._results: dict[str, LoadResult] = {}
        self.device_error: Exception | None = None

    @property
    def results(self) -> Mapping[str, LoadResult]:
        """Load results by ``name@version``."""
        return dict(self._results)

    def reconcile(self) -> None:
        """Carries out the requests that have no result yet."""
        with self._database.reading() as session:
            requests = model_requests.current(session)
        for request in requests:
            key = f"{request.name}@{request.version}"
            known = self._results.get(key)
            if known is None or known.generation != request.generation:
                result = self._load(request) if request.wanted else self._unload(request)
                if result is not None:
                    self._results[key] = result

    def _load(self, request: LoadRequest) -> LoadResult:
        try:
            self._model_cache.check(request.name, request.version)
        except RlvoError as error:
            log.error("%s %s is not loaded: %s", request.name, request.version, error.detail)
            return LoadResult(request.generation, error.detail)
        except Exception as error:  # noqa: BLE001 - without a result, the operator's request waits until its timeout
            log.error("%s %s is not loaded: %s", request.name, request.version, type(error).__name__)
            if device_lost(error):
                self.device_error = error
            return LoadResult(request.generation, f"The version could not be loaded: {type(error).__name__}")
        log.info("%s %s is loaded and checked", request.name, request.version)
        return LoadResult(request.generation, None)

    def _unload(self, request: LoadRequest) -> LoadResult | None:
        with self._database.reading() as session:
            if job_state.unfinished_on(session, request.name, request.version):
                return None
        self._model_cache.unload(request.name, request.version)
        return LoadResult(request.generation, None)
