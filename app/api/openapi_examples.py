"""Examples of the JSON bodies that a caller sends, as the OpenAPI document and Swagger UI show them."""

from __future__ import annotations

from typing import Any

_RECORD = {
    "age": 71,
    "sex": "female",
    "atrial_fibrillation": False,
    "hypertension": True,
    "diabetes": True,
    "smoking": "former",
    "nihss": 14,
    "onset_to_imaging": 210,
    "ivt": True,
    "occlusion_side": "left",
    "occlusion_site": "m1-proximal",
    "aspects": 8,
}

EXAMPLES: dict[str, Any] = {
    "ClinicalRecord": _RECORD,
    "ReviewDraft": {"verdict": "override", "reason": "image-quality", "reviewer": "reader-1", "comment": ""},
    "OutcomeDraft": {"etici": "2b67", "rescue_treatment": False, "final_stenosis_percent": 20},
    "AliasDraft": {"version": "1.0.0"},
    "StudyRoles": {"1.2.840.113619.2.55.3.4": "ncct", "1.2.840.113619.2.55.3.5": "cta"},
    "CdsRequest": {
        "hook": "patient-view",
        "hookInstance": "d1577c69-dfbe-44ad-ba6d-3e05e953b2ea",
        "context": {"userId": "Practitioner/1", "patientId": "1288992"},
        "prefetch": {
            "patient": {
                "resourceType": "Patient",
                "id": "1288992",
                "identifier": [{"system": "urn:rlvo:subject", "value": "S-001"}],
            }
        },
    },
    "CdsFeedback": {
        "feedback": [
            {
                "card": "0192f3a4-7c1e-7b7e-9d0a-3f5a1c2b4d6e",
                "outcome": "overridden",
                "outcomeTimestamp": "2026-11-29T08:12:44Z",
                "overrideReason": {"reason": {"code": "not-needed", "system": "urn:rlvo:override-reason"}},
            }
        ]
    },
}
"""An example of each JSON body that a caller sends, by the name of its schema; Swagger UI shows it."""
