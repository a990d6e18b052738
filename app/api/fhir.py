"""Writes a finished prediction as an HL7 FHIR R4B Bundle: RiskAssessment, Device and Provenance.

Design notes:
- ``probabilityDecimal`` is a percentage (RiskAssessment invariant ras-2: at most 100).
- No ``qualitativeRisk`` is sent. Its code ``high`` means "more likely than not" (CodeSystem risk-probability), which a
  probability above the threshold is not. The side of the threshold is in ``rationale``.
- No ``whenPeriod`` is sent. It would start at the imaging, whose time the service does not know.
- A digest is a URI of RFC 6920, ``ni:///sha-256;<base64url>``, so its identifier has the system of URIs.
- Every resource has the security label AIAST (v3-ObservationValue, "Artificial Intelligence asserted").
- The subject is the site's pseudonym as an identifier; there is no Patient resource and no clinical value.
- The first note is the summary, which says it if the decision is withheld; the other notes say why.
- References are urn:uuid values made from the prediction's id, so the same record gives the same bundle.
"""

from __future__ import annotations

import base64
import uuid
from datetime import datetime
from typing import Any

from app.core.display_names import flag_text, interval_name, rule_text, warnings_first
from app.sdk.errors import NotFinished
from app.sdk.types import Prediction

_AI_ASSERTED = {
    "system": "http://terminology.hl7.org/CodeSystem/v3-ObservationValue",
    "code": "AIAST",
    "display": "Artificial Intelligence asserted",
}
_URI = "urn:ietf:rfc:3986"  # system of an identifier whose value is itself a URI (FHIR, data type Identifier)
_ASSEMBLER = {"system": "http://terminology.hl7.org/CodeSystem/provenance-participant-type", "code": "assembler"}
_OUTCOME = "Refractory large vessel occlusion (final stenosis > 50 %, eTICI 0-2a, or rescue treatment)"
_RISK_OF = "The risk is that of the thrombectomy which follows the imaging."

Resource = dict[str, Any]


def bundle(prediction: Prediction) -> Resource:
    """Returns the collection Bundle of a prediction that succeeded.

    Raises:
        NotFinished: The prediction has no probability, because it is unfinished, failed or was cancelled.
    """
    if prediction.probability is None or prediction.finished is None:
        raise NotFinished("Only a prediction that succeeded has a FHIR bundle.")
    resources = [_risk_assessment(prediction), _device(prediction), _provenance(prediction)]
    return {
        "resourceType": "Bundle",
        "type": "collection",
        "timestamp": _instant(prediction.finished),
        "meta": _meta(),
        "entry": [
            {"fullUrl": _url(prediction, resource["resourceType"]), "resource": resource} for resource in resources
        ],
    }


def _risk_assessment(prediction: Prediction) -> Resource:
    assert prediction.probability is not None
    assert prediction.finished is not None
    decision, interval = prediction.decision, prediction.interval
    rationale = [prediction.summary, prediction.notice]
    if interval is not None:
        name = interval_name(interval, prediction.folds).capitalize()
        rationale.append(f"{name} {100 * interval.low:.1f} to {100 * interval.high:.1f} percent.")
    if decision is not None:
        side = "above" if decision.refractory else "below"
        threshold = f"The probability is {side} the threshold of {100 * decision.threshold:.1f} percent"
        rationale.append(f"{threshold}. Rule of the threshold: {rule_text(decision.rule)}.")
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
        "status": "final",
        "method": {"text": f"{prediction.model.name}@{prediction.model.version}"},
        "subject": _subject(prediction),
        "occurrenceDateTime": _instant(prediction.finished),
        "performer": {"reference": _url(prediction, "Device")},
        "prediction": [outcome],
        "note": [{"text": text} for text in (prediction.summary, *_flags(prediction), prediction.notice)],
    }


def _flags(prediction: Prediction) -> list[str]:
    """Text of each flag with its severity, warnings first."""
    return [f"{flag.severity.capitalize()}: {flag_text(flag)}" for flag in warnings_first(prediction.flags)]


def _device(prediction: Prediction) -> Resource:
    return {
        "resourceType": "Device",
        "id": str(_uuid(prediction, "Device")),
        "meta": _meta(),
        "identifier": [_digest(prediction.model.digest.removeprefix("sha256:"))],
        "status": "active",
        "deviceName": [{"name": prediction.model.name, "type": "model-name"}],
        "version": [{"value": prediction.model.version}],
        "note": [{"text": prediction.notice}],
    }


def _provenance(prediction: Prediction) -> Resource:
    assert prediction.finished is not None
    return {
        "resourceType": "Provenance",
        "id": str(_uuid(prediction, "Provenance")),
        "meta": _meta(),
        "target": [{"reference": _url(prediction, "RiskAssessment")}],
        "recorded": _instant(prediction.finished),
        "agent": [{"type": {"coding": [_ASSEMBLER]}, "who": {"reference": _url(prediction, "Device")}}],
        "entity": [
            {"role": "source", "what": {"identifier": _digest(item.sha256), "display": str(name)}}
            for name, item in prediction.inputs.items()
        ]
        or [{"role": "source", "what": {"display": "clinical document"}}],
    }


def _subject(prediction: Prediction) -> Resource:
    if prediction.subject is None:
        return {"display": "unknown subject"}
    return {"identifier": {"system": "urn:rlvo:subject", "value": prediction.subject}}


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
