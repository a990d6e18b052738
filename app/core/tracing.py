"""Traces from a request to the last step of its prediction, by W3C trace context.

Notable choices:
- A span's place (`TraceContext`) travels in the prediction's row, as a request's does in its traceparent header, so a worker
  on any machine, hours later, goes on with the caller's own trace.
- Nothing is sent unless `RLVO_OTLP_ENDPOINT` says where to (`traces.py`): `NoopTraces` hands a caller's place through, so
  that the record still names the trace, and no telemetry library is imported.
- Spans hold ids, names and numbers, never a value of a patient.
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
    """Where in which trace: 32 and 16 hexadecimal digits. ``span``: None where nothing was traced."""

    trace: str
    span: str | None = None


def trace_context_of(traceparent: str) -> TraceContext | None:
    """The caller's place (https://www.w3.org/TR/trace-context/), where it sent a valid one."""
    match = _TRACEPARENT.fullmatch(traceparent)
    if match and int(match[1], 16) and int(match[2], 16):
        return TraceContext(match[1], match[2])
    return None


class Span(Protocol):
    """A piece of work that is being traced."""

    @property
    def place(self) -> TraceContext: ...

    def note(self, **facts: Fact) -> None:
        """Adds what became known meanwhile."""

    def fail(self, code: str) -> None:
        """Marks the work as failed, with a code of `sdk/errors.py`."""


class Traces(Protocol):
    """Where spans go."""

    def span(
        self, name: str, parent: TraceContext | None, *, server: bool = False, **facts: Fact
    ) -> AbstractContextManager[Span]:
        """Traces the block as ``name``, caused by ``parent`` or else by nothing; ``server``: it answers a request."""

    def close(self) -> None:
        """Sends what is left."""


@dataclass(frozen=True)
class NoopSpan:
    place: TraceContext

    def note(self, **facts: Fact) -> None:
        """Nobody listens."""

    def fail(self, code: str) -> None:
        """Nobody listens."""


class NoopTraces:
    """Traces that nobody keeps."""

    @contextmanager
    def span(
        self,
        name: str,  # noqa: ARG002
        parent: TraceContext | None,
        *,
        server: bool = False,  # noqa: ARG002
        **facts: Fact,  # noqa: ARG002
    ) -> Iterator[Span]:
        """The block, at its caller's place or in a trace of its own."""
        yield NoopSpan(parent or TraceContext(secrets.token_hex(16)))

    def close(self) -> None:
        """There is nothing left."""
