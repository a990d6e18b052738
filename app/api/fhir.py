"""Writes a finished prediction as an HL7 FHIR Bundle, for R4 (also valid for R4B) or R5.

The Bundle holds a RiskAssessment, a DiagnosticReport with its Observation, the Device and the Provenance.

Design notes:
- Codes and their sources, and what has no code on purpose: docs/decisions/0035.
- No time of the imaging is sent, because the service does not know it: no ``whenPeriod``, no ``effectiveDateTime``.
- A digest is a URI of RFC 6920, ``ni:///sha-256;<base64url>``, so its identifier has the system of URIs.
- Patient, imaging study and order are references by identifier, as the caller sent them; no clinical value is sent.
- References are urn:uuid values made from the prediction's id, so the same record gives the same bundle.
"""

from __future__ import annotations

import base64
import re
import uuid
from datetime import datetime
from enum import StrEnum
from typing import Any

from app.core.display_names import flag_text, interval_name, rule_text, warnings_first
from app.sdk.errors import FieldError, InvalidRequest, NotFinished, sealed_by
from app.sdk.summary import Headline
from app.sdk.types import Decision, Interval, Prediction

_HL7 = "http://terminology.hl7.org/CodeSystem"
_AI_ASSERTED = {"system": f"{_HL7}/v3-ObservationValue", "code": "AIAST", "display": "Artificial Intelligence asserted"}
_URI = "urn:ietf:rfc:3986"  # system of an identifier whose value is itself a URI (FHIR, data type Identifier)
_ASSEMBLER = {"system": f"{_HL7}/provenance-participant-type", "code": "assembler"}
_IMAGING = {"system": f"{_HL7}/observation-category", "code": "imaging", "display": "Imaging"}
_IDENTIFIER_TYPE = f"{_HL7}/v2-0203"
_OUTCOME = "Refractory large vessel occlusion (final stenosis > 50 %, eTICI 0-2a, or rescue treatment)"
SUBJECT_SYSTEM = "urn:rlvo:subject"
_RISK_OF = "The risk is that of the thrombectomy which follows the imaging."
_TITLE = "Prediction of refractory large vessel occlusion"
_LOINC = "http://loinc.org"
_PERCENT = {"unit": "%", "system": "http://unitsofmeasure.org", "code": "%"}
_UNVERIFIED = "preliminary"
"""Status of RiskAssessment and Observation. FHIR's `final` means that a person has verified the content."""
_INTERPRETATIONS = {
    Headline.REFRACTORY: ("POS", "Positive"),
    Headline.NOT_REFRACTORY: ("NEG", "Negative"),
    Headline.UNDETERMINED: ("IND", "Indeterminate"),
}
"""Code of v3-ObservationInterpretation for each headline; a withheld decision has none."""
_ACCEPTED_VERSION = re.compile(r'fhirVersion\s*=\s*"?([0-9.]{1,8})', re.IGNORECASE)

Resource = dict[str, Any]


class FhirVersion(StrEnum):
    """FHIR release of a bundle, as in the MIME type parameter ``fhirVersion``."""

    R4 = "4.0"
    R4B = "4.3"
    R5 = "5.0"


def accepted_version(accept: str) -> FhirVersion | None:
    """Returns the FHIR release that an ``Accept`` header names, None if it names none.

    Raises:
        InvalidRequest: The service does not write this release.
    """
    match = _ACCEPTED_VERSION.search(accept)
    if match is None:
        return None
    try:
        return FhirVersion(match[1])
    except ValueError:
        rule = f"must be one of {', '.join(FhirVersion)}"
        raise InvalidRequest(f"fhirVersion {rule}.", errors=[FieldError("fhirVersion", rule)]) from None


def bundle(
    prediction: Prediction, version: FhirVersion = FhirVersion.R4, subject_system: str = SUBJECT_SYSTEM
) -> Resource:
    """Returns the collection Bundle of a prediction that succeeded; that of R4 is valid for R4B too.

    Args:
        prediction: A prediction with its result.
        version: FHIR release of the bundle.
        subject_system: Identifier system of the pseudonym.

    Raises:
        Sealed: A silent trial seals the answer.
        NotFinished: The prediction has no probability, because it is unfinished, failed or was cancelled.
    """
    if prediction.sealed is not None:
        raise sealed_by(prediction.sealed)
    if prediction.probability is None or prediction.finished is None:
        raise NotFinished("Only a prediction that succeeded has a FHIR bundle.")
    subject = _subject(prediction, subject_system)
    resources = [
        _risk_assessment(prediction, subject),
        _report(prediction, subject, version),
        _observation(prediction, subject),
        _device(prediction, version),
        _provenance(prediction),
    ]
    return {
        "resourceType": "Bundle",
        "type": "collection",
        "timestamp": _instant(prediction.finished),
        "meta": _meta(),
        "entry": [
            {"fullUrl": _url(prediction, resource["resourceType"]), "resource": resource} for resource in resources
        ],
    }


