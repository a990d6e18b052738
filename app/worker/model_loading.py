"""What one worker keeps loaded because operators asked for it, and how it answers them.

Notable choices:
- A version is loaded, its files' digests and golden cases checked, beside the job in hand: whoever is served waits for
  nothing of it. What fails is told in this worker's answer, and nothing else changes.
- A version that is to go is let go only when no unfinished prediction names it: the old one is drained.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

from app.database import job_state, model_requests
from app.database.model_requests import Demand
from app.database.session import Database
from app.database.workers import Answer
from app.inference.model_cache import Predictor
from app.sdk.errors import RlvoError

log = logging.getLogger("rlvo.residency")


class Residency:
    """The duty of one worker: see that what is asked for is done."""

    def __init__(self, database: Database, predictor: Predictor) -> None:
        self._database = database
        self._predictor = predictor
        self._answers: dict[str, Answer] = {}

    @property
    def answers(self) -> Mapping[str, Answer]:
        """By ``name@version``: what became of the demand."""
        return dict(self._answers)

    def tend(self) -> None:
        """Does what is asked for and not done yet."""
        with self._database.reading() as session:
            standing = model_requests.standing(session)
        for demand in standing:
            key = f"{demand.name}@{demand.version}"
            known = self._answers.get(key)
            if known is None or known.ticket != demand.ticket:
                answer = self._load(demand) if demand.wanted else self._unload(demand)
                if answer is not None:
                    self._answers[key] = answer

    def _load(self, demand: Demand) -> Answer:
        try:
            self._predictor.check(demand.name, demand.version)
        except RlvoError as error:
            log.error("%s %s is not loaded: %s", demand.name, demand.version, error.detail)
            return Answer(demand.ticket, error.detail)
        except Exception as error:  # noqa: BLE001 - a load that breaks must be told, or whoever asked waits in vain
            log.error("%s %s is not loaded: %s", demand.name, demand.version, type(error).__name__)
            return Answer(demand.ticket, f"Loading it broke off with {type(error).__name__}")
        log.info("%s %s is loaded and checked", demand.name, demand.version)
        return Answer(demand.ticket, None)

    def _unload(self, demand: Demand) -> Answer | None:
        with self._database.reading() as session:
            if job_state.unfinished_on(session, demand.name, demand.version):
                return None
        self._predictor.unload(demand.name, demand.version)
        return Answer(demand.ticket, None)
