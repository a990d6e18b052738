"""FHIR bundles, validated by an independent implementation of FHIR R4B."""

from __future__ import annotations

import hashlib
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


@pytest.mark.parametrize("refractory", [True, False])
def test_the_probability_is_a_percentage_and_the_threshold_a_text(refractory: bool) -> None:
    """`high` of FHIR means more likely than not, so a probability of 38 % above the threshold is not `high`."""
    decision = prediction().decision
    assert decision is not None
    changed = decision.model_copy(update={"refractory": refractory})
    risk = fhir.bundle(prediction(decision=changed))["entry"][0]["resource"]["prediction"][0]
    assert risk["probabilityDecimal"] == 37.7
    assert "qualitativeRisk" not in risk
    side = "above" if refractory else "below"
    assert f"{side} the threshold of {100 * decision.threshold:.1f} percent" in risk["rationale"]


def test_no_time_is_stated_that_the_service_does_not_know() -> None:
    """The time of the imaging is unknown: a period from the arrival of the request would be another one."""
    risk = fhir.bundle(prediction())["entry"][0]["resource"]["prediction"][0]
    assert not {"whenPeriod", "whenRange"} & set(risk)


def test_digests_are_uris_of_rfc_6920() -> None:
    """The digest of `Hello World!` is the example of the RFC."""
    digest = hashlib.sha256(b"Hello World!").hexdigest()
    model = prediction().model.model_copy(update={"digest": f"sha256:{digest}"})
    cta = next(iter(prediction().inputs.values())).model_copy(update={"sha256": digest})
    _, device, provenance = (
        entry["resource"] for entry in fhir.bundle(prediction(model=model, inputs={"cta": cta}))["entry"]
    )
    expected = {"system": "urn:ietf:rfc:3986", "value": "ni:///sha-256;f4OxZX_x_FO5LcGBSKHWXfwtSx-j1ncoSt3SABJtkGk"}
    assert device["identifier"] == [expected]
    assert provenance["entity"][0]["what"]["identifier"] == expected


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
