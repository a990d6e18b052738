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

from .conftest import CERTIFICATE, PREDICTION, Answer, Asked, Script

Connect = Callable[..., Any]
DONE = PREDICTION | {"status": "succeeded", "probability": 0.37}


def parts(asked: Asked) -> dict[str, tuple[str | None, bytes]]:
    """The parts of a multipart request: field -> (file name, content)."""
    message = message_from_bytes(f"Content-Type: {asked.headers['Content-Type']}\r\n\r\n".encode() + asked.body)
    return {
        str(part.get_param("name", header="content-disposition")): (part.get_filename(), part.get_payload(decode=True))
        for part in message.get_payload()
    }


def test_predict_sends_the_study_and_brings_back_the_answer(connect: Connect, server: Script, tmp_path: Path) -> None:
    (tmp_path / "DOE^JOHN.nii.gz").write_bytes(b"voxels")
    server.says(Answer(PREDICTION, 202), Answer(PREDICTION | {"status": "running"}), Answer(DONE))
    prediction = connect(api_key="secret").predict(
        ncct=tmp_path / "DOE^JOHN.nii.gz",
        cta=b"bytes",
        clinical=ClinicalRecord(age=74),
        subject="p1",
        model="m@1.0.0",
        explain=False,
    )
    assert prediction.probability == 0.37
    posted = server.asked[0]
    assert parts(posted) == {
        "clinical": (None, b'{"age":74.0}'),
        "model": (None, b"m@1.0.0"),
        "subject": (None, b"p1"),
        "explain": (None, b"false"),
        "ncct": ("ncct", b"voxels"),
        "cta": ("cta", b"bytes"),
    }
    assert posted.headers["Authorization"] == "Bearer secret"
    assert posted.headers["Prefer"] == "respond-async"
    assert b"DOE" not in posted.body
    assert [asked.path for asked in server.asked[1:]] == ["/v1/predictions/01?wait=20"] * 2


def test_a_study_of_nothing_is_still_multipart(connect: Connect, server: Script) -> None:
    server.says(Answer(PREDICTION, 202))
    connect().submit()
    assert parts(server.asked[0]) == {"clinical": (None, b"{}")}


def test_progress_goes_from_upload_to_the_last_stage(connect: Connect, server: Script, tmp_path: Path) -> None:
    (tmp_path / "a.nii").write_bytes(bytes(1_000_000))
    running = PREDICTION | {"status": "running", "stage": "predict", "progress": 0.5}
    server.says(Answer(PREDICTION, 202), Answer(PREDICTION), Answer(running), Answer(DONE | {"progress": 1.0}))
    told: list[Progress] = []
    connect().predict(ncct=tmp_path / "a.nii", on_progress=told.append)
    uploads = [step.fraction for step in told if step.stage == "upload"]
    assert uploads == sorted(uploads)
    assert len(uploads) > 10
    assert uploads[-1] == 1.0
    after = [(step.stage, step.fraction) for step in told if step.stage != "upload"]
    assert after == [("queued", 0.0), ("predict", 0.5), ("succeeded", 1.0)]


def test_volumes_are_streamed(connect: Connect, server: Script, tmp_path: Path) -> None:
    size = 64 * 1024 * 1024
    with (tmp_path / "big.nii").open("wb") as file:
        file.truncate(size)
    client = connect()
    server.says(Answer(PREDICTION, 202))
    tracemalloc.start()
    client.submit(ncct=tmp_path / "big.nii")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert server.asked[0].length > size
    assert peak < 8 * 1024 * 1024


@pytest.mark.parametrize("first", [QueueFull(), Draining(), RequestInProgress()])
def test_passing_refusals_are_retried_with_the_same_key(
    connect: Connect, server: Script, tmp_path: Path, first: RlvoError
) -> None:
    (tmp_path / "a.nii").write_bytes(b"voxels")
    server.says(Answer.problem(first), Answer(hang_up=True), Answer(PREDICTION, 202))
    assert connect().submit(ncct=tmp_path / "a.nii").id == "01"
    assert len({asked.headers["Idempotency-Key"] for asked in server.asked}) == 1
    assert [parts(asked)["ncct"][1] for asked in server.asked] == [b"voxels"] * 3


def test_each_study_has_its_own_key_unless_given(connect: Connect, server: Script) -> None:
    server.says(*[Answer(PREDICTION, 202)] * 3)
    client = connect()
    client.submit()
    client.submit()
    client.submit(idempotency_key="mine")
    first, second, third = (asked.headers["Idempotency-Key"] for asked in server.asked)
    assert first != second
    assert third == "mine"


@pytest.mark.parametrize("error", [InvalidVolume("cut short"), StorageFull(), PredictionNotFound(), Unauthenticated()])
def test_lasting_refusals_are_raised_at_once(connect: Connect, server: Script, error: RlvoError) -> None:
    server.says(Answer.problem(error))
    with pytest.raises(type(error)) as raised:
        connect().submit()
    assert raised.value.detail == error.detail
    assert len(server.asked) == 1


