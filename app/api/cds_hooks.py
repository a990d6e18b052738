"""The CDS service of CDS Hooks 2.0 (cds-hooks.hl7.org/2.0): discovery, requests of `patient-view`, and feedback.

Design notes:
- The patient is found by the pseudonym that the sender of the study gave, and by nothing else. docs/decisions/0036.
- No FHIR server is called. `fhirServer` and `fhirAuthorization` of a request are not read.
- The uuid of a card is the id of its prediction, so feedback needs no stored table of cards.
"""

from __future__ import annotations

import re
from typing import Any, Literal, TypedDict

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from app.api.cds import cards, state_card
from app.api.uploads import SUBJECT
from app.sdk.errors import FieldError, InvalidRequest
from app.sdk.types import Prediction


class ParsingOptions(TypedDict):
    """Arguments of `json_parsing.validated`."""

    max_depth: int
    any_character: bool


SERVICE = "rlvo-patient-view"
MAX_DEPTH = 32  # levels of nesting of a request; a Patient resource has extensions of extensions
PARSING: ParsingOptions = {"max_depth": MAX_DEPTH, "any_character": True}
"""How requests are parsed: members that the service ignores may hold any text, because no text is stored."""
MAX_FEEDBACK = 100

DISCOVERY = {
    "services": [
        {
            "hook": "patient-view",
            "id": SERVICE,
            "title": "Refractory large-vessel occlusion (research use only)",
            "description": "Shows the newest prediction of this patient: how likely the occlusion is to be refractory "
            "to thrombectomy. Research use only. Not for clinical decisions.",
            "prefetch": {"patient": "Patient/{{context.patientId}}"},
            "usageRequirements": "The study was sent with the pseudonym of the patient as `subject`. The Patient "
            "resource has this pseudonym as an identifier of the agreed system, or it is the id of the Patient.",
        }
    ]
}
_REASONS = {
    "other-study": "The study is not that of this patient or of this stroke",
    "disagree": "I disagree with the answer",
    "not-needed": "The answer is not needed now",
}
OVERRIDE_REASONS = [
    {"code": code, "system": "urn:rlvo:override-reason", "display": text} for code, text in _REASONS.items()
]

_UUID = r"^[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}$"


class _Message(BaseModel):
    """Part of a message of a CDS client; unknown members are ignored, because later versions add some."""

    model_config = ConfigDict(extra="ignore", frozen=True, populate_by_name=True)


class CdsIdentifier(_Message):
    """Identifier of a Patient resource."""

    system: str | None = None
    value: str | None = None


class CdsPatient(_Message):
    """The members of a prefetched resource that the service reads; one that is no Patient is not used."""

    resource_type: str = Field(alias="resourceType")
    id: str | None = None
    identifier: list[CdsIdentifier] = []


class CdsPrefetch(_Message):
    """Prefetched resources; null if the client could not read the Patient."""

    patient: CdsPatient | None = None


class CdsContext(_Message):
    """Context of the hook `patient-view`."""

    user_id: str = Field(alias="userId", min_length=1)
    patient_id: str = Field(alias="patientId", min_length=1)
    encounter_id: str | None = Field(default=None, alias="encounterId")


class CdsRequest(_Message):
    """Request of the hook `patient-view`."""

    hook: Literal["patient-view"]
    hook_instance: str = Field(alias="hookInstance", pattern=_UUID, description="UUID of this call")
    context: CdsContext
    prefetch: CdsPrefetch | None = None


class CdsCoding(_Message):
    """Code of a code system."""

    code: str
    system: str | None = None
    display: str | None = None


class CdsOverrideReason(_Message):
    """Why a card was dismissed. The comment is not stored, because it could name a patient."""

    reason: CdsCoding | None = None
    user_comment: str | None = Field(default=None, alias="userComment")


class CdsAcceptedSuggestion(_Message):
    """Accepted suggestion; the cards of this service have none."""

    id: str


class CdsFeedbackItem(_Message):
    """What a user did with a card."""

    card: str = Field(pattern=_UUID, description="`uuid` of the card")
    outcome: Literal["accepted", "overridden"]
    outcome_timestamp: AwareDatetime = Field(alias="outcomeTimestamp")
    accepted_suggestions: list[CdsAcceptedSuggestion] = Field(default=[], alias="acceptedSuggestions")
    override_reason: CdsOverrideReason | None = Field(default=None, alias="overrideReason")

    def audited(self) -> dict[str, Any]:
        """Detail of the audit entry: outcome, its time, and the reason if it is one of `OVERRIDE_REASONS`."""
        detail: dict[str, Any] = {"outcome": self.outcome, "at": self.outcome_timestamp.isoformat()}
        chosen = self.override_reason and self.override_reason.reason
        if chosen and chosen.code in _REASONS:
            detail["reason"] = chosen.code
        return detail


class CdsFeedback(_Message):
    """Feedback on one or more cards."""

    feedback: list[CdsFeedbackItem] = Field(min_length=1, max_length=MAX_FEEDBACK)


def subjects(request: CdsRequest, system: str) -> list[str]:
    """Returns the pseudonyms that a request names: identifiers of ``system``, else the id of the Patient.

    Args:
        request: Request of a CDS client.
        system: FHIR identifier system of the pseudonyms.

    Raises:
        InvalidRequest: The prefetched Patient is another patient than that of the context.
    """
    patient_id = request.context.patient_id
    patient = request.prefetch.patient if request.prefetch else None
    named: list[str] = []
    if patient is not None and patient.resource_type == "Patient":
        if patient.id not in (None, patient_id):
            rule = "must be the Patient of context.patientId"
            raise InvalidRequest(f"prefetch.patient {rule}.", errors=[FieldError("prefetch", rule)])
        named = [each.value for each in patient.identifier if each.system == system and each.value]
    return [each for each in named or [patient_id] if re.fullmatch(SUBJECT, each)]


def answer(prediction: Prediction | None, public_url: str) -> dict[str, Any]:
    """Returns the response to a request: no card, or one of the patient's newest prediction unless it is sealed."""
    if prediction is None or prediction.sealed is not None:  # a silent trial shows nothing, also no state
        return {"cards": []}
    if prediction.probability is None or prediction.finished is None:
        return {"cards": [state_card(prediction)]}
    found = cards(prediction, public_url)["cards"]
    return {"cards": [each | {"overrideReasons": OVERRIDE_REASONS} for each in found]}
