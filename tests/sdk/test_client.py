from __future__ import annotations

import json
import time
import tracemalloc
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email import message_from_bytes
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from app.sdk import (
    ClinicalRecord,
    Conflict,
    Draining,
    Erased,
    Etici,
    FieldError,
    ImplausibleModality,
    InvalidVolume,
    NotFinished,
    NotFound,
    Outcome,
    OutcomeDraft,
    PreconditionRequired,
    PredictionNotFound,
    Progress,
    QueueFull,
    RequestInProgress,
    ReviewDraft,
    ReviewReason,
    RlvoError,
    Status,
    StorageFull,
    TransportError,
    Unauthenticated,
    Verdict,
)
from tests.sdk.scripted_server import CERTIFICATE, PREDICTION, ReceivedRequest, Response, ScriptedServer

Connect = Callable[..., Any]
DONE = PREDICTION | {"status": "succeeded", "probability": 0.37}


def parts(request: ReceivedRequest) -> dict[str, tuple[str | None, bytes]]:
    """The parts of a multipart request: field -> (file name, content)."""
    message = message_from_bytes(f"Content-Type: {request.headers['Content-Type']}\r\n\r\n".encode() + request.body)
    return {
        str(part.get_param("name", header="content-disposition")): (part.get_filename(), part.get_payload(decode=True))
        for part in message.get_payload()
    }


def test_predict_sends_the_study_and_returns_the_prediction(
    connect: Connect, server: ScriptedServer, tmp_path: Path
) -> None:
    (tmp_path / "DOE^JOHN.nii.gz").write_bytes(b"voxels")
    server.respond_with(Response(PREDICTION, 202), Response(PREDICTION | {"status": "running"}), Response(DONE))
    prediction = connect(api_key="secret").predict(
        ncct=tmp_path / "DOE^JOHN.nii.gz",
        cta=b"bytes",
        clinical=ClinicalRecord(age=74),
        subject="p1",
        study_instance_uid="1.2.3",
        accession_number="A-1",
        model="m@1.0.0",
        explain=False,
        accept_warnings=True,
        ctp_interval_s=1.5,
    )
    assert prediction.probability == 0.37
    post = server.requests[0]
    assert parts(post) == {
        "clinical": (None, b'{"age":74.0}'),
        "model": (None, b"m@1.0.0"),
        "subject": (None, b"p1"),
        "study_instance_uid": (None, b"1.2.3"),
        "accession_number": (None, b"A-1"),
        "explain": (None, b"false"),
        "accept_warnings": (None, b"true"),
        "ctp_interval_s": (None, b"1.5"),
        "ncct": ("ncct", b"voxels"),
        "cta": ("cta", b"bytes"),
    }
    assert post.headers["Authorization"] == "Bearer secret"
    assert post.headers["Prefer"] == "respond-async"
    assert b"DOE" not in post.body
    assert [request.path for request in server.requests[1:]] == ["/v1/predictions/01?wait=20"] * 2


def test_empty_study_is_sent_as_multipart(connect: Connect, server: ScriptedServer) -> None:
    server.respond_with(Response(PREDICTION, 202))
    connect().submit()
    assert parts(server.requests[0]) == {"clinical": (None, b"{}")}


def test_progress_runs_from_upload_to_the_last_stage(connect: Connect, server: ScriptedServer, tmp_path: Path) -> None:
    (tmp_path / "a.nii").write_bytes(bytes(1_000_000))
    running = PREDICTION | {"status": "running", "stage": "predict", "progress": 0.5}
    server.respond_with(
        Response(PREDICTION, 202), Response(PREDICTION), Response(running), Response(DONE | {"progress": 1.0})
    )
    steps: list[Progress] = []
    connect().predict(ncct=tmp_path / "a.nii", on_progress=steps.append)
    uploads = [step.fraction for step in steps if step.stage == "upload"]
    assert uploads == sorted(uploads)
    assert len(uploads) > 10
    assert uploads[-1] == 1.0
    stages = [(step.stage, step.fraction) for step in steps if step.stage != "upload"]
    assert stages == [("queued", 0.0), ("predict", 0.5), ("succeeded", 1.0)]


def test_volumes_are_streamed(connect: Connect, server: ScriptedServer, tmp_path: Path) -> None:
    size = 64 * 1024 * 1024
    with (tmp_path / "big.nii").open("wb") as file:
        file.truncate(size)
    client = connect()
    server.respond_with(Response(PREDICTION, 202))
    tracemalloc.start()
    client.submit(ncct=tmp_path / "big.nii")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert server.requests[0].length > size
    assert peak < 8 * 1024 * 1024


