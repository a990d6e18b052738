"""Interface of traces from a request to the last step of its prediction (W3C Trace Context).

Design notes:
- The row of a prediction stores its `TraceContext`, so a worker on any machine continues the trace of the caller.
- Without `RLVO_OTLP_ENDPOINT`, `NoopTraces` passes the caller's context on and imports no telemetry library.
- Spans contain ids, names and numbers, but no patient data.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Protocol

_TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")

Fact = str | int | float | bool


@dataclass(frozen=True)
class TraceContext:
    """Identity of a span: trace id (32 hexadecimal digits) and span id (16 digits; None if no span was recorded)."""

    trace: str
    span: str | None = None


def trace_context_of(traceparent: str) -> TraceContext | None:
    """Parse a traceparent header (https://www.w3.org/TR/trace-context/); None if it is not valid."""
    match = _TRACEPARENT.fullmatch(traceparent)
    if match and int(match[1], 16) and int(match[2], 16):
        return TraceContext(match[1], match[2])
    return None


class Span(Protocol):
    """Span: one traced operation."""

    @property
    def trace_context(self) -> TraceContext: ...

    def note(self, **facts: Fact) -> None:
        """Add attributes to the span."""

    def fail(self, code: str) -> None:
        """Mark the span as failed, with an error code of `sdk/errors.py`."""


class Traces(Protocol):
    """Creates the spans of a process and sends them."""

    def span(
        self, name: str, parent: TraceContext | None, *, server: bool = False, **facts: Fact
    ) -> AbstractContextManager[Span]:
        """Trace the block as a span with the attributes ``facts``; ``parent`` None starts a new trace.

        ``server`` marks a span that answers a request.
        """

    def close(self) -> None:
        """Send the remaining spans."""


@dataclass(frozen=True)
class NoopSpan:
    """Span that records nothing."""

    trace_context: TraceContext

    def note(self, **facts: Fact) -> None:
        """Ignore the attributes."""

    def fail(self, code: str) -> None:
        """Ignore the failure."""


class NoopTraces:
    """Traces that record nothing."""

    @contextmanager
    def span(
        self,
        name: str,  # noqa: ARG002
        parent: TraceContext | None,
        *,
        server: bool = False,  # noqa: ARG002
        **facts: Fact,  # noqa: ARG002
    ) -> Iterator[Span]:
        """Yield a span that has the parent's context, or a new trace id."""
        yield NoopSpan(parent or TraceContext(secrets.token_hex(16)))

    def close(self) -> None:
        """Do nothing: no span is recorded."""
