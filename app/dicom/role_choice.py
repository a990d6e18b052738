"""What a stack of slices is taken for."""

from __future__ import annotations

from dataclasses import dataclass

from app.dicom.stacks import Stack
from app.sdk.series import SeriesRole, SeriesSummary

__all__ = ["Choice", "agent_named", "other"]

_NO_AGENT = frozenset(
    {"", "no", "none", "non", "nein", "ohne", "sin", "sans", "nil", "na", "0", "no contrast", "native"}
)
_MODALITIES = (
    "CT",
    "MR",
    "PT",
    "NM",
    "SR",
    "SC",
    "OT",
    "PR",
    "KO",
    "SEG",
    "XA",
    "US",
    "CR",
    "DX",
    "DOC",
    "REG",
    "PMAP",
)


@dataclass(frozen=True)
class Choice:
    """What a stack is taken for.

    Attributes:
        certain: False if no word of the headers supports the role.
        used: whether the prediction uses the stack.
    """

    stack: Stack
    role: SeriesRole
    rule: str
    reason: str
    certain: bool = True
    used: bool = False

    def summary(self) -> SeriesSummary:
        """The choice as it is stored and shown."""
        facts = self.stack.facts
        return SeriesSummary(
            number=facts.number,
            part=self.stack.part,
            modality=facts.modality if facts.modality in _MODALITIES else "other",
            images=len(self.stack.frames) or self.stack.objects,
            role=self.role,
            used=self.used,
            rule=self.rule,
            reason=self.reason,
        )


def other(stack: Stack, rule: str, reason: str) -> Choice:
    """A series that the model does not read."""
    return Choice(stack, SeriesRole.OTHER, rule, reason)


def agent_named(stack: Stack) -> bool:
    """Whether the header names a contrast agent."""
    return stack.facts.contrast.strip(" .-").lower() not in _NO_AGENT