@pytest.mark.parametrize("first", [QueueFull(), Draining(), RequestInProgress()])
def test_transient_errors_are_retried_with_the_same_key(
    connect: Connect, server: ScriptedServer, tmp_path: Path, first: RlvoError
) -> None:
    (tmp_path / "a.nii").write_bytes(b"voxels")
    server.respond_with(Response.problem(first), Response(disconnect=True), Response(PREDICTION, 202))
    assert connect().submit(ncct=tmp_path / "a.nii").id == "01"
    assert len({request.headers["Idempotency-Key"] for request in server.requests}) == 1
    assert [parts(request)["ncct"][1] for request in server.requests] == [b"voxels"] * 3


def test_each_study_has_a_new_key_unless_given(connect: Connect, server: ScriptedServer) -> None:
    server.respond_with(*[Response(PREDICTION, 202)] * 3)
    client = connect()
    client.submit()
    client.submit()
    client.submit(idempotency_key="mine")
    first, second, third = (request.headers["Idempotency-Key"] for request in server.requests)
    assert first != second
    assert third == "mine"


@pytest.mark.parametrize("error", [InvalidVolume("cut short"), StorageFull(), PredictionNotFound(), Unauthenticated()])
def test_permanent_errors_are_raised_at_once(connect: Connect, server: ScriptedServer, error: RlvoError) -> None:
    server.respond_with(Response.problem(error))
    with pytest.raises(type(error)) as raised:
        connect().submit()
    assert raised.value.detail == error.detail
    assert len(server.requests) == 1


def test_error_has_the_class_and_details_of_the_service_error(connect: Connect, server: ScriptedServer) -> None:
    faults = [FieldError("cta", "truncated"), FieldError("ncct", "not a NIfTI")]
    server.respond_with(Response.problem(InvalidVolume("Resend them", errors=faults)))
    with pytest.raises(InvalidVolume) as raised:
        connect().get("01")
    assert raised.value.errors == tuple(faults)
    assert raised.value.__notes__ == ["trace abc"]


@pytest.mark.parametrize("as_date", [False, True])
def test_retry_after_is_respected(connect: Connect, server: ScriptedServer, as_date: bool) -> None:
    at = format_datetime(datetime.now(UTC) + timedelta(seconds=2), usegmt=True)
    server.respond_with(Response.problem(QueueFull(), Retry_After=at if as_date else "1"), Response(DONE))
    start = time.monotonic()
    connect().get("01")
    assert time.monotonic() - start > (0.5 if as_date else 1.0)  # dates have whole seconds


def test_long_retry_after_is_raised_at_once(connect: Connect, server: ScriptedServer) -> None:
    server.respond_with(Response.problem(QueueFull(), Retry_After="3600"))
    with pytest.raises(QueueFull) as raised:
        connect().get("01")
    assert raised.value.retry_after == 3600


def test_retries_are_limited(connect: Connect, server: ScriptedServer) -> None:
    server.respond_with(*[Response.problem(Draining("shutting down"))] * 3)
    with pytest.raises(Draining):
        connect(retries=2).get("01")
    assert len(server.requests) == 3


def test_unreachable_service_raises_transport_error(connect: Connect) -> None:
    with pytest.raises(TransportError):
        connect("http://127.0.0.1:9", retries=1).get("01")


@pytest.mark.parametrize(
    "response",
    [Response(b"<html>", 404), Response(b"<html>", 200), Response({"hello": 1}, 200), Response([1], 500)],
    ids=["page", "page-ok", "other-json", "other-error"],
)
def test_response_of_another_server_raises_transport_error(
    connect: Connect, server: ScriptedServer, response: Response
) -> None:
    server.respond_with(response)
    with pytest.raises(TransportError):
        connect().get("01")


def test_bad_gateway_is_retried(connect: Connect, server: ScriptedServer) -> None:
    server.respond_with(Response(b"<html>", 502), Response(DONE))
    assert connect().get("01").status is Status.SUCCEEDED


def test_unknown_code_raises_the_root_error(connect: Connect, server: ScriptedServer) -> None:
    body = {"type": "/problems/new", "title": "New", "status": 422, "detail": "Something new", "code": "brand-new"}
    server.respond_with(Response(body, 422))
    with pytest.raises(RlvoError, match="Something new"):
        connect().get("01")


def test_predict_raises_the_error_of_the_prediction(connect: Connect, server: ScriptedServer) -> None:
    failure = {"code": "modality-implausible", "title": "t", "detail": "cta is not a CT"}
    server.respond_with(Response(PREDICTION, 202), Response(PREDICTION | {"status": "failed", "error": failure}))
    with pytest.raises(RlvoError, match="cta is not a CT") as raised:
        connect().predict(cta=b"x")
    assert raised.value.code == "modality-implausible"
    assert raised.value.__notes__ == ["prediction 01"]
    assert raised.value.prediction_id == "01"


