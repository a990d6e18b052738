"""Limits the request rate of each caller, with bursts of a tenth of the requests per minute and one more.

Design notes:
- The method is the generic cell rate algorithm (ITU-T I.371): one theoretical arrival time per caller.
- The state is in this process only, so N API processes allow N times the rate.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Hashable

MAX_CALLERS = 10_000  # callers whose rate is kept; one more replaces the caller that was idle longest


def burst(per_minute: int) -> int:
    """Returns how many requests a caller that was idle may send at once; at least two."""
    return max(1, per_minute // 10) + 1


class RateLimiter:
    """The theoretical arrival times of all callers."""

    def __init__(self) -> None:
        self._arrivals: OrderedDict[Hashable, float] = OrderedDict()

    def take(self, caller: Hashable, per_minute: int, now: float | None = None) -> float:
        """Counts one request.

        Args:
            caller: The identity of the caller.
            per_minute: Allowed requests per minute; 0 means no limit.
            now: Present time of a monotonic clock, in seconds.

        Returns:
            0 if the request may pass, else the seconds after which it would pass.
        """
        if per_minute == 0:
            return 0.0
        present = time.monotonic() if now is None else now
        interval = 60.0 / per_minute
        arrival = max(present, self._arrivals.pop(caller, present))
        wait = arrival + interval - present - burst(per_minute) * interval
        if wait <= 1e-9:
            arrival += interval
        self._arrivals[caller] = arrival
        if len(self._arrivals) > MAX_CALLERS:
            self._arrivals.popitem(last=False)
        return max(0.0, wait) if wait > 1e-9 else 0.0