def _risk_assessment(prediction: Prediction, subject: Resource) -> Resource:
    assert prediction.probability is not None
    assert prediction.finished is not None
    interval = prediction.interval
    rationale = [prediction.summary, prediction.notice]
    if interval is not None:
        name = interval_name(interval, prediction.folds).capitalize()
        rationale.append(f"{name} {100 * interval.low:.1f} to {100 * interval.high:.1f} percent.")
    if prediction.decision is not None:
        rationale.append(f"Rule of the threshold: {rule_text(prediction.decision.rule)}.")
    rationale.append(_RISK_OF)
    outcome: Resource = {
        "outcome": {"text": _OUTCOME},
        "probabilityDecimal": round(100 * prediction.probability, 4),
        "rationale": " ".join(rationale),
    }
    return {
        "resourceType": "RiskAssessment",
        "id": prediction.id,
        "meta": _meta(),
        "status": _UNVERIFIED,
        "method": _method(prediction),
        "subject": subject,
        "occurrenceDateTime": _instant(prediction.finished),
        "performer": {"reference": _url(prediction, "Device")},
        **({"basis": studies} if (studies := _studies(prediction)) else {}),
        "prediction": [outcome],
        "note": [{"text": text} for text in (prediction.summary, *_flags(prediction), prediction.notice)],
    }


def _report(prediction: Prediction, subject: Resource, version: FhirVersion) -> Resource:
    """The DiagnosticReport. It has no performer, because FHIR allows no device there, and no conclusionCode."""
    assert prediction.finished is not None
    studies = _studies(prediction)
    study_member = "study" if version is FhirVersion.R5 else "imagingStudy"
    return {
        "resourceType": "DiagnosticReport",
        "id": str(_uuid(prediction, "DiagnosticReport")),
        "meta": _meta(),
        **({"basedOn": orders} if (orders := _orders(prediction)) else {}),
        "status": "partial",  # unverified; `preliminary` of this code system means verified early results
        "category": [
            {"coding": [{"system": _LOINC, "code": "LP29684-5", "display": "Radiology"}, _section("RAD", "Radiology")]}
        ],
        "code": {
            "coding": [{"system": _LOINC, "code": "18748-4", "display": "Diagnostic imaging study"}],
            "text": _TITLE,
        },
        "subject": subject,
        "issued": _instant(prediction.finished),
        "result": [{"reference": _url(prediction, "Observation")}],
        **({study_member: studies} if studies else {}),
        "conclusion": f"{prediction.summary} {prediction.notice}",
    }


def _observation(prediction: Prediction, subject: Resource) -> Resource:
    """The probability as an Observation; its interpretation is that of the headline, none if it is withheld."""
    assert prediction.probability is not None
    assert prediction.finished is not None
    found = _INTERPRETATIONS.get(prediction.headline) if prediction.headline else None
    members: Resource = {}
    if orders := _orders(prediction):
        members["basedOn"] = orders
    if studies := _studies(prediction):
        members["derivedFrom"] = studies
    if found is not None:
        members["interpretation"] = [{"coding": [_interpretation(*found)]}]
    if components := _components(prediction.decision, prediction.interval, prediction.folds):
        members["component"] = components
    return {
        "resourceType": "Observation",
        "id": str(_uuid(prediction, "Observation")),
        "meta": _meta(),
        "status": _UNVERIFIED,
        "category": [{"coding": [_IMAGING]}],
        "code": {"coding": [_own_code("refractory-probability", f"Probability: {_OUTCOME}")], "text": _OUTCOME},
        "subject": subject,
        "issued": _instant(prediction.finished),
        "valueQuantity": _percent(prediction.probability),
        "method": _method(prediction),
        "device": {"reference": _url(prediction, "Device")},
        **members,
        "note": [{"text": text} for text in (prediction.summary, *_flags(prediction), prediction.notice)],
    }


