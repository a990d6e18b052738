"""CDS Hooks cards against the specification (cds-hooks.hl7.org/2.0, "CDS Service Response")."""

from __future__ import annotations

import re
from typing import Any
from uuid import UUID

import pytest

from app.api.cds import cards
from app.sdk.errors import NotFinished
from app.sdk.types import (
    Attribution,
    CalibratedInterval,
    Channel,
    ClinicalContribution,
    Decision,
    Flag,
    ModalityContribution,
)
from tests.api.conftest import RunningService
from tests.api.responses import prediction

ATTRIBUTION = Attribution(
    base=-1.0,
    total=0.1,
    clinical=[
        ClinicalContribution(variable="age", value=71.0, contribution=0.02),
        ClinicalContribution(variable="atrial_fibrillation", value=None, contribution=-0.41, imputed=True),
        ClinicalContribution(variable="nihss", value=14.0, contribution=0.11),
    ],
    imaging=[ModalityContribution(modality=Channel.CTA, contribution=0.62)],
)
SYNTHETIC = [Flag(code="synthetic-training", detail="")]
LONG = {
    "probability": 1.0,
    "interval": CalibratedInterval(level=0.9, coverage=1.0, low=1.0, high=1.0),
    "decision": Decision(refractory=True, threshold=1.0, rule="the longest rule"),
}

CHANGES = [{}, {"interval": None}, {"decision": None}, {"flags": []}, LONG, LONG | {"flags": SYNTHETIC}]


def assert_conforms(card: dict[str, Any]) -> None:
    UUID(card["uuid"])
    assert 0 < len(card["summary"]) < 140
    assert card["indicator"] in ("info", "warning", "critical")
    assert card["source"]["label"]
    assert set(card) <= {"uuid", "summary", "detail", "indicator", "source", "links"}
    for link in card.get("links", []):
        assert set(link) == {"label", "url", "type"}
        assert link["type"] in ("absolute", "smart")
        assert re.match(r"https?://", link["url"])


@pytest.mark.parametrize("changes", CHANGES)
@pytest.mark.parametrize("public_url", ["", "https://rlvo.clinic.example/"])
def test_card_conforms_to_the_specification(changes: dict[str, object], public_url: str) -> None:
    answer = cards(prediction(attribution=ATTRIBUTION, **changes), public_url)
    assert set(answer) == {"cards"}
    (card,) = answer["cards"]
    assert_conforms(card)
    assert "Research use only" in card["summary"]
    assert ("links" in card) == bool(public_url)


def test_card_states_probability_contributions_and_flags() -> None:
    flags = [Flag(code="missing-modality", detail="tmax not given; imputed")]
    (card,) = cards(prediction(attribution=ATTRIBUTION, flags=flags), "https://rlvo.clinic.example")["cards"]
    assert card["summary"].startswith(
        "Refractory. Refractory occlusion: 38 % (spread of the two networks 20 % to 50 %), above the threshold of 22 %."
    )
    assert card["indicator"] == "warning"
    strongest = [line for line in card["detail"].splitlines() if re.search(r": [+-]\d", line)]
    assert strongest == [
        "- CTA: +0.62 log-odds, +15.2 points",
        "- values not given (1): -0.41 log-odds, -10.0 points",
        "- NIHSS: +0.11 log-odds, +2.7 points",
    ]
    assert "- Info: tmax not given; imputed. What to do: Send the image if there is one." in card["detail"]
    assert card["links"][0]["url"].startswith("https://rlvo.clinic.example/v1/predictions/")


def test_card_below_the_threshold_has_indicator_info() -> None:
    decision = Decision(refractory=False, threshold=0.5, rule="max F1")
    assert cards(prediction(decision=decision), "")["cards"][0]["indicator"] == "info"


def test_unfinished_prediction_has_no_card() -> None:
    with pytest.raises(NotFinished):
        cards(prediction(probability=None), "")


@pytest.mark.anyio
async def test_card_is_served_when_the_prediction_has_finished(service: RunningService) -> None:
    prediction_id = (await service.submit()).json()["id"]
    address = f"/v1/predictions/{prediction_id}/cds-hooks"
    assert (await service.http.get(address)).json()["code"] == "not-finished"
    service.worker.succeed(prediction_id)
    answer = await service.http.get(address)
    assert answer.status_code == 200
    assert_conforms(answer.json()["cards"][0])
    assert answer.json()["cards"][0]["uuid"] == prediction_id
