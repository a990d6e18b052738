"""Write openapi/rlvo.postman_collection.json from openapi/openapi.json: ``python tools/postman_collection.py``.

The collection has the format 2.1, which Postman and Bruno import. Every call of the OpenAPI document is in it once.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parents[1] / "openapi"
DOCUMENT = FOLDER / "openapi.json"
COLLECTION = FOLDER / "rlvo.postman_collection.json"
_SCHEMA = "https://schema.getpostman.com/json/collection/v2.1.0/collection.json"
_JSON, _FORM = "application/json", "multipart/form-data"
_EXAMPLES = {"uuid": "d1577c69-dfbe-44ad-ba6d-3e05e953b2ea", "date-time": "2026-11-29T12:00:00Z"}

Node = dict[str, Any]


def collection(document: Node) -> Node:
    """The collection of an OpenAPI document: one folder for each tag, one request for each operation."""
    folders: dict[str, list[Node]] = {tag["name"]: [] for tag in document["tags"]}
    variables = {"baseUrl": "http://127.0.0.1:8000", "key": ""}
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            folders[operation["tags"][0]].append(_item(document, path, method, operation))
        variables |= dict.fromkeys(_in_segments(path), "")
    about = {tag["name"]: tag["description"] for tag in document["tags"]}
    return {
        "info": {
            "name": f"{document['info']['title']} {document['info']['version']}",
            "description": document["info"]["description"],
            "schema": _SCHEMA,
        },
        "auth": {"type": "bearer", "bearer": [{"key": "token", "value": "{{key}}", "type": "string"}]},
        "variable": [{"key": name, "value": value} for name, value in variables.items()],
        "item": [{"name": tag, "description": about[tag], "item": items} for tag, items in folders.items() if items],
    }


def _item(document: Node, path: str, method: str, operation: Node) -> Node:
    parameters = operation.get("parameters", [])
    request: Node = {
        "method": method.upper(),
        "description": operation.get("description", ""),
        "header": [_parameter(each) for each in parameters if each["in"] == "header"],
        "url": _url(path, parameters),
    }
    content = operation.get("requestBody", {}).get("content", {})
    if _FORM in content:
        request["body"] = {"mode": "formdata", "formdata": _form(document, content[_FORM]["schema"])}
    elif _JSON in content:
        example = json.dumps(_example(document, content[_JSON]["schema"]), indent=2)
        request["body"] = {"mode": "raw", "raw": example, "options": {"raw": {"language": "json"}}}
        request["header"].append({"key": "Content-Type", "value": _JSON})
    elif content:
        request["body"] = {"mode": "file"}
    return {"name": operation["summary"], "request": request}


def _url(path: str, parameters: list[Node]) -> Node:
    """An address; a parameter that fills a segment is ``:name``, another one the variable ``{{name}}``."""
    segments = [re.sub(r"\{(\w+)\}", r"{{\1}}", re.sub(r"^\{(\w+)\}$", r":\1", each)) for each in path.split("/")[1:]]
    url: Node = {"raw": "/".join(["{{baseUrl}}", *segments]), "host": ["{{baseUrl}}"], "path": segments}
    if query := [_parameter(each) for each in parameters if each["in"] == "query"]:
        url["query"] = query
    if variables := [each[1:] for each in segments if each.startswith(":")]:
        about = {each["name"]: each.get("description", "") for each in parameters}
        url["variable"] = [{"key": name, "value": "", "description": about.get(name, "")} for name in variables]
    return url


def _in_segments(path: str) -> list[str]:
    """Names of the parameters that are only a part of a segment."""
    parts = [each for each in path.split("/") if not re.fullmatch(r"\{\w+\}", each)]
    return re.findall(r"\{(\w+)\}", "/".join(parts))


def _parameter(parameter: Node) -> Node:
    """A header or query parameter; one that is not required is switched off."""
    example = next(iter(parameter.get("schema", {}).get("examples", [])), "")
    entry = {"key": parameter["name"], "value": example, "description": parameter.get("description", "")}
    return entry if parameter.get("required") else entry | {"disabled": True}


def _form(document: Node, schema: Node) -> list[Node]:
    fields = []
    for name, member in schema["properties"].items():
        entry: Node = {"key": name, "description": member.get("description", ""), "disabled": name != "cta"}
        if member.get("format") == "binary":
            entry |= {"type": "file", "src": []}
        elif "$ref" in member:
            entry |= {"type": "text", "value": json.dumps(_example(document, member)), "contentType": _JSON}
        else:
            entry |= {"type": "text", "value": next(iter(member.get("enum", member.get("examples", [""]))))}
        fields.append(entry)
    return fields


def _example(document: Node, schema: Node) -> Any:
    """A small valid value: examples, constants and required members only."""
    if "$ref" in schema:
        return _example(document, document["components"]["schemas"][schema["$ref"].rpartition("/")[2]])
    if choices := schema.get("anyOf"):
        first = choices[0]
        if "properties" not in schema:
            return _example(document, first)
        required = [*schema.get("required", ()), *first.get("required", ())]
        schema = schema | {"required": required, "properties": schema["properties"] | first.get("properties", {})}
    given = [
        *schema.get("examples", ()),
        *schema.get("enum", ()),
        *(schema[n] for n in ("const", "default") if n in schema),
    ]
    return given[0] if given else _of_type(document, schema)


def _of_type(document: Node, schema: Node) -> Any:
    match schema.get("type"):
        case "object":
            return {each: _example(document, schema["properties"][each]) for each in schema.get("required", [])}
        case "array":
            return [_example(document, schema["items"])]
        case "string":
            return _string(schema)
        case "number" | "integer":
            return schema.get("minimum", 0)
        case _:
            return False


def _string(schema: Node) -> str:
    texts = [_EXAMPLES.get(schema.get("format", ""), ""), "1.0.0", "S-001", _EXAMPLES["uuid"]]
    pattern = re.compile(schema.get("pattern", ""))
    return next((each for each in texts if each and pattern.search(each)), "example")


def written(value: Node) -> str:
    """The text of the file."""
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    COLLECTION.write_text(written(collection(json.loads(DOCUMENT.read_text("utf-8")))), "utf-8")
