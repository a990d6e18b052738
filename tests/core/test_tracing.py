"""One trace from the caller's span to the last step of the prediction, and none without a collector."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from app.core.otel import OpenTelemetry
from app.core.tracing import NoopTraces, TraceContext, trace_context_of
from app.database import job_state
from app.sdk.errors import InvalidVolume
from app.sdk.types import Stage
from app.worker.pipeline import PredictionPipeline
from app.worker.process import Worker
from tests.api.conftest import running, settings_in, volume
from tests.factory import tiny_version

TRACE, CALLER = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TRACEPARENT = f"00-{TRACE}-{CALLER}-01"


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def traces(exporter: InMemorySpanExporter) -> OpenTelemetry:
    return OpenTelemetry(SimpleSpanProcessor(exporter), "test")


def parent_of(span: ReadableSpan) -> str | None:
    return span.parent and format(span.parent.span_id, "016x")


def ids_of(span: ReadableSpan) -> tuple[str, str]:
    assert span.context
    return format(span.context.trace_id, "032x"), format(span.context.span_id, "016x")


@pytest.mark.parametrize(
    ("header", "context"),
    [
        (TRACEPARENT, TraceContext(TRACE, CALLER)),
        (f"cc-{TRACE}-{CALLER}-00-more", TraceContext(TRACE, CALLER)),
        (f"ff-{TRACE}-{CALLER}-01", None),
        (f"00-{'0' * 32}-{CALLER}-01", None),
        (f"00-{TRACE}-{'0' * 16}-01", None),
        (f"00-{TRACE.upper()}-{CALLER}-01", None),
        ("", None),
    ],
)
def test_valid_traceparent_is_parsed(header: str, context: TraceContext | None) -> None:
    assert trace_context_of(header) == context


def test_noop_traces_pass_the_context_on() -> None:
    with NoopTraces().span("x", TraceContext(TRACE, CALLER)) as span:
        assert span.trace_context == TraceContext(TRACE, CALLER)
    with NoopTraces().span("x", None) as span:
        assert re.fullmatch("[0-9a-f]{32}", span.trace_context.trace)
        assert span.trace_context.span is None


def test_failed_span_has_the_error_code(traces: OpenTelemetry, exporter: InMemorySpanExporter) -> None:
    with pytest.raises(InvalidVolume), traces.span("x", None):
        raise InvalidVolume("CANARY")
    with pytest.raises(ValueError, match="CANARY"), traces.span("y", None):
        raise ValueError("CANARY")
    assert [span.status.description for span in exporter.get_finished_spans()] == [InvalidVolume.code, "ValueError"]
    assert "CANARY" not in "".join(span.to_json() for span in exporter.get_finished_spans())


@pytest.mark.anyio
async def test_trace_of_the_caller_continues_to_the_last_step(
    traces: OpenTelemetry, exporter: InMemorySpanExporter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = tmp_path / "models"
    tiny_version(store)
    settings = settings_in(tmp_path, store)
    async with running(settings, traces=traces) as service:
        files = {"cta": ("cta", volume(), "application/octet-stream")}
        headers = {"Prefer": "respond-async", "traceparent": TRACEPARENT}
        answer = await service.http.post("/v1/predictions", files=files, headers=headers)
        assert answer.headers["x-trace-id"] == TRACE
        prediction_id = answer.json()["id"]
        monkeypatch.setattr("app.worker.workflows.DBOS.run_step", lambda _, step, *given: step(*given))
        monkeypatch.setattr(PredictionPipeline, "step", lambda *_: {"digest": "", "seconds": 0.0})
        worker = Worker(settings, traces=traces)
        worker.workflows.predict(prediction_id)
        worker.liveness.close()
        with service.services.database.reading() as session:
            assert job_state.recorded(session, prediction_id).trace_context == TraceContext(
                TRACE, _named(exporter, "POST")[1]
            )
    spans = {span.name: span for span in exporter.get_finished_spans()}
    assert set(spans) == {"POST", "prediction", *Stage}
    assert {ids_of(span)[0] for span in spans.values()} == {TRACE}
    assert parent_of(spans["POST"]) == CALLER
    assert parent_of(spans["prediction"]) == ids_of(spans["POST"])[1]
    assert {parent_of(spans[stage]) for stage in Stage} == {ids_of(spans["prediction"])[1]}
    assert spans["POST"].kind is SpanKind.SERVER
    assert dict(spans["POST"].attributes or {}) == {"rlvo.route": "/v1/predictions", "rlvo.status": 202}
    assert (spans["prediction"].attributes or {})["rlvo.prediction"] == prediction_id
    assert spans["prediction"].status.status_code is StatusCode.UNSET


def _named(exporter: InMemorySpanExporter, name: str) -> tuple[str, str]:
    return next(ids_of(span) for span in exporter.get_finished_spans() if span.name == name)


def test_without_an_endpoint_no_telemetry_library_is_imported() -> None:
    code = (
        "import sys, app.main, app.worker.process; from app.core.tracing_factory import create_traces\n"
        "create_traces('', 'x');"
        "sys.exit(bool({'app.core.otel', 'opentelemetry.exporter'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
