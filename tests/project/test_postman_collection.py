"""The Postman collection has every call of the OpenAPI document, with valid examples."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import jsonschema_rs
import pytest

from tools.postman_collection import COLLECTION, DOCUMENT, collection, written

OPENAPI: dict[str, Any] = json.loads(DOCUMENT.read_text("utf-8"))
POSTMAN: dict[str, Any] = json.loads(COLLECTION.read_text("utf-8"))
OPERATIONS = {
    (method.upper(), path): operation
    for path, operations in OPENAPI["paths"].items()
    for method, operation in operations.items()
}


def address(request: dict[str, Any]) -> tuple[str, str]:
    """Method and path of a request, as the OpenAPI document writes them."""
    path = re.sub(
        r":(\w+)|\{\{(\w+)\}\}", lambda found: f"{{{found[1] or found[2]}}}", "/".join(request["url"]["path"])
    )
    return request["method"], f"/{path}"


def requests() -> Iterator[dict[str, Any]]:
    for folder in POSTMAN["item"]:
        for item in folder["item"]:
            yield item["request"]


def test_committed_collection_is_current() -> None:
    assert COLLECTION.read_text("utf-8") == written(collection(OPENAPI)), "run: python tools/postman_collection.py"


def test_every_call_is_in_the_collection_once() -> None:
    assert sorted(map(address, requests())) == sorted(OPERATIONS)
    assert POSTMAN["info"]["schema"].endswith("/v2.1.0/collection.json")


@pytest.mark.parametrize("request_", list(requests()), ids=lambda each: " ".join(address(each)))
def test_request_has_the_parameters_of_its_call(request_: dict[str, Any]) -> None:
    operation = OPERATIONS[address(request_)]
    wanted: dict[str, set[str]] = {"query": set(), "header": set(), "path": set()}
    for each in operation.get("parameters", []):
        wanted[each["in"]].add(each["name"])
    assert {each["key"] for each in request_["url"].get("query", [])} == wanted["query"]
    assert {each["key"] for each in request_["header"]} - {"Content-Type"} == wanted["header"]
    variables = {each["key"] for each in request_["url"].get("variable", [])}
    assert variables | {each["key"] for each in POSTMAN["variable"]} >= wanted["path"]
    switched_on = [each for each in request_["url"].get("query", []) if not each.get("disabled")]
    assert not [each for each in switched_on if not each["value"]]
    if (body := request_.get("body", {})).get("mode") == "raw":
        schema = operation["requestBody"]["content"]["application/json"]["schema"]
        jsonschema_rs.validate({**schema, "components": OPENAPI["components"]}, json.loads(body["raw"]))
    if body.get("mode") == "formdata":
        form = operation["requestBody"]["content"]["multipart/form-data"]["schema"]
        assert {each["key"] for each in body["formdata"]} == set(form["properties"])
