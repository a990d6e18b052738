"""OpenAPI descriptions of the cards and of the CDS service."""

from __future__ import annotations

from app.api.openapi_responses import PREDICTION_ERRORS, Entry, entry, json_body
from app.sdk import errors

_LINK = {
    "type": "object",
    "required": ["label", "url", "type"],
    "properties": {
        "label": {"type": "string"},
        "url": {"type": "string", "format": "uri"},
        "type": {"enum": ["absolute"]},
    },
}
_CODING = {
    "type": "object",
    "required": ["code", "system", "display"],
    "properties": {name: {"type": "string"} for name in ("code", "system", "display")},
}
_CARDS: Entry = {
    "type": "object",
    "required": ["cards"],
    "properties": {
        "cards": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["uuid", "summary", "detail", "indicator", "source"],
                "properties": {
                    "uuid": {"type": "string", "format": "uuid"},
                    "summary": {"type": "string", "maxLength": 139},
                    "detail": {"type": "string"},
                    "indicator": {"enum": ["info", "warning"]},
                    "source": {"type": "object", "required": ["label"], "properties": {"label": {"type": "string"}}},
                    "links": {"type": "array", "items": _LINK},
                    "overrideReasons": {"type": "array", "items": _CODING},
                },
            },
        }
    },
}
_SERVICES: Entry = {
    "type": "object",
    "required": ["services"],
    "properties": {
        "services": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["hook", "id", "description"],
                "properties": {
                    **{name: {"type": "string"} for name in ("hook", "id", "title", "description")},
                    "usageRequirements": {"type": "string"},
                    "prefetch": {"type": "object", "additionalProperties": {"type": "string"}},
                },
            },
        }
    },
}
_RECORDED: Entry = {"type": "object", "required": ["recorded"], "properties": {"recorded": {"type": "integer"}}}


def _json(description: str, schema: Entry) -> dict[int | str, Entry]:
    return {200: {"description": description, "content": {"application/json": {"schema": schema}}}}


card = entry(
    *PREDICTION_ERRORS, errors.NotFinished, errors.Sealed, ok=_json("CDS Hooks 2.0 response with one card", _CARDS)
)
discovery = entry(errors.InvalidRequest, ok=_json("CDS Hooks 2.0: the services", _SERVICES))
patient_view = entry(
    errors.InvalidRequest,
    errors.MalformedJson,
    ok=_json("CDS Hooks 2.0 response: one card, or none if the patient has no prediction", _CARDS),
    openapi_extra=json_body("CdsRequest"),
    description=(
        "The patient is found by the pseudonym that was sent as `subject`: an identifier of `prefetch.patient` with "
        "the system `RLVO_SUBJECT_SYSTEM`, else `context.patientId`. The card is that of the newest prediction; one "
        "that is unfinished or failed says so. `fhirServer` and `fhirAuthorization` are not used. A key needs the "
        "scope `read`."
    ),
)
feedback = entry(
    *PREDICTION_ERRORS,
    errors.MalformedJson,
    ok=_json("Number of the recorded outcomes", _RECORDED),
    openapi_extra=json_body("CdsFeedback"),
    description="Outcome, time and reason of each card are recorded in the audit log. `userComment` is not stored. "
    "A key needs the scope `read`.",
)
