"""Sends a CTA with the generated Python client, and reads the answer, the FHIR bundle and the CDS card.

python client.py http://127.0.0.1:8000 KEY cta.nii.gz
"""

import sys
from pathlib import Path

from rlvo_client import AuthenticatedClient
from rlvo_client.api.cds import patient_view
from rlvo_client.api.predictions import submit
from rlvo_client.api.results import fhir
from rlvo_client.models import CdsContext, CdsRequest, FhirVersion, Prediction, SubmitBody, SubmitBodyExplain
from rlvo_client.types import File

url, key, cta = sys.argv[1:]
with AuthenticatedClient(base_url=url, token=key, timeout=150) as rlvo, Path(cta).open("rb") as volume:
    body = SubmitBody(
        cta=File(volume, "cta.nii.gz", "application/octet-stream"),
        subject="generated-1",
        explain=SubmitBodyExplain.FALSE,
    )
    prediction = submit.sync(client=rlvo, body=body, idempotency_key="generated-python-1", prefer="wait=120")
    if not isinstance(prediction, Prediction):
        sys.exit(f"no answer: {prediction}")
    print(prediction.id, prediction.status.value, prediction.summary)

    bundle = fhir.sync(prediction.id, client=rlvo, fhir_version=FhirVersion.VALUE_2)
    print("FHIR:", len(bundle["entry"]), "resources")

    context = CdsContext(user_id="Practitioner/1", patient_id="generated-1")
    instance = "d1577c69-dfbe-44ad-ba6d-3e05e953b2ea"
    request = CdsRequest(hook="patient-view", hook_instance=instance, context=context)
    cards = patient_view.sync(client=rlvo, body=request)
    print("card:", cards.cards[0].summary)
