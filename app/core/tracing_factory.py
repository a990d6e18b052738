"""Where the traces of a process go, by the settings: to a collector, or to nobody."""

from __future__ import annotations

from app.core.tracing import NoopTraces, Traces


def create_traces(endpoint: str, service: str) -> Traces:
    """Traces to the collector at ``endpoint`` (OTLP over HTTP), as those of ``service``; none: to nobody."""
    if not endpoint:
        return NoopTraces()
    from app.core.otel import collected  # only here: who is not asked to trace needs no telemetry

    return collected(endpoint, service)