def test_problem_of_an_accepted_study_has_the_id_of_its_prediction(connect: Connect, server: ScriptedServer) -> None:
    problem = Response.problem(ImplausibleModality("cta is not a CT"))
    problem.body |= {"prediction": "01", "prediction_url": "/v1/predictions/01"}
    server.respond_with(problem)
    with pytest.raises(ImplausibleModality, match="cta is not a CT") as raised:
        connect().submit(cta=b"x", idempotency_key="study-1")
    assert raised.value.prediction_id == "01"
    assert "prediction 01" in raised.value.__notes__


def test_cancelled_prediction_is_raised_by_predict_and_returned_by_wait(
    connect: Connect, server: ScriptedServer
) -> None:
    cancelled = PREDICTION | {"status": "cancelled"}
    server.respond_with(Response(PREDICTION, 202), Response(cancelled), Response(cancelled))
    client = connect()
    with pytest.raises(Conflict):
        client.predict(cta=b"x")
    assert client.wait("01").status is Status.CANCELLED


def test_wait_ends_after_its_limit(connect: Connect, server: ScriptedServer) -> None:
    server.respond_with(*[Response(PREDICTION)] * 10)
    with pytest.raises(NotFinished):
        connect().wait("01", seconds=0.15)
    assert len(server.requests) <= 4  # the request rate is limited although the server answers the long poll at once


def test_list_follows_the_cursor(connect: Connect, server: ScriptedServer) -> None:
    server.respond_with(
        Response({"items": [PREDICTION, PREDICTION | {"id": "02"}], "next": "c1"}),
        Response({"items": [PREDICTION | {"id": "03"}]}),
    )
    after = datetime(2026, 1, 1, tzinfo=UTC)
    ids = [
        prediction.id
        for prediction in connect().list(subject="p1", status=Status.SUCCEEDED, created_after=after, limit=2)
    ]
    assert ids == ["01", "02", "03"]
    path = "/v1/predictions?subject=p1&status=succeeded&created_after=2026-01-01T00%3A00%3A00%2B00%3A00&limit=2"
    assert [request.path for request in server.requests] == [path, path + "&cursor=c1"]


def test_cancel_and_erase(connect: Connect, server: ScriptedServer) -> None:
    server.respond_with(Response(PREDICTION | {"status": "cancelled"}), Response(b"", 204), Response.problem(Erased()))
    client = connect()
    assert client.cancel("01").status is Status.CANCELLED
    client.erase("01")
    with pytest.raises(Erased):
        client.get("01")
    server.respond_with(Response(CERTIFICATE))
    assert client.certificate("01").complete
    assert [(request.method, request.path) for request in server.requests] == [
        ("POST", "/v1/predictions/01/cancel"),
        ("DELETE", "/v1/predictions/01"),
        ("GET", "/v1/predictions/01"),
        ("GET", "/v1/predictions/01/erasure"),
    ]


def test_map_is_saved_atomically(connect: Connect, server: ScriptedServer, tmp_path: Path) -> None:
    volume = bytes(range(256)) * 1000
    server.respond_with(
        Response(volume, truncate_at=1000), Response(volume), Response.problem(PredictionNotFound()), Response(volume)
    )
    client = connect()
    saved = client.map("01", "attribution-cta", tmp_path)
    assert saved == tmp_path / "attribution-cta.nii.gz"
    assert saved.read_bytes() == volume
    with pytest.raises(PredictionNotFound):
        client.map("01", "attribution-ncct", tmp_path)
    assert client.map("01", "attribution-cta", tmp_path / "mine.nii.gz").name == "mine.nii.gz"
    assert {path.name for path in tmp_path.iterdir()} == {"attribution-cta.nii.gz", "mine.nii.gz"}


def test_figure_report_and_fhir(connect: Connect, server: ScriptedServer, tmp_path: Path) -> None:
    bundle = Response({"resourceType": "Bundle"})
    server.respond_with(Response(b"png"), Response(b"<!doctype html>"), bundle, bundle)
    client = connect()
    assert client.figure("01", "overlay-cta.png", tmp_path).read_bytes() == b"png"
    assert client.report("01", tmp_path).name == "report.html"
    assert client.fhir("01") == {"resourceType": "Bundle"}
    assert client.fhir("01", "5.0") == {"resourceType": "Bundle"}
    paths = ["/v1/predictions/01/figures/overlay-cta.png", "/v1/predictions/01/report.html"]
    paths += ["/v1/predictions/01/fhir", "/v1/predictions/01/fhir?fhirVersion=5.0"]
    assert [request.path for request in server.requests] == paths


