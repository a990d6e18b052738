"""What one worker keeps loaded because operators asked for it, and how it results them.

Notable choices:
- A version is loaded, its files' digests and golden cases checked, beside the job in hand: whoever is served waits for
  nothing of it. What fails is told in this worker's result, and nothing else changes.
- A version that is to go is let go only when no unfinished prediction names it: the old one is drained.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

from app.database import job_state, model_requests
from app.database.model_requests import LoadRequest
from app.database.session import Database
from app.database.workers import LoadResult
from app.inference.model_cache import ModelCache
from app.sdk.errors import RlvoError

log = logging.getLogger("rlvo.residency")


class ModelLoader:
    """The duty of one worker: see that what is asked for is done."""

    def __init__(self, database: Database, predictor: ModelCache) -> None:
        self._database = database
        self._predictor = predictor
        self._results: dict[str, LoadResult] = {}

    @property
    def results(self) -> Mapping[str, LoadResult]:
        """By ``name@version``: what became of the request."""
        return dict(self._results)

    def reconcile(self) -> None:
        """Does what is asked for and not done yet."""
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
            self._predictor.check(request.name, request.version)
        except RlvoError as error:
            log.error("%s %s is not loaded: %s", request.name, request.version, error.detail)
            return LoadResult(request.generation, error.detail)
        except Exception as error:  # noqa: BLE001 - a load that breaks must be told, or whoever asked waits in vain
            log.error("%s %s is not loaded: %s", request.name, request.version, type(error).__name__)
            return LoadResult(request.generation, f"Loading it broke off with {type(error).__name__}")
        log.info("%s %s is loaded and checked", request.name, request.version)
        return LoadResult(request.generation, None)

    def _unload(self, request: LoadRequest) -> LoadResult | None:
        with self._database.reading() as session:
            if job_state.unfinished_on(session, request.name, request.version):
                return None
        self._predictor.unload(request.name, request.version)
        return LoadResult(request.generation, None)
