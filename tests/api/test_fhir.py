"""FHIR bundles, validated by an independent implementation of FHIR R4B."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest
from fhir.resources.R4B.bundle import Bundle

from app.api import fhir
from app.sdk.errors import NotFinished
from app.sdk.types import Decision, Flag, Input, InputSummary, Interval, ModelRef, Prediction, Status


def prediction(**changes: object) -> Prediction:
    time = datetime(2026, 11, 23, 12, tzinfo=UTC)
    return Prediction(
        id="0192f0c4-0000-7000-8000-000000000001",
        status=Status.SUCCEEDED,
        model=ModelRef(name="tiny", version="1.0.0", digest="sha256:" + "0" * 64),
        subject="S-1",
        probability=0.377,
        interval=Interval(level=0.9, low=0.2, high=0.5),
        decision=Decision(refractory=True, threshold=0.22, rule="max F1"),
        flags=[Flag(code="missing-modality", detail="tmax not given")],
        inputs={Input.CTA: InputSummary(sha256="1" * 64, bytes=9, shape=[2, 2, 2], spacing_mm=[1, 1, 1])},
        created=time,
        finished=time,
    ).model_copy(update=changes)


@pytest.mark.parametrize("changes", [{}, {"subject": None}, {"flags": []}, {"inputs": {}}, {"decision": None}])
def test_the_bundle_is_valid_r4b(changes: dict[str, object]) -> None:
    bundle = Bundle.model_validate_json(json.dumps(fhir.bundle(prediction(**changes))))
    kinds = [entry.resource.get_resource_type() for entry in bundle.entry]
    assert kinds == ["RiskAssessment", "Device", "Provenance"]
    assert all(entry.resource.meta.security[0].code == "AIAST" for entry in bundle.entry)


def test_the_probability_is_a_percentage_with_a_period() -> None:
    risk = fhir.bundle(prediction())["entry"][0]["resource"]["prediction"][0]
    assert risk["probabilityDecimal"] == 37.7
    assert risk["whenPeriod"]["start"] < risk["whenPeriod"]["end"]


def test_references_inside_the_bundle_resolve() -> None:
    bundle = fhir.bundle(prediction())
    urls = {entry["fullUrl"] for entry in bundle["entry"]}
    assessment, _, provenance = (entry["resource"] for entry in bundle["entry"])
    assert assessment["performer"]["reference"] in urls
    assert provenance["target"][0]["reference"] in urls
    assert provenance["agent"][0]["who"]["reference"] in urls


def test_unfinished_prediction_has_no_bundle() -> None:
    with pytest.raises(NotFinished):
        fhir.bundle(prediction(probability=None))
