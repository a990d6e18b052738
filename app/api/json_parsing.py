"""JSON as it may come from anywhere: bounded and unambiguous before it is parsed, then a clinical record.

Notable choices:
- Size and depth are judged on the bytes, before any parser builds anything of them.
- A duplicate key, NaN, infinity, a lone surrogate or U+0000 is refused: two readers could take each differently.
- A fault names the field and its range, never what was sent. A field's name is told back only if it looks like one.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from typing import Any

from pydantic import ValidationError

from app.sdk.clinical import ClinicalRecord
from app.sdk.errors import FieldError, InvalidClinical, MalformedJson

MAX_DEPTH = 10

_NAME = re.compile(r"[A-Za-z0-9_]{1,40}")
# Possessive, and content with an open end: it never looks at a byte twice, whatever was sent.
_STRINGS = re.compile(rb'"(?:[^"\\]|\\.)*+(?:"|\\?\Z)', re.DOTALL)
_UNPRINTABLE = re.compile("[\x00\ud800-\udfff]")
_LONGEST_NUMBER = 64

Json = dict[str, "Json"] | list["Json"] | str | int | float | bool | None


def parse(content: bytes) -> Json:
    """The JSON value in ``content``, UTF-8. Raises MalformedJson."""
    if _depth(content) > MAX_DEPTH:
        raise MalformedJson(f"The document is nested deeper than {MAX_DEPTH} levels.")
    try:
        value: Json = json.loads(
            content.decode("utf-8-sig"),
            object_pairs_hook=_object,
            parse_int=_integer,
            parse_float=_float,
            parse_constant=_constant,
        )
    except UnicodeDecodeError as error:
        raise MalformedJson("The document is not UTF-8.") from error
    except json.JSONDecodeError as error:
        raise MalformedJson(f"The document is not JSON from line {error.lineno}, column {error.colno} on.") from error
    if any(_UNPRINTABLE.search(text) for text in _texts(value)):
        raise MalformedJson("The document holds a character that is no text (U+0000 or half of a surrogate pair).")
    return value


def clinical_record(content: bytes) -> ClinicalRecord:
    """The clinical record in a JSON document. Raises MalformedJson, InvalidClinical."""
    value = parse(content)
    if not isinstance(value, dict):
        raise InvalidClinical('The clinical document must be one JSON object, such as {"age": 71}.')
    try:
        return ClinicalRecord.model_validate(value)
    except ValidationError as error:
        faults = [_fault(each) for each in error.errors(include_url=False, include_input=False)]
        count = f"{len(faults)} fields" if len(faults) > 1 else "One field"
        raise InvalidClinical(
            f"{count} of the clinical document cannot be used; "
            "GET /v1/schema/clinical has every field, unit and range.",
            errors=faults,
        ) from None


def _fault(fault: Any) -> FieldError:
    """One pydantic fault in our words."""
    path = [str(part) for part in fault["loc"]]
    shown = ".".join(part if _NAME.fullmatch(part) else "(a field)" for part in path) or "clinical"
    match fault["type"]:
        case "extra_forbidden":
            detail = "is not a field of the clinical document"
        case "greater_than_equal" | "less_than_equal" | "finite_number":
            detail = f"must lie within {_range(path)}"
        case "model_type" | "model_attributes_type":
            detail = "must be a JSON object"
        case "value_error":
            detail = str(fault["ctx"]["error"])
        case _:
            detail = fault["msg"][:1].lower() + fault["msg"][1:]
    return FieldError(shown, detail)


def _range(path: list[str]) -> str:
    """The field's range and unit, as in its JSON Schema."""
    holder: Any = ClinicalRecord
    *sections, leaf = path
    for section in sections:
        holder = next(kind for kind in holder.model_fields[section].annotation.__args__ if kind is not type(None))
    info = holder.model_fields[leaf]
    low = next(bound.ge for bound in info.metadata if hasattr(bound, "ge"))
    high = next(bound.le for bound in info.metadata if hasattr(bound, "le"))
    unit = (info.json_schema_extra or {}).get("unit", "1")
    return f"{low:g} to {high:g}" + ("" if unit == "1" else f" {unit}")


def _depth(content: bytes) -> int:
    """How deep the brackets outside of strings nest."""
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
        raise MalformedJson("The document names a key twice in one object.")
    return built


def _integer(text: str) -> int:
    if len(text) > _LONGEST_NUMBER:
        raise MalformedJson(f"The document holds a number of more than {_LONGEST_NUMBER} digits.")
    return int(text)


def _float(text: str) -> float:
    if len(text) > _LONGEST_NUMBER or not math.isfinite(value := float(text)):
        raise MalformedJson("The document holds a number that is too long or too large.")
    return value


def _constant(_: str) -> float:
    raise MalformedJson("NaN and infinity are not JSON numbers; leave an unknown value out.")


def _texts(value: Json) -> Iterator[str]:
    """Every string within ``value``, keys included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, member in value.items():
            yield key
            yield from _texts(member)
    elif isinstance(value, list):
        for member in value:
            yield from _texts(member)
