"""Probabilities that are equal or separate the outcomes: parts that keep equal ones together; whether a line fits."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

LEAST_DIFFERENCE = 1e-9
"""Log-odds that differ by less are equal."""


def equal_parts(probabilities: NDArray[np.float64], parts: int) -> list[NDArray[np.int64]]:
    """Rows (n,) in at most ``parts`` parts of about equal size, from low to high probability.

    Patients with one probability stay in one part: their order in the table must not decide where they count.
    """
    order = np.argsort(probabilities, kind="stable")
    ordered = probabilities[order]
    cuts = np.cumsum([len(part) for part in np.array_split(order, parts)])[:-1]
    cuts = cuts[(cuts > 0) & (cuts < len(order))]
    starts, ends = (np.searchsorted(ordered, ordered[cuts], side=side) for side in ("left", "right"))
    nearest = np.where(cuts - starts <= ends - cuts, starts, ends)
    return [part for part in np.split(order, np.unique(nearest)) if len(part)]


def all_equal(logits: NDArray[np.float64]) -> bool:
    """Whether log-odds (n,) differ by less than the rounding of their computation."""
    return bool(np.ptp(logits) < LEAST_DIFFERENCE)


def no_line_fits(labels: NDArray[np.int64], logits: NDArray[np.float64]) -> bool:
    """Whether log-odds (n,) are all equal or separate the outcomes, so that no line fits."""
    events, others = logits[labels == 1], logits[labels == 0]
    if not len(events) or not len(others) or all_equal(logits):
        return True
    return bool(events.min() >= others.max() or events.max() <= others.min())
