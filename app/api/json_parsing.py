"""Parses untrusted JSON with limits, and validates clinical records and other request documents.

Design notes:
- The nesting depth is checked on the bytes, before a parser builds objects from them.
- Duplicate keys, NaN, infinity, lone surrogates and U+0000 are refused, because parsers disagree about them.
- An error names the field and its range, never the value. It repeats a field name only if that is a plain identifier.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from app.sdk.clinical import LONGEST_OWN, ClinicalRecord
from app.sdk.clinical_rules import contradictions
from app.sdk.errors import FieldError, InvalidClinical, InvalidRequest, MalformedJson

MAX_DEPTH = 10

_NAME = re.compile(r"[A-Za-z0-9_]{1,40}")
# The possessive quantifier and the optional end prevent backtracking, so the time is linear for any content.
_STRINGS = re.compile(rb'"(?:[^"\\]|\\.)*+(?:"|\\?\Z)', re.DOTALL)
_INVALID_CHARACTER = re.compile("[\x00\ud800-\udfff]")
_MAX_NUMBER_LENGTH = 64

Json = dict[str, "Json"] | list["Json"] | str | int | float | bool | None
_Document = TypeVar("_Document", bound=BaseModel)


def parse(content: bytes, max_depth: int = MAX_DEPTH, *, any_character: bool = False) -> Json:
    """Returns the JSON value in ``content``, which is UTF-8. Raises MalformedJson.

    ``any_character`` accepts U+0000, for documents of which no text is stored.
    """
    if _depth(content) > max_depth:
        raise MalformedJson(f"The document may have at most {max_depth} levels of nesting.")
    try:
        value: Json = json.loads(
            content.decode("utf-8-sig"),
            object_pairs_hook=_object,
            parse_int=_integer,
            parse_float=_float,
            parse_constant=_constant,
        )
    except UnicodeDecodeError as error:
        raise MalformedJson("The document must be encoded in UTF-8.") from error
    except json.JSONDecodeError as error:
        raise MalformedJson(f"The document is not valid JSON at line {error.lineno}, column {error.colno}.") from error
    if not any_character and any(_INVALID_CHARACTER.search(text) for text in _strings(value)):
        raise MalformedJson("The document contains U+0000 or a lone surrogate; remove that character.")
    return value


def clinical_record(content: bytes) -> ClinicalRecord:
    """Returns the clinical record in a JSON document. Raises MalformedJson, InvalidClinical."""
    value = parse(content)
    if not isinstance(value, dict):
        raise InvalidClinical('The clinical document must be one JSON object, such as {"age": 71}.')
    try:
        record = ClinicalRecord.model_validate(value)
    except ValidationError as error:
        errors = [_clinical_error(each) for each in error.errors(include_url=False, include_input=False)]
        raise _unusable(list(dict.fromkeys(errors))) from None
    if errors := contradictions(record):
        raise _unusable(errors)
    return record


def _unusable(errors: list[FieldError]) -> InvalidClinical:
    count = f"{len(errors)} fields" if len(errors) > 1 else "One field"
    return InvalidClinical(
        f"{count} of the clinical document cannot be used. "
        "GET /v1/schema/clinical lists every field with its unit and range.",
        errors=errors,
    )


def validated(
    model: type[_Document], content: bytes, *, max_depth: int = MAX_DEPTH, any_character: bool = False
) -> _Document:
    """Returns the document of a request body as a ``model``.

    Raises:
        MalformedJson: The body is not one JSON document.
        InvalidRequest: A field is not valid; the error names it, never its value.
    """
    parse(content, max_depth, any_character=any_character)
    try:
        return model.model_validate_json(content.removeprefix(b"\xef\xbb\xbf"))
    except ValidationError as error:
        errors = [_field_error(model, each) for each in error.errors(include_url=False, include_input=False)]
        raise InvalidRequest("The document is not valid. GET /openapi.json lists its fields.", errors=errors) from None


def _field_error(model: type[BaseModel], error: Any) -> FieldError:
    name = str(error["loc"][0]) if error["loc"] else "body"
    fields = {info.alias or field for field, info in model.model_fields.items()}
    known = name if name in fields else "body"
    return FieldError(known, "is not a field" if error["type"] == "extra_forbidden" else error["msg"])


def _clinical_error(error: Any) -> FieldError:
    path = [str(part) for part in error["loc"]]
    if path[:1] == ["own"] and len(path) > 1:
        return _own_error(path[1], is_name=path[-1] == "[key]")
    name = ".".join(part if _NAME.fullmatch(part) else "(a field)" for part in path) or "clinical"
    match error["type"]:
        case "extra_forbidden":
            detail = "is not a field of the clinical document"
        case "greater_than_equal" | "less_than_equal" | "finite_number":
            detail = f"must be within {_range(path)}"
        case "model_type" | "model_attributes_type" | "dict_type":
            detail = "must be a JSON object"
        case "value_error":
            detail = str(error["ctx"]["error"])
        case _:
            detail = error["msg"][:1].lower() + error["msg"][1:]
    return FieldError(name, detail)


def _own_error(name: str, *, is_name: bool) -> FieldError:
    """Error of an own variable; the union of its types has one error for each type, and all become the same one."""
    if is_name:
        form = f"the name has small letters, digits and single underscores, at most {LONGEST_OWN} characters"
        return FieldError("own.(a field)", form)
    shown = name if _NAME.fullmatch(name) else "(a field)"
    return FieldError(f"own.{shown}", "must be a number, true or false, or a word of small letters, digits and hyphens")


def _range(path: list[str]) -> str:
    """The range and unit of a clinical field, as its JSON Schema states them."""
    model: Any = ClinicalRecord
    *sections, leaf = path
    for section in sections:
        model = next(each for each in model.model_fields[section].annotation.__args__ if each is not type(None))
    info = model.model_fields[leaf]
    low = next(bound.ge for bound in info.metadata if hasattr(bound, "ge"))
    high = next(bound.le for bound in info.metadata if hasattr(bound, "le"))
    unit = (info.json_schema_extra or {}).get("unit", "1")
    return f"{low:g} to {high:g}" + ("" if unit == "1" else f" {unit}")


def _depth(content: bytes) -> int:
    """The maximum nesting depth of the brackets that are outside strings."""
    depth = deepest = 0
    for byte in _STRINGS.sub(b"", content):
        if byte in b"[{":
            depth += 1
            deepest = max(deepest, depth)
        elif byte in b"]}":
            depth -= 1
    return deepest


def _object(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
    built = dict(pairs)
    if len(built) < len(pairs):
        raise MalformedJson("The document has the same key twice in one object.")
    return built


def _integer(text: str) -> int:
    if len(text) > _MAX_NUMBER_LENGTH:
        raise MalformedJson(f"The document has a number of more than {_MAX_NUMBER_LENGTH} digits.")
    return int(text)


def _float(text: str) -> float:
    if len(text) > _MAX_NUMBER_LENGTH or not math.isfinite(value := float(text)):
        raise MalformedJson("The document has a number that is too long or too large.")
    return value


def _constant(_: str) -> float:
    raise MalformedJson("NaN and infinity are not JSON numbers. Leave an unknown value out.")


def _strings(value: Json) -> Iterator[str]:
    """All strings in ``value``, keys included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, member in value.items():
            yield key
            yield from _strings(member)
    elif isinstance(value, list):
        for member in value:
            yield from _strings(member)
