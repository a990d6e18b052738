"""Creates the traces of a process from the settings."""

from __future__ import annotations

from app.core.tracing import NoopTraces, Traces


def create_traces(endpoint: str, service: str) -> Traces:
    """Return traces that go to the collector at ``endpoint`` (OTLP over HTTP); without one, they record nothing."""
    if not endpoint:
        return NoopTraces()
    from app.core.otel import otlp_traces  # here: without an endpoint no telemetry library is needed

    return otlp_traces(endpoint, service)
