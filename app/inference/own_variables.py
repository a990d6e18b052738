"""Own variables of a site: rules for their names, and for the values that a record gives.

Design notes:
- A version declares its own variables in its manifest, under the section ``own`` of the record: ``own.ddimer``.
- The declaration decides which values are valid. No value is shown in an error.
- A name must be none of the record or of a cohort's table, and nothing that is known only after the puncture.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache

from pydantic import BaseModel

from app.inference.post_procedure import is_near
from app.registry.manifest import Clinical, ClinicalVariable, VariableKind
from app.registry.own_variable import OWN
from app.sdk.clinical import LONGEST_OWN, OWN_NAME, ClinicalRecord, ImagingSigns, PerfusionScalars
from app.sdk.errors import FieldError, InvalidClinical
from app.sdk.types import Input

_OTHER_COLUMNS = """
    patient site scanner date fold prepared study_instance_uid accession_number subject model explain clinical own
    final_stenosis_percent etici mtici rescue_treatment outcome label probability
"""


@cache
def taken_names() -> frozenset[str]:
    """Names that are fields of the record, of a section, or columns of a cohort."""
    models: tuple[type[BaseModel], ...] = (ClinicalRecord, PerfusionScalars, ImagingSigns)
    fields = {name for model in models for name in model.model_fields}
    return frozenset({*fields, *_OTHER_COLUMNS.split(), *(volume.value for volume in Input)})


def name_fault(name: str) -> str:
    """What is wrong with the name of an own variable, without its section, and what to do; "" if it can be used."""
    if len(name) > LONGEST_OWN or not re.fullmatch(OWN_NAME, name):
        return f"expected small letters, digits and single underscores, at most {LONGEST_OWN} characters, as ddimer"
    if is_near(name):
        return (
            "its name says that it is known only after the puncture, so it can never be an input; remove it, or begin "
            "the name of a history with prior_"
        )
    if name in taken_names():
        return "a field of the record or a column of the table has this name; use that field, or give another name"
    return ""


def rule(variable: ClinicalVariable) -> str:
    """What a value of an own variable must be: ``a number within 0 to 100000 ng/mL``."""
    assert variable.own is not None
    if variable.kind is VariableKind.FLAG:
        return "true or false"
    if variable.kind is VariableKind.CATEGORY:
        return f"one of {', '.join(variable.categories)}"
    unit = "" if variable.unit == "1" else f" {variable.unit}"
    return f"a number within {variable.own.low:.10g} to {variable.own.high:.10g}{unit}"


def value_fault(variable: ClinicalVariable, value: object) -> str:
    """What a value must be, if it is something else; "" if it is valid."""
    own = variable.own
    assert own is not None
    if variable.kind is VariableKind.FLAG:
        valid = isinstance(value, bool)
    elif variable.kind is VariableKind.CATEGORY:
        valid = isinstance(value, str) and value in variable.categories
    else:
        valid = isinstance(value, float | int) and not isinstance(value, bool) and own.low <= value <= own.high
    return "" if valid else f"must be {rule(variable)}"


def value_faults(record: ClinicalRecord, clinical: Clinical) -> list[FieldError]:
    """One error for each value of an own variable of the version that its declaration refuses."""
    values = record.own or {}
    pairs = ((variable, values.get(variable.name.removeprefix(OWN))) for variable in clinical.own)
    faults = ((variable.name, value_fault(variable, value)) for variable, value in pairs if value is not None)
    return [FieldError(name, fault) for name, fault in faults if fault]


def check_record(record: ClinicalRecord, clinical: Clinical, others: Iterable[Clinical] = ()) -> None:
    """Check the own values of a record against the version that reads it.

    Args:
        record: The record.
        clinical: Variables of the version.
        others: Variables of the other versions of the service, whose names are not refused. They are looked at only if
            the record has a name that this version does not declare.

    Raises:
        InvalidClinical: A value is not valid, or no version declares the name.
    """
    declared = [variable.name for variable in clinical.own]
    if unknown := [name for key in record.own or {} if (name := f"{OWN}{key}") not in declared]:
        elsewhere = {variable.name for other in others for variable in other.own}
        unknown = [name for name in unknown if name not in elsewhere]
    errors = value_faults(record, clinical)
    errors += [FieldError(name, "is no own variable of this model") for name in unknown]
    if errors:
        knows = ", ".join(name.removeprefix(OWN) for name in declared) or "none"
        raise InvalidClinical(
            f"{_count(errors)} in `own` of the clinical document cannot be used. This model knows the own variables: "
            f"{knows}. GET /v1/models/{{name}}/versions/{{version}}/clinical-schema has their types and ranges.",
            errors=errors,
        )


def json_schema(variables: Iterable[ClinicalVariable]) -> dict[str, object]:
    """JSON Schema of the section ``own`` for these variables; other names are allowed."""
    properties: dict[str, object] = {}
    required = []
    for variable in variables:
        assert variable.own is not None
        name = variable.name.removeprefix(OWN)
        properties[name] = {**_type(variable), "label": variable.own.label, "group": variable.own.group.value}
        required += [name] if variable.required else []
    return {
        "type": "object",
        "description": "Own variables of this version",
        "properties": properties,
        "required": required,
        "additionalProperties": True,
    }


def _type(variable: ClinicalVariable) -> dict[str, object]:
    assert variable.own is not None
    if variable.kind is VariableKind.FLAG:
        return {"type": "boolean"}
    if variable.kind is VariableKind.CATEGORY:
        return {"type": "string", "enum": list(variable.categories)}
    return {"type": "number", "minimum": variable.own.low, "maximum": variable.own.high, "unit": variable.unit}


def _count(errors: list[FieldError]) -> str:
    return f"{len(errors)} values" if len(errors) > 1 else "One value"