def _components(decision: Decision | None, interval: Interval | None, folds: list[float] | None) -> list[Resource]:
    """Threshold of the decision, and the interval, as percentages."""
    components: list[Resource] = []
    if decision is not None:
        code = _own_code("threshold", "Threshold of the model version")
        components.append({"code": {"coding": [code]}, "valueQuantity": _percent(decision.threshold)})
    if interval is not None:
        code = _own_code(interval.kind, interval_name(interval, folds))
        ends = {"low": _percent(interval.low), "high": _percent(interval.high)}
        components.append({"code": {"coding": [code]}, "valueRange": ends})
    return components


def _flags(prediction: Prediction) -> list[str]:
    """Text of each flag with its severity, warnings first."""
    return [f"{flag.severity.capitalize()}: {flag_text(flag)}" for flag in warnings_first(prediction.flags)]


def _device(prediction: Prediction, version: FhirVersion) -> Resource:
    name: Resource = {"deviceName": [{"name": prediction.model.name, "type": "model-name"}]}
    if version is FhirVersion.R5:
        name = {"name": [{"value": prediction.model.name, "type": "user-friendly-name"}]}
    return {
        "resourceType": "Device",
        "id": str(_uuid(prediction, "Device")),
        "meta": _meta(),
        "identifier": [_digest(prediction.model.digest.removeprefix("sha256:"))],
        "status": "active",
        **name,
        "version": [{"value": prediction.model.version}],
        "note": [{"text": prediction.notice}],
    }


def _provenance(prediction: Prediction) -> Resource:
    assert prediction.finished is not None
    return {
        "resourceType": "Provenance",
        "id": str(_uuid(prediction, "Provenance")),
        "meta": _meta(),
        "target": [
            {"reference": _url(prediction, each)} for each in ("RiskAssessment", "DiagnosticReport", "Observation")
        ],
        "recorded": _instant(prediction.finished),
        "agent": [{"type": {"coding": [_ASSEMBLER]}, "who": {"reference": _url(prediction, "Device")}}],
        "entity": [
            {"role": "source", "what": {"identifier": _digest(item.sha256), "display": str(name)}}
            for name, item in prediction.inputs.items()
        ]
        or [{"role": "source", "what": {"display": "clinical document"}}],
    }


def _subject(prediction: Prediction, system: str) -> Resource:
    if prediction.subject is None:
        return {"display": "unknown subject"}
    return {"identifier": {"system": system, "value": prediction.subject}}


def _studies(prediction: Prediction) -> list[Resource]:
    """Reference to the imaging study by its DICOM UID (FHIR, ImagingStudy, Implementation Notes)."""
    if prediction.study_instance_uid is None:
        return []
    identifier = {"system": "urn:dicom:uid", "value": f"urn:oid:{prediction.study_instance_uid}"}
    return [{"type": "ImagingStudy", "identifier": identifier}]


def _orders(prediction: Prediction) -> list[Resource]:
    """Reference to the order by the accession number; its assigner is not known, so it has no system."""
    if prediction.accession_number is None:
        return []
    kind = {"coding": [{"system": _IDENTIFIER_TYPE, "code": "ACSN", "display": "Accession ID"}]}
    return [{"type": "ServiceRequest", "identifier": {"type": kind, "value": prediction.accession_number}}]


def _method(prediction: Prediction) -> Resource:
    return {"text": f"{prediction.model.name}@{prediction.model.version}"}


def _percent(share: float) -> Resource:
    return {"value": round(100 * share, 4), **_PERCENT}


def _own_code(code: str, display: str) -> Resource:
    return {"system": "urn:rlvo:observation", "code": code, "display": display}


def _interpretation(code: str, display: str) -> Resource:
    return {"system": f"{_HL7}/v3-ObservationInterpretation", "code": code, "display": display}


def _section(code: str, display: str) -> Resource:
    """A diagnostic service section (HL7 table 0074)."""
    return {"system": f"{_HL7}/v2-0074", "code": code, "display": display}


def _digest(sha256: str) -> Resource:
    """The identifier of a SHA-256 in hexadecimal digits: base64url without padding (RFC 6920, section 3)."""
    encoded = base64.urlsafe_b64encode(bytes.fromhex(sha256)).rstrip(b"=").decode()
    return {"system": _URI, "value": f"ni:///sha-256;{encoded}"}


def _meta() -> Resource:
    return {"security": [_AI_ASSERTED]}


def _uuid(prediction: Prediction, resource_type: str) -> uuid.UUID:
    return uuid.uuid5(uuid.NAMESPACE_URL, f"rlvo:{prediction.id}:{resource_type}")


def _url(prediction: Prediction, resource_type: str) -> str:
    return f"urn:uuid:{_uuid(prediction, resource_type)}"


def _instant(time: datetime) -> str:
    return time.isoformat(timespec="milliseconds")
