"""FHIR bundles, validated by independent implementations of FHIR R4, R4B and R5."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest
from fhir.resources.bundle import Bundle as BundleR5
from fhir.resources.R4B.bundle import Bundle as BundleR4B
from fhirclient.models.bundle import Bundle as BundleR4

from app.api import fhir
from app.api.fhir import FhirVersion
from app.sdk.errors import InvalidRequest, NotFinished
from app.sdk.types import CalibratedInterval, Decision, Flag, Prediction
from tests.api.conftest import RunningService
from tests.api.responses import prediction, problem

KINDS = ["RiskAssessment", "DiagnosticReport", "Observation", "Device", "Provenance"]
IDENTIFIED = {"study_instance_uid": "1.2.840.113619.2.55.3", "accession_number": "RAD 4711"}
UNDETERMINED = {"decision": Decision(refractory=True, threshold=0.22, rule="max F1", conformal=[])}
WITHHELD = {"decision": None, "withheld": ["head-doubtful"], "flags": [Flag(code="head-doubtful", detail="no head")]}
BOTH = ("refractory", "not-refractory")
CALIBRATED = {"interval": CalibratedInterval(level=0.9, coverage=0.88, low=0.2, high=0.5)}
CHANGES: list[dict[str, Any]] = [
    *({}, {"subject": None}, {"flags": []}, {"inputs": {}}, {"decision": None}, {"interval": None}),
    *(IDENTIFIED, UNDETERMINED, WITHHELD, CALIBRATED, WITHHELD | IDENTIFIED | {"interval": None}),
]


def resources(prediction: Prediction, version: FhirVersion = FhirVersion.R4) -> dict[str, dict[str, Any]]:
    return {each["resource"]["resourceType"]: each["resource"] for each in fhir.bundle(prediction, version)["entry"]}


@pytest.mark.parametrize("changes", CHANGES)
@pytest.mark.parametrize("version", [FhirVersion.R4, FhirVersion.R4B])
def test_bundle_is_valid_r4_and_r4b(version: FhirVersion, changes: dict[str, Any]) -> None:
    document = fhir.bundle(prediction(**changes), version)
    bundle = BundleR4B.model_validate_json(json.dumps(document))
    assert [entry.resource.get_resource_type() for entry in bundle.entry] == KINDS
    assert all(entry.resource.meta.security[0].code == "AIAST" for entry in bundle.entry)
    assert [each.resource.resource_type for each in BundleR4(document).entry] == KINDS


@pytest.mark.parametrize("changes", CHANGES)
def test_bundle_is_valid_r5(changes: dict[str, Any]) -> None:
    bundle = BundleR5.model_validate_json(json.dumps(fhir.bundle(prediction(**changes), FhirVersion.R5)))
    assert [entry.resource.get_resource_type() for entry in bundle.entry] == KINDS


def test_validators_refuse_the_form_of_the_other_release() -> None:
    of_r5 = fhir.bundle(prediction(**IDENTIFIED), FhirVersion.R5)
    with pytest.raises(Exception, match=r"imagingStudy|study|name"):
        BundleR4(of_r5)
    with pytest.raises(ValueError, match=r"study|name"):
        BundleR4B.model_validate_json(json.dumps(of_r5))
    with pytest.raises(ValueError, match=r"imagingStudy|deviceName"):
        BundleR5.model_validate_json(json.dumps(fhir.bundle(prediction(**IDENTIFIED))))


@pytest.mark.parametrize("refractory", [True, False])
def test_probability_is_a_percentage_and_the_threshold_a_text(refractory: bool) -> None:
    """`high` of FHIR means more likely than not, so a probability of 38 % above the threshold is not `high`."""
    decision = Decision(refractory=refractory, threshold=0.22, rule="max F1")
    found = resources(prediction(decision=decision))
    risk = found["RiskAssessment"]["prediction"][0]
    assert risk["probabilityDecimal"] == 37.7
    assert "qualitativeRisk" not in risk
    assert f"{'above' if refractory else 'below'} the threshold of 22 %" in risk["rationale"]
    assert risk["rationale"].count("threshold of 22") == 1
    observation = found["Observation"]
    assert observation["valueQuantity"]["value"] == 37.7
    assert observation["valueQuantity"]["code"] == "%"
    assert observation["component"][0]["valueQuantity"]["value"] == 22.0


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"decision": Decision(refractory=True, threshold=0.2, rule="", conformal=["refractory"])}, "POS"),
        ({"decision": Decision(refractory=False, threshold=0.2, rule="", conformal=["not-refractory"])}, "NEG"),
        ({"decision": Decision(refractory=True, threshold=0.2, rule="", conformal=["not-refractory"])}, "NEG"),
        (UNDETERMINED, "IND"),
        ({"decision": Decision(refractory=True, threshold=0.2, rule="", conformal=list(BOTH))}, "IND"),
        (WITHHELD, None),
        ({"decision": None}, None),
    ],
)
def test_interpretation_follows_the_headline(changes: dict[str, Any], code: str | None) -> None:
    answer = prediction(**changes)
    observation = resources(answer)["Observation"]
    codes = [each["coding"][0]["code"] for each in observation.get("interpretation", [])]
    assert codes == ([code] if code else [])
    assert observation["note"][0]["text"] == answer.summary
    assert resources(answer)["DiagnosticReport"]["conclusion"] == f"{answer.summary} {answer.notice}"
    assert not {"H", "L", "HH", "LL", "HU", "LU"} & set(codes)


def test_report_is_marked_as_unverified() -> None:
    found = resources(prediction())
    assert (found["RiskAssessment"]["status"], found["Observation"]["status"]) == ("preliminary", "preliminary")
    assert found["DiagnosticReport"]["status"] == "partial"


@pytest.mark.parametrize(("version", "member"), [(FhirVersion.R4, "imagingStudy"), (FhirVersion.R5, "study")])
def test_study_and_order_are_referenced_by_the_identifiers_of_the_caller(version: FhirVersion, member: str) -> None:
    found = resources(prediction(**IDENTIFIED), version)
    study = {"system": "urn:dicom:uid", "value": "urn:oid:1.2.840.113619.2.55.3"}
    for reference in (
        *found["DiagnosticReport"][member],
        *found["Observation"]["derivedFrom"],
        *found["RiskAssessment"]["basis"],
    ):
        assert reference == {"type": "ImagingStudy", "identifier": study}
    order = found["DiagnosticReport"]["basedOn"][0]
    assert (order["type"], order["identifier"]["value"]) == ("ServiceRequest", "RAD 4711")
    assert order["identifier"]["type"]["coding"][0]["code"] == "ACSN"
    without = json.dumps(fhir.bundle(prediction(), version))
    assert "ImagingStudy" not in without
    assert "ServiceRequest" not in without


def test_no_time_is_stated_that_the_service_does_not_know() -> None:
    """The time of the imaging is unknown: a period from the arrival of the request would be another one."""
    found = resources(prediction())
    assert not {"whenPeriod", "whenRange"} & set(found["RiskAssessment"]["prediction"][0])
    for kind in ("DiagnosticReport", "Observation"):
        assert not [member for member in found[kind] if member.startswith("effective")]


def test_digests_are_uris_of_rfc_6920() -> None:
    """The digest of `Hello World!` is the example of the RFC."""
    digest = hashlib.sha256(b"Hello World!").hexdigest()
    model = prediction().model.model_copy(update={"digest": f"sha256:{digest}"})
    cta = next(iter(prediction().inputs.values())).model_copy(update={"sha256": digest})
    found = resources(prediction(model=model, inputs={"cta": cta}))
    expected = {"system": "urn:ietf:rfc:3986", "value": "ni:///sha-256;f4OxZX_x_FO5LcGBSKHWXfwtSx-j1ncoSt3SABJtkGk"}
    assert found["Device"]["identifier"] == [expected]
    assert found["Provenance"]["entity"][0]["what"]["identifier"] == expected


def test_references_inside_the_bundle_resolve() -> None:
    bundle = fhir.bundle(prediction())
    urls = {each["resource"]["resourceType"]: each["fullUrl"] for each in bundle["entry"]}
    found = resources(prediction())
    assert found["RiskAssessment"]["performer"]["reference"] == urls["Device"]
    assert found["Observation"]["device"]["reference"] == urls["Device"]
    assert found["DiagnosticReport"]["result"] == [{"reference": urls["Observation"]}]
    assert [each["reference"] for each in found["Provenance"]["target"]] == [urls[kind] for kind in KINDS[:3]]
    assert found["Provenance"]["agent"][0]["who"]["reference"] == urls["Device"]


def test_unfinished_prediction_has_no_bundle() -> None:
    with pytest.raises(NotFinished):
        fhir.bundle(prediction(probability=None))


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        ("", None),
        ("application/fhir+json", None),
        ("application/fhir+json; fhirVersion=5.0", FhirVersion.R5),
        ('text/html, application/fhir+json;fhirversion="4.3";q=0.9', FhirVersion.R4B),
    ],
)
def test_accept_header_names_the_release(accept: str, expected: FhirVersion | None) -> None:
    assert fhir.accepted_version(accept) is expected


def test_other_release_is_refused() -> None:
    with pytest.raises(InvalidRequest, match=r"4\.0, 4\.3, 5\.0"):
        fhir.accepted_version("application/fhir+json; fhirVersion=3.0")


@pytest.mark.anyio
async def test_release_is_selected_by_parameter_or_media_type(service: RunningService) -> None:
    prediction_id = (await service.submit()).json()["id"]
    service.worker.succeed(prediction_id)
    record, address = f"/v1/predictions/{prediction_id}", f"/v1/predictions/{prediction_id}/fhir"
    r5 = {"Accept": "application/fhir+json; fhirVersion=5.0"}
    answers = [
        await service.http.get(address, params={"fhirVersion": "5.0"}),
        await service.http.get(address, headers=r5),
        await service.http.get(record, headers=r5),
    ]
    for answer in answers:
        assert answer.headers["content-type"] == "application/fhir+json; fhirVersion=5.0"
        assert BundleR5.model_validate_json(answer.content)
    assert (await service.http.get(address)).headers["content-type"] == "application/fhir+json"
    refused = await service.http.get(address, params={"fhirVersion": "3.0"})
    assert problem(refused) == (422, "invalid-request")
