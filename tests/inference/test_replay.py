"""Tolerance of a replay: the same digits on the same kind of device, the bound of the golden cases otherwise."""

from __future__ import annotations

import pytest

from app.inference.replay import SAME, ComputedOn, tolerance
from app.network.backends import Precision

CPU = ComputedOn("cpu", Precision.FLOAT32)
CPU_BFLOAT16 = ComputedOn("cpu", Precision.BFLOAT16)
CARD = ComputedOn("cuda", Precision.BFLOAT16)
CARD_FLOAT32 = ComputedOn("cuda", Precision.FLOAT32)


@pytest.mark.parametrize(
    ("stored", "here", "allowed"),
    [
        (CPU, CPU, SAME),
        (None, CPU, SAME),  # an answer of an earlier release
        (CPU, CPU_BFLOAT16, 1e-2),
        (CARD, CPU, 1e-2),
        (CPU, CARD, 1e-2),
        (CARD, CARD, 1e-2),
        (CARD_FLOAT32, CPU, 1e-4),
        (CARD_FLOAT32, CARD, 1e-2),
    ],
)
def test_tolerance_follows_device_and_precision(stored: ComputedOn | None, here: ComputedOn, allowed: float) -> None:
    assert tolerance(stored, here) == allowed
