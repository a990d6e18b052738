"""The OpenAPI document as Swagger UI shows it: every parameter is described, and every JSON body can be sent."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import jsonschema_rs
import pytest

from app.api.cds_hooks import CdsFeedback, CdsRequest
from app.api.openapi_examples import EXAMPLES
from app.main import openapi_document
from app.sdk.clinical import ClinicalRecord
from app.sdk.followup import OutcomeDraft, ReviewDraft
from app.sdk.models import AliasDraft
from app.sdk.studies import StudyRoles

MODELS = (AliasDraft, CdsFeedback, CdsRequest, ClinicalRecord, OutcomeDraft, ReviewDraft, StudyRoles)


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    return openapi_document()


def operations(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield f"{method.upper()} {path}", operation


def test_every_parameter_has_a_description(document: dict[str, Any]) -> None:
    without = [
        f"{name}: {parameter['name']}"
        for name, operation in operations(document)
        for parameter in operation.get("parameters", [])
        if not parameter.get("description")
    ]
    assert not without


def test_every_json_body_has_an_example_that_its_schema_accepts(document: dict[str, Any]) -> None:
    components = {"components": document["components"]}
    seen = set()
    for name, operation in operations(document):
        body = operation.get("requestBody", {}).get("content", {}).get("application/json")
        if body is None:
            continue
        schema = body["schema"]["$ref"].rpartition("/")[2]
        (example,) = document["components"]["schemas"][schema].get("examples", [None])
        assert example is not None, name
        jsonschema_rs.validator_for(components | body["schema"]).validate(example)
        seen.add(schema)
    assert seen == set(EXAMPLES)


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
def test_example_is_a_valid_request(model: Any) -> None:
    assert model.model_validate_json(json.dumps(EXAMPLES[model.__name__]))
