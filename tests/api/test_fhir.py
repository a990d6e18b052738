"""FHIR bundles, validated by an independent implementation of FHIR R4B."""

from __future__ import annotations

import json

import pytest
from fhir.resources.R4B.bundle import Bundle

from app.api import fhir
from app.sdk.errors import NotFinished
from tests.api.responses import prediction


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
