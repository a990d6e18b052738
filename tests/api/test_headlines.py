"""Headline and origin of one prediction: the same in API, client, command line, report, FHIR bundle and CDS card."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest
from rich.console import Console

from app.api import cds, fhir
from app.cli.predict import show
from app.reporting import page
from app.sdk import SYNTHETIC_NOTICE, Decision, Flag, Headline, Prediction
from tests.api.responses import prediction

BOTH = ["refractory", "not-refractory"]
WARNING = Flag(code="alignment-poor", detail="cta: poor")
SYNTHETIC = Flag(code="synthetic-training", detail=SYNTHETIC_NOTICE)

STATES: dict[Headline, list[dict[str, Any]]] = {
    Headline.REFRACTORY: [{"above": True, "conformal": ["refractory"]}, {"above": True, "conformal": None}],
    Headline.NOT_REFRACTORY: [{"above": False, "conformal": ["not-refractory"]}, {"above": False, "conformal": None}],
    Headline.UNDETERMINED: [
        {"above": True, "conformal": BOTH},
        {"above": False, "conformal": BOTH},
        {"above": True, "conformal": []},
    ],
}
CASES = [(headline, state) for headline, states in STATES.items() for state in states]


def answer(state: dict[str, Any], *flags: Flag) -> Prediction:
    decision = Decision(
        refractory=state["above"],
        threshold=0.22 if state["above"] else 0.6,
        rule="max F1",
        conformal=state["conformal"],
    )
    return prediction(decision=decision, flags=list(flags))


def printed(record: Prediction) -> str:
    text = io.StringIO()
    show(record, Console(file=text, width=300))
    return text.getvalue()


def everywhere(record: Prediction) -> dict[str, str]:
    """What a reader sees first, by the place where it is seen."""
    card = cds.cards(record, "")["cards"][0]
    risk = fhir.bundle(record)["entry"][0]["resource"]
    return {
        "API": str(record.members()["summary"]),
        "client": Prediction.model_validate(json.loads(json.dumps(record.members()))).summary,
        "command line": printed(record),
        "report": page.report(record, {}, "").split("<p class=first>")[-1].replace("&nbsp;", " "),
        "CDS card": card["summary"],
        "CDS detail": card["detail"].lstrip("*"),
        "FHIR note": risk["note"][0]["text"],
    }


@pytest.mark.parametrize(("headline", "state"), CASES)
def test_every_place_shows_the_same_headline(headline: Headline, state: dict[str, Any]) -> None:
    record = answer(state)
    assert record.members()["headline"] == headline
    for place, text in everywhere(record).items():
        assert text.startswith(headline.text), place
    assert f"Answer: {headline.text}\n" in printed(record)
    assert f"<b class=headline>{headline.text}</b>" in page.report(record, {}, "")
    side = "above" if state["above"] else "below"
    assert f"is {side} the threshold" in record.summary  # the fact stays visible
    assert f"Threshold: {side}" in printed(record)


@pytest.mark.parametrize(("headline", "state"), CASES)
def test_only_a_refractory_headline_raises_the_indicator_of_a_card(headline: Headline, state: dict[str, Any]) -> None:
    indicator = cds.cards(answer(state), "")["cards"][0]["indicator"]
    assert (indicator == "warning") == (headline is Headline.REFRACTORY)


def test_withheld_decision_is_the_headline_everywhere() -> None:
    record = prediction(decision=None, withheld=[WARNING.code], flags=[WARNING])
    assert record.headline is Headline.WITHHELD
    places = everywhere(record)
    report = places.pop("report")
    assert "Decision withheld: alignment poor." in report
    for place, text in places.items():
        assert text.startswith("Decision withheld: alignment poor."), place


def test_unfinished_prediction_has_no_headline() -> None:
    record = prediction(status="running", probability=None, decision=None)
    assert record.headline is None
    assert "headline" not in record.members()


@pytest.mark.parametrize(("headline", "state"), CASES)
def test_every_place_names_synthetic_training(headline: Headline, state: dict[str, Any]) -> None:
    for place, text in everywhere(answer(state, SYNTHETIC)).items():
        notice = "Trained on synthetic patients." if place == "CDS card" else SYNTHETIC_NOTICE
        assert notice in text, place
        assert len(text) < 140 or place != "CDS card"
    for place, text in everywhere(answer(state)).items():
        assert "synthetic" not in text, place


def test_card_with_a_warning_keeps_the_origin_in_its_summary() -> None:
    record = prediction(decision=None, withheld=[WARNING.code], flags=[WARNING, SYNTHETIC])
    summary = cds.cards(record, "")["cards"][0]["summary"]
    assert summary.endswith("Probability 38 %. Trained on synthetic patients. Research use only.")
    assert len(summary) < 140
