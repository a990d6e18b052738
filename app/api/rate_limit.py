"""How much one caller may ask for: so many requests a minute, in bursts of a tenth of them.

The generic cell rate algorithm (ITU-T I.371): one number a caller, the moment at which its allowance is whole again.
Kept in this process: several API processes allow as many times the rate.
"""

from __future__ import annotations

import time
from collections import OrderedDict

MOST_CALLERS = 10_000
"""The callers that are remembered; of more, those that asked least lately begin anew."""


class RateLimiter:
    """The allowances of all callers."""

    def __init__(self) -> None:
        self._whole_at: OrderedDict[str, float] = OrderedDict()

    def take(self, caller: str, per_minute: int, moment: float | None = None) -> float:
        """Counts one request; returns 0, or the seconds after which the refused request would pass.

        :param per_minute: the caller's rate; 0: no bound
        :param moment: the present, by a clock that only goes forward, in seconds
        """
        if per_minute == 0:
            return 0.0
        present = time.monotonic() if moment is None else moment
        interval, burst = 60.0 / per_minute, max(1, per_minute // 10)
        whole_at = max(present, self._whole_at.pop(caller, present))
        wait = whole_at + interval - present - burst * interval
        if wait <= 1e-9:
            whole_at += interval
        self._whole_at[caller] = whole_at
        if len(self._whole_at) > MOST_CALLERS:
            self._whole_at.popitem(last=False)
        return max(0.0, wait) if wait > 1e-9 else 0.0
