"""Arguments of the client that are wrong, missing, or written in another way."""

from __future__ import annotations

import re
from typing import Any

import pytest
from pydantic import ValidationError

from app.sdk import ReviewDraft, ReviewReason, Verdict
from tests.sdk.scripted_server import PREDICTION, Response, ScriptedServer
from tests.sdk.test_client import Connect, parts


@pytest.mark.parametrize(
    ("study", "message"),
    [
        ({"cta": b"x", "tmaxx": b"x"}, "A study has no 'tmaxx'; did you mean 'tmax'?"),
        ({"cta": b"x", "accept_warning": True}, "A study has no 'accept_warning'; did you mean 'accept_warnings'?"),
        ({"cta": b"x", "zzz": 1}, "A study has no 'zzz'. A study has: ncct, cta,"),
        ({"cta": b"x", "clinical": "clinical.json"}, "`clinical` must be a ClinicalRecord or a dict."),
    ],
)
def test_wrong_argument_of_a_study_is_refused_before_anything_is_sent(
    connect: Connect, server: ScriptedServer, study: dict[str, Any], message: str
) -> None:
    with pytest.raises(TypeError, match=re.escape(message)):
        connect().predict(**study)
    with pytest.raises(ValueError, match="'low' is not a valid Priority"):
        connect().submit(cta=b"x", priority="low")
    assert not server.requests


def test_none_counts_as_not_given(connect: Connect, server: ScriptedServer) -> None:
    server.respond_with(Response(PREDICTION, 202))
    connect().submit(cta=b"x", tmax=None, clinical=None, model=None, subject=None, explain=None, priority=None)
    assert set(parts(server.requests[0])) == {"cta", "clinical"}


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "localhost:8000", "rlvo.local", "ftp://rlvo.local", "http://"])
def test_address_without_http_is_refused(connect: Connect, url: str) -> None:
    with pytest.raises(ValueError, match=r"must be like http://127\.0\.0\.1:8000"):
        connect(url)


def test_review_may_be_written_in_words() -> None:
    draft = ReviewDraft(verdict="override", reason="image-quality")
    assert draft == ReviewDraft(verdict=Verdict.OVERRIDE, reason=ReviewReason.IMAGE_QUALITY)
    with pytest.raises(ValidationError, match="should be 'agree' or 'override'"):
        ReviewDraft(verdict="agreed")
