"""Traces by OpenTelemetry; the only module that imports it (`tracing_factory.create_traces` loads it on demand).

Design notes:
- Each object has a separate provider, so two services in one process do not mix their spans.
- A library thread sends the spans in batches. If the collector is not reachable, only spans are lost.
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
    """Traces that send their spans to an OpenTelemetry span processor."""

    def __init__(self, processor: SpanProcessor, service: str) -> None:
        self._provider = TracerProvider(sampler=ALWAYS_ON, resource=Resource.create({"service.name": service}))
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("rlvo")

    @contextmanager
    def span(self, name: str, parent: TraceContext | None, *, server: bool = False, **facts: Fact) -> Iterator[Span]:
        """Trace the block as a span; an error that leaves the block marks the span as failed, by code or type."""
        kind = SpanKind.SERVER if server else SpanKind.INTERNAL
        attributes = {f"rlvo.{key}": value for key, value in facts.items()}
        started = self._tracer.start_span(name, _context(parent), kind=kind, attributes=attributes)
        recorded = _RecordedSpan(started)
        try:
            yield recorded
        except RlvoError as error:
            recorded.fail(error.code)
            raise
        except BaseException as error:
            recorded.fail(type(error).__name__)  # not its message, which may contain submitted data
            raise
        finally:
            started.end()

    def close(self) -> None:
        """Send the remaining spans, within a few seconds."""
        self._provider.shutdown()


class _RecordedSpan:
    def __init__(self, span: trace.Span) -> None:
        self._span = span

    @property
    def trace_context(self) -> TraceContext:
        context = self._span.get_span_context()
        return TraceContext(format(context.trace_id, "032x"), format(context.span_id, "016x"))

    def note(self, **facts: Fact) -> None:
        for key, value in facts.items():
            self._span.set_attribute(f"rlvo.{key}", value)

    def fail(self, code: str) -> None:
        self._span.set_status(StatusCode.ERROR, code)


def _context(parent: TraceContext | None) -> Context:
    """OpenTelemetry context of a parent; an empty context starts a new trace."""
    if parent is None or parent.span is None:
        return Context()
    parent_span = SpanContext(
        int(parent.trace, 16), int(parent.span, 16), is_remote=True, trace_flags=TraceFlags(TraceFlags.SAMPLED)
    )
    return trace.set_span_in_context(NonRecordingSpan(parent_span), Context())


def otlp_traces(endpoint: str, service: str) -> OpenTelemetry:
    """Traces that are sent by OTLP over HTTP to the collector at ``endpoint``, such as http://host:4318."""
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    exporter = OTLPSpanExporter(endpoint=f"{endpoint.rstrip('/')}/v1/traces")
    return OpenTelemetry(BatchSpanProcessor(exporter), service)
