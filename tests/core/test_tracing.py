"""One trace from the caller's own span to the last step of the work, and none where nobody asked for it."""

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
def kept() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def traces(kept: InMemorySpanExporter) -> OpenTelemetry:
    return OpenTelemetry(SimpleSpanProcessor(kept), "test")


def parent_of(span: ReadableSpan) -> str | None:
    return span.parent and format(span.parent.span_id, "016x")


def own(span: ReadableSpan) -> tuple[str, str]:
    assert span.context
    return format(span.context.trace_id, "032x"), format(span.context.span_id, "016x")


@pytest.mark.parametrize(
    ("header", "place"),
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
def test_a_callers_place_is_taken_where_it_is_valid(header: str, place: TraceContext | None) -> None:
    assert trace_context_of(header) == place


def test_silence_hands_the_place_through() -> None:
    with NoopTraces().span("x", TraceContext(TRACE, CALLER)) as span:
        assert span.place == TraceContext(TRACE, CALLER)
    with NoopTraces().span("x", None) as span:
        assert re.fullmatch("[0-9a-f]{32}", span.place.trace)
        assert span.place.span is None


def test_a_failure_is_told_by_its_code(traces: OpenTelemetry, kept: InMemorySpanExporter) -> None:
    with pytest.raises(InvalidVolume), traces.span("x", None):
        raise InvalidVolume("CANARY")
    with pytest.raises(ValueError, match="CANARY"), traces.span("y", None):
        raise ValueError("CANARY")
    assert [span.status.description for span in kept.get_finished_spans()] == [InvalidVolume.code, "ValueError"]
    assert "CANARY" not in "".join(span.to_json() for span in kept.get_finished_spans())


@pytest.mark.anyio
async def test_a_callers_trace_goes_on_to_the_workers_last_step(
    traces: OpenTelemetry, kept: InMemorySpanExporter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = tmp_path / "models"
    tiny_version(store)
    settings = settings_in(tmp_path, store)
    async with running(settings, traces=traces) as house:
        files = {"cta": ("cta", volume(), "application/octet-stream")}
        headers = {"Prefer": "respond-async", "traceparent": TRACEPARENT}
        answer = await house.http.post("/v1/predictions", files=files, headers=headers)
        assert answer.headers["x-trace-id"] == TRACE
        prediction_id = answer.json()["id"]
        monkeypatch.setattr("app.worker.process.DBOS.run_step", lambda _, step, *given: step(*given))
        monkeypatch.setattr(PredictionPipeline, "step", lambda *_: {"digest": "", "seconds": 0.0})
        worker = Worker(settings, traces=traces)
        worker.predict(prediction_id)
        worker._watch.close()
        with house.services.database.reading() as session:
            assert job_state.recorded(session, prediction_id).place == TraceContext(TRACE, _named(kept, "POST")[1])
    spans = {span.name: span for span in kept.get_finished_spans()}
    assert set(spans) == {"POST", "prediction", *Stage}
    assert {own(span)[0] for span in spans.values()} == {TRACE}
    assert parent_of(spans["POST"]) == CALLER
    assert parent_of(spans["prediction"]) == own(spans["POST"])[1]
    assert {parent_of(spans[stage]) for stage in Stage} == {own(spans["prediction"])[1]}
    assert spans["POST"].kind is SpanKind.SERVER
    assert dict(spans["POST"].attributes or {}) == {"rlvo.route": "/v1/predictions", "rlvo.status": 202}
    assert (spans["prediction"].attributes or {})["rlvo.prediction"] == prediction_id
    assert spans["prediction"].status.status_code is StatusCode.UNSET


def _named(kept: InMemorySpanExporter, name: str) -> tuple[str, str]:
    return next(own(span) for span in kept.get_finished_spans() if span.name == name)


def test_who_is_not_asked_to_trace_imports_no_telemetry() -> None:
    code = (
        "import sys, app.main, app.worker.process; from app.core.tracing_factory import traces_of; traces_of('', 'x');"
        "sys.exit(bool({'app.core.otel', 'opentelemetry.exporter'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