def test_dicom_objects_are_saved_as_an_archive(connect: Connect, server: ScriptedServer, tmp_path: Path) -> None:
    server.respond_with(Response(b"zip"))
    assert connect().dicom("01", tmp_path).name == "01-dicom.zip"
    assert [request.path for request in server.requests] == ["/v1/predictions/01/dicom"]


def test_series_and_alignment_are_read(connect: Connect, server: ScriptedServer, tmp_path: Path) -> None:
    server.respond_with(Response(b"volume"), Response({"cta": {"affine": []}}))
    client = connect()
    saved = client.series("01", "cta", tmp_path)
    assert (saved.name, saved.read_bytes()) == ("cta.nii", b"volume")
    assert client.alignment("01") == {"cta": {"affine": []}}
    paths = ["/v1/predictions/01/inputs/cta.nii", "/v1/predictions/01/alignment.json"]
    assert [request.path for request in server.requests] == paths


def test_review_is_sent_again_after_a_disconnect(connect: Connect, server: ScriptedServer) -> None:
    draft = ReviewDraft(reviewer="R-1", verdict=Verdict.OVERRIDE, reason=ReviewReason.IMAGE_QUALITY)
    stored = {**json.loads(draft.model_dump_json()), "id": "02", "created": "2026-01-01T00:00:00Z"}
    server.respond_with(Response(disconnect=True), Response(stored, 201), Response([stored]))
    client = connect()
    review = client.review("01", draft)
    assert (review.id, review.verdict, review.reason) == ("02", Verdict.OVERRIDE, ReviewReason.IMAGE_QUALITY)
    assert client.reviews("01") == [review]
    assert server.requests[0].body == server.requests[1].body
    assert json.loads(server.requests[1].body) == {
        "reviewer": "R-1",
        "verdict": "override",
        "reason": "image-quality",
        "comment": "",
    }
    assert server.requests[1].headers["Content-Type"] == "application/json"


def test_override_needs_a_reason() -> None:
    with pytest.raises(ValidationError):
        ReviewDraft(reviewer="R-1", verdict=Verdict.OVERRIDE)


def test_outcome_is_recorded_corrected_and_read(connect: Connect, server: ScriptedServer) -> None:
    draft = OutcomeDraft(etici=Etici.COMPLETE, rescue_treatment=False, final_stenosis_percent=70)
    stored = {**json.loads(draft.model_dump_json()), "refractory": True, "recorded": "2026-01-01T00:00:00Z"}
    server.respond_with(
        Response.problem(NotFound()),
        Response(stored),
        Response.problem(PreconditionRequired()),
        Response(stored, headers={"ETag": '"t"'}),
        Response(stored),
        Response(stored),
        Response.problem(PredictionNotFound()),
    )
    client = connect()
    assert client.outcome("01") is None
    assert client.set_outcome("01", draft).refractory is True
    with pytest.raises(PreconditionRequired):
        client.set_outcome("01", draft)
    client.set_outcome("01", draft, correct=True)
    assert [request.headers.get("If-Match") for request in server.requests] == [None, None, None, None, '"t"']
    assert client.outcome("01") == Outcome.model_validate(stored)
    with pytest.raises(PredictionNotFound):
        client.outcome("02")


@pytest.mark.parametrize(
    ("etici", "rescue", "stenosis", "refractory"),
    [
        (Etici.LESS_THAN_HALF, False, 10.0, True),
        (Etici.COMPLETE, True, 10.0, True),
        (Etici.COMPLETE, False, 50.0, False),
        (Etici.COMPLETE, False, 50.1, True),
        (Etici.HALF, False, None, None),
        (Etici.NONE, False, None, True),
    ],
)
def test_refractory_is_derived_from_the_findings(
    etici: Etici, rescue: bool, stenosis: float | None, refractory: bool | None
) -> None:
    draft = OutcomeDraft(etici=etici, rescue_treatment=rescue, final_stenosis_percent=stenosis)
    assert draft.refractory is refractory


def test_models_card_and_schema(connect: Connect, server: ScriptedServer) -> None:
    server.respond_with(Response([{"name": "m", "versions": []}]), Response(b"# Card"), Response({"type": "object"}))
    client = connect()
    assert [model.name for model in client.models()] == ["m"]
    assert client.model_card("m", "1.0.0") == "# Card"
    assert client.clinical_schema() == {"type": "object"}


def test_health_is_returned_in_both_states(connect: Connect, server: ScriptedServer) -> None:
    server.respond_with(
        Response({"status": "not-ready", "checks": {"worker": "no live worker"}}, 503),
        Response({"status": "ready", "checks": {"worker": "ok"}}),
    )
    client = connect()
    not_ready, ready = client.health(), client.health()
    assert (not_ready.ready, not_ready.checks) == (False, {"worker": "no live worker"})
    assert ready.ready
