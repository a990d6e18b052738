"""Spans by OpenTelemetry. The one file that imports it, and only on purpose (`tracing.traces_of`).

Notable choices:
- A provider of our own, not the process-wide one: two services in one process (the tests) do not mix, and no library
  that traces by itself adds spans with what it saw.
- Spans are sent in batches by a thread of the library's; a collector that is away costs nothing but spans.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace import NonRecordingSpan, SpanContext, SpanKind, StatusCode, TraceFlags

from app.core.tracing import Fact, Span, TraceContext
from app.sdk.errors import RlvoError


class OpenTelemetry:
    """`tracing.Traces` that end in ``processor``."""

    def __init__(self, processor: SpanProcessor, service: str) -> None:
        self._provider = TracerProvider(sampler=ALWAYS_ON, resource=Resource.create({"service.name": service}))
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("rlvo")

    @contextmanager
    def span(self, name: str, parent: TraceContext | None, *, server: bool = False, **facts: Fact) -> Iterator[Span]:
        """See `tracing.Traces.span`. An RlvoError that leaves the block is its failure, by its code."""
        kind = SpanKind.SERVER if server else SpanKind.INTERNAL
        attributes = {f"rlvo.{key}": value for key, value in facts.items()}
        started = self._tracer.start_span(name, _context(parent), kind=kind, attributes=attributes)
        kept = _Kept(started)
        try:
            yield kept
        except RlvoError as error:
            kept.fail(error.code)
            raise
        except BaseException as error:
            kept.fail(type(error).__name__)  # its message may hold what was submitted
            raise
        finally:
            started.end()

    def close(self) -> None:
        """Sends what is left, for a few seconds at most."""
        self._provider.shutdown()


class _Kept:
    def __init__(self, span: trace.Span) -> None:
        self._span = span

    @property
    def place(self) -> TraceContext:
        here = self._span.get_span_context()
        return TraceContext(format(here.trace_id, "032x"), format(here.span_id, "016x"))

    def note(self, **facts: Fact) -> None:
        for key, value in facts.items():
            self._span.set_attribute(f"rlvo.{key}", value)

    def fail(self, code: str) -> None:
        self._span.set_status(StatusCode.ERROR, code)


def _context(parent: TraceContext | None) -> Context:
    """OpenTelemetry's own word for a parent; an empty context starts a trace."""
    if parent is None or parent.span is None:
        return Context()
    around = SpanContext(
        int(parent.trace, 16), int(parent.span, 16), is_remote=True, trace_flags=TraceFlags(TraceFlags.SAMPLED)
    )
    return trace.set_span_in_context(NonRecordingSpan(around), Context())


def collected(endpoint: str, service: str) -> OpenTelemetry:
    """Spans sent to a collector by OTLP over HTTP; ``endpoint`` is its base address, such as http://host:4318."""
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    exporter = OTLPSpanExporter(endpoint=f"{endpoint.rstrip('/')}/v1/traces")
    return OpenTelemetry(BatchSpanProcessor(exporter), service)
