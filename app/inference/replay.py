"""How far a probability that is computed again may be from the stored one."""

from __future__ import annotations

from typing import NamedTuple

from app.inference.model_version import TOLERANCE
from app.network.backends import Precision

SAME = 1e-6  # on a CPU in float32: another library may round the last digits differently


class ComputedOn(NamedTuple):
    """Type of the device (``cpu`` or ``cuda``) and precision of the trunks that an answer was computed with."""

    device: str
    precision: Precision


def tolerance(stored: ComputedOn | None, here: ComputedOn) -> float:
    """Largest difference of two equal probabilities; ``stored`` is None for an answer of an earlier release.

    Two devices of one type can still be different cards, whose libraries choose other kernels. So only float32 on a CPU
    gives the same digits, and the golden cases of a version bound the rest.
    """
    both = {stored or here, here}
    if both == {ComputedOn("cpu", Precision.FLOAT32)}:
        return SAME
    return max(TOLERANCE[each.precision] for each in both)
