"""Corrects the roles of series by the order of their acquisition.

Design notes:
- A head without contrast words is no NCCT if the scanner acquired it after a series with contrast agent.
- A head with contrast words can be an NCCT if it was acquired before all of them.
- Of several angiographies of one region, those that were acquired after the first are late phases.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace

from app.dicom.role_choice import Choice, agent_named, other
from app.dicom.stacks import Stack
from app.sdk.series import SeriesRole

__all__ = ["in_order_of_time"]

LATER_S = 6.0  # reconstructions of one acquisition start less far apart, phases of an angiography farther
SAME_REGION = 0.5  # share of the shorter extent that two phases have in common
_ACQUIRED = (  # a content time may be that of a later reconstruction
    "FrameAcquisitionDateTime",
    "AcquisitionDateTime",
    "AcquisitionTime",
)


def in_order_of_time(choices: Sequence[Choice]) -> list[Choice]:
    """The choices for all stacks of a study, corrected."""
    return _without_phases(_before_contrast(_timely(choices)))


def _timely(choices: Sequence[Choice]) -> list[Choice]:
    """The choices, but an NCCT without a word is none if it was acquired after a contrast agent was given.

    It is doubtful if an agent was given, and times do not say whether before or after.
    """
    given = [each for each in choices if each.rule == "after-contrast" or _shows_agent(each)]
    first = _first(given)
    late = "The series was acquired after a series with contrast agent."
    ordered = []
    for each in choices:
        at = _acquired(each.stack)
        if each.rule != "no-contrast-agent" or not given:
            ordered.append(each)
        elif at is None or first == math.inf:
            ordered.append(replace(each, certain=False))
        else:
            ordered.append(other(each.stack, "after-contrast", late) if at > first else each)
    return ordered


def _before_contrast(choices: Sequence[Choice]) -> list[Choice]:
    """The choices, with doubtful NCCT if there is no other: words may say "without" in a way that no rule knows.

    A head that words say to be with contrast agent is one, if its header has no agent, and if it was acquired before
    all series that show one.
    """
    if any(each.role is SeriesRole.NCCT for each in choices):
        return list(choices)
    agent = _first(filter(_shows_agent, choices))
    reason = "Words name a contrast agent, but the series was acquired before all series with one."
    return [
        Choice(each.stack, SeriesRole.NCCT, "before-contrast", reason, certain=False)
        if each.rule == "after-contrast" and _before(each.stack, agent)
        else each
        for each in choices
    ]


def _first(choices: Iterable[Choice]) -> float:
    """When the first of these series was acquired, s; infinity if none says."""
    return min((at for each in choices if (at := _acquired(each.stack)) is not None), default=math.inf)


def _before(stack: Stack, agent: float) -> bool:
    """Whether an acquired series has no contrast agent, and lies before the first one that has."""
    at = _acquired(stack)
    return at is not None and at < agent < math.inf and not agent_named(stack) and "DERIVED" not in stack.types


def _without_phases(choices: Sequence[Choice]) -> list[Choice]:
    """The choices, but an angiography is a late phase if another one showed the same region before it."""
    timed = [(at, each) for each in choices if (at := _acquired(each.stack)) is not None]
    found = [(at, each) for at, each in timed if each.role is SeriesRole.CTA]
    named = [(at, each.stack) for at, each in found if each.rule == "words-cta"]
    late = {
        id(each)
        for at, each in found
        if any(before < at - LATER_S and _share(first, each.stack) >= SAME_REGION for before, first in named)
    }
    reason = "Another angiography of this region was acquired before."
    return [other(each.stack, "late-phase", reason) if id(each) in late else each for each in choices]


def _share(one: Stack, another: Stack) -> float:
    """Extent along the patient's axis that two axial stacks have in common, as a share of the shorter one."""
    (low, high), (low_2, high_2) = one.heights_mm, another.heights_mm
    return (min(high, high_2) - max(low, low_2)) / max(min(high - low, high_2 - low_2), 1.0)


def _shows_agent(choice: Choice) -> bool:
    """Whether a series shows that a contrast agent was given before it, or while it was acquired."""
    rules = choice.role in (SeriesRole.CTA, SeriesRole.CTP) or choice.rule == "bolus-tracking"
    return rules or (choice.stack.placed and agent_named(choice.stack))


def _acquired(stack: Stack) -> float | None:
    """When the first slice was acquired, s; None if the slices do not say."""
    times = [frame.times_s[name] for frame in stack.frames for name in _ACQUIRED if name in frame.times_s]
    return min(times, default=None)