def test_the_error_is_the_one_the_service_raised(connect: Connect, server: Script) -> None:
    faults = [FieldError("cta", "truncated"), FieldError("ncct", "not a NIfTI")]
    server.says(Answer.problem(InvalidVolume("Resend them", errors=faults)))
    with pytest.raises(InvalidVolume) as raised:
        connect().get("01")
    assert raised.value.errors == tuple(faults)
    assert raised.value.__notes__ == ["trace abc"]


@pytest.mark.parametrize("as_date", [False, True])
def test_retry_after_is_honoured(connect: Connect, server: Script, as_date: bool) -> None:
    at = format_datetime(datetime.now(UTC) + timedelta(seconds=2), usegmt=True)
    server.says(Answer.problem(QueueFull(), Retry_After=at if as_date else "1"), Answer(DONE))
    begun = time.monotonic()
    connect().get("01")
    assert time.monotonic() - begun > (0.5 if as_date else 1.0)  # dates have whole seconds


def test_a_pause_beyond_reason_is_an_answer(connect: Connect, server: Script) -> None:
    server.says(Answer.problem(QueueFull(), Retry_After="3600"))
    with pytest.raises(QueueFull) as raised:
        connect().get("01")
    assert raised.value.retry_after == 3600


def test_retries_end(connect: Connect, server: Script) -> None:
    server.says(*[Answer.problem(Draining("shutting down"))] * 3)
    with pytest.raises(Draining):
        connect(retries=2).get("01")
    assert len(server.asked) == 3


def test_no_service(connect: Connect) -> None:
    with pytest.raises(TransportError):
        connect("http://127.0.0.1:9", retries=1).get("01")


@pytest.mark.parametrize(
    "answer",
    [Answer(b"<html>", 404), Answer(b"<html>", 200), Answer({"hello": 1}, 200), Answer([1], 500)],
    ids=["page", "page-ok", "other-json", "other-error"],
)
def test_somebody_elses_answer(connect: Connect, server: Script, answer: Answer) -> None:
    server.says(answer)
    with pytest.raises(TransportError):
        connect().get("01")


def test_a_proxys_bad_gateway_is_retried(connect: Connect, server: Script) -> None:
    server.says(Answer(b"<html>", 502), Answer(DONE))
    assert connect().get("01").status is Status.SUCCEEDED


def test_an_unknown_code_is_still_our_error(connect: Connect, server: Script) -> None:
    body = {"type": "/problems/new", "title": "New", "status": 422, "detail": "Something new", "code": "brand-new"}
    server.says(Answer(body, 422))
    with pytest.raises(RlvoError, match="Something new"):
        connect().get("01")


def test_predict_raises_what_the_prediction_failed_of(connect: Connect, server: Script) -> None:
    failure = {"code": "modality-implausible", "title": "t", "detail": "cta is not a CT"}
    server.says(Answer(PREDICTION, 202), Answer(PREDICTION | {"status": "failed", "error": failure}))
    with pytest.raises(RlvoError, match="cta is not a CT") as raised:
        connect().predict(cta=b"x")
    assert raised.value.code == "modality-implausible"
    assert raised.value.__notes__ == ["prediction 01"]


def test_predict_raises_for_a_cancelled_one_and_wait_returns_it(connect: Connect, server: Script) -> None:
    cancelled = PREDICTION | {"status": "cancelled"}
    server.says(Answer(PREDICTION, 202), Answer(cancelled), Answer(cancelled))
    client = connect()
    with pytest.raises(Conflict):
        client.predict(cta=b"x")
    assert client.wait("01").status is Status.CANCELLED


def test_waiting_ends(connect: Connect, server: Script) -> None:
    server.says(*[Answer(PREDICTION)] * 10)
    with pytest.raises(NotFinished):
        connect().wait("01", seconds=0.15)
    assert len(server.asked) <= 4  # it does not ask without end where the service answers a long poll at once


def test_list_follows_the_cursor(connect: Connect, server: Script) -> None:
    server.says(
        Answer({"items": [PREDICTION, PREDICTION | {"id": "02"}], "next": "c1"}),
        Answer({"items": [PREDICTION | {"id": "03"}]}),
    )
    after = datetime(2026, 1, 1, tzinfo=UTC)
    found = [each.id for each in connect().list(subject="p1", status=Status.SUCCEEDED, created_after=after, limit=2)]
    assert found == ["01", "02", "03"]
    wanted = "/v1/predictions?subject=p1&status=succeeded&created_after=2026-01-01T00%3A00%3A00%2B00%3A00&limit=2"
    assert [asked.path for asked in server.asked] == [wanted, wanted + "&cursor=c1"]


def test_cancel_and_erase(connect: Connect, server: Script) -> None:
    server.says(Answer(PREDICTION | {"status": "cancelled"}), Answer(b"", 204), Answer.problem(Erased()))
    client = connect()
    assert client.cancel("01").status is Status.CANCELLED
    client.erase("01")
    with pytest.raises(Erased):
        client.get("01")
    server.says(Answer(CERTIFICATE))
    assert client.certificate("01").complete
    assert [(asked.method, asked.path) for asked in server.asked] == [
        ("POST", "/v1/predictions/01/cancel"),
        ("DELETE", "/v1/predictions/01"),
        ("GET", "/v1/predictions/01"),
        ("GET", "/v1/predictions/01/erasure"),
    ]


def test_a_map_is_saved_whole_or_not_at_all(connect: Connect, server: Script, tmp_path: Path) -> None:
    volume = bytes(range(256)) * 1000
    server.says(Answer(volume, cut=1000), Answer(volume), Answer.problem(PredictionNotFound()), Answer(volume))
    client = connect()
    saved = client.map("01", "attribution-cta", tmp_path)
    assert saved == tmp_path / "attribution-cta.nii.gz"
    assert saved.read_bytes() == volume
    with pytest.raises(PredictionNotFound):
        client.map("01", "attribution-ncct", tmp_path)
    assert client.map("01", "attribution-cta", tmp_path / "mine.nii.gz").name == "mine.nii.gz"
    assert {path.name for path in tmp_path.iterdir()} == {"attribution-cta.nii.gz", "mine.nii.gz"}


def test_figures_report_and_fhir(connect: Connect, server: Script, tmp_path: Path) -> None:
    server.says(Answer(b"png"), Answer(b"<!doctype html>"), Answer({"resourceType": "Bundle"}))
    client = connect()
    assert client.figure("01", "overlay-cta.png", tmp_path).read_bytes() == b"png"
    assert client.report("01", tmp_path).name == "report.html"
    assert client.fhir("01") == {"resourceType": "Bundle"}
    paths = ["/v1/predictions/01/figures/overlay-cta.png", "/v1/predictions/01/report.html", "/v1/predictions/01/fhir"]
    assert [asked.path for asked in server.asked] == paths


def test_a_review_is_sent_again_when_the_line_breaks(connect: Connect, server: Script) -> None:
    draft = ReviewDraft(reviewer="R-1", verdict=Verdict.OVERRIDE, reason=ReviewReason.IMAGE_QUALITY)
    stored = {**json.loads(draft.model_dump_json()), "id": "02", "created": "2026-01-01T00:00:00Z"}
    server.says(Answer(hang_up=True), Answer(stored, 201), Answer([stored]))
    client = connect()
    review = client.review("01", draft)
    assert (review.id, review.verdict, review.reason) == ("02", Verdict.OVERRIDE, ReviewReason.IMAGE_QUALITY)
    assert client.reviews("01") == [review]
    assert server.asked[0].body == server.asked[1].body
    assert json.loads(server.asked[1].body) == {
        "reviewer": "R-1",
        "verdict": "override",
        "reason": "image-quality",
        "comment": "",
    }
    assert server.asked[1].headers["Content-Type"] == "application/json"


def test_an_override_needs_a_reason() -> None:
    with pytest.raises(ValidationError):
        ReviewDraft(reviewer="R-1", verdict=Verdict.OVERRIDE)


def test_an_outcome_is_recorded_corrected_and_read(connect: Connect, server: Script) -> None:
    draft = OutcomeDraft(etici=Etici.COMPLETE, rescue_treatment=False, final_stenosis_percent=70)
    stored = {**json.loads(draft.model_dump_json()), "refractory": True, "recorded": "2026-01-01T00:00:00Z"}
    server.says(
        Answer.problem(NotFound()),
        Answer(stored),
        Answer.problem(PreconditionRequired()),
        Answer(stored, headers={"ETag": '"t"'}),
        Answer(stored),
        Answer(stored),
        Answer.problem(PredictionNotFound()),
    )
    client = connect()
    assert client.outcome("01") is None
    assert client.set_outcome("01", draft).refractory is True
    with pytest.raises(PreconditionRequired):
        client.set_outcome("01", draft)
    client.set_outcome("01", draft, correct=True)
    assert [asked.headers.get("If-Match") for asked in server.asked] == [None, None, None, None, '"t"']
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
def test_what_is_refractory(etici: Etici, rescue: bool, stenosis: float | None, refractory: bool | None) -> None:
    draft = OutcomeDraft(etici=etici, rescue_treatment=rescue, final_stenosis_percent=stenosis)
    assert draft.refractory is refractory


def test_documents(connect: Connect, server: Script) -> None:
    server.says(Answer([{"name": "m", "versions": []}]), Answer(b"# Card"), Answer({"type": "object"}))
    client = connect()
    assert [model.name for model in client.models()] == ["m"]
    assert client.model_card("m", "1.0.0") == "# Card"
    assert client.clinical_schema() == {"type": "object"}


def test_health_answers_in_either_state(connect: Connect, server: Script) -> None:
    server.says(
        Answer({"status": "not-ready", "checks": {"worker": "no live worker"}}, 503),
        Answer({"status": "ready", "checks": {"worker": "ok"}}),
    )
    client = connect()
    waiting, ready = client.health(), client.health()
    assert (waiting.ready, waiting.checks) == (False, {"worker": "no live worker"})
    assert ready.ready
