"""Encode the clinical record as the network's clinical vector.

Design notes:
- The manifest holds everything learnt from training patients (imputation, mean, standard deviation). ``fit`` writes it
  and ``encode`` reads it, in training as in serving.
- A variable has the name of the record's field, with a dot inside a section: ``age``, ``perfusion.core_ml``.
- A field that is known only after the puncture can never be a variable (``post_procedure``).
- An own variable of the site has the name ``own.NAME``; its declaration refuses other values (``own_variables``).
- A perfusion number from the site's software has priority over the computed one; a large difference gives a flag.
- A category without a column is a missing value, and a flag says so. It never looks like a known value of zeros.
- ``log`` means log(1 + x), because volumes and times may be zero.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, get_args

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from app.inference import own_variables, post_procedure
from app.registry.manifest import Clinical, ClinicalVariable, VariableKind
from app.registry.own_variable import OWN
from app.sdk import clinical_rules
from app.sdk.clinical import SECOND_UNITS, ClinicalRecord
from app.sdk.errors import FieldError, InvalidClinical, MissingInput, ModelNotReady
from app.sdk.types import Flag, PerfusionSummary

Value = float | bool | str

PERFUSION = "perfusion."

_MILD_NIHSS: Final = 2
_LARGE_CORE_ML: Final = 70.0  # a large core in trials of thrombectomy


@dataclass(frozen=True)
class EncodedRecord:
    """One encoded record: standardised values (columns,), and 1 for each missing variable (variables,), float32.

    ``imputed`` names the missing variables; ``shown`` holds the record's values, None if missing.
    """

    values: NDArray[np.float32]
    missing: NDArray[np.float32]
    imputed: tuple[str, ...]
    shown: dict[str, Value | None]
    flags: tuple[Flag, ...]


def encode(record: ClinicalRecord, clinical: Clinical, perfusion: PerfusionSummary | None = None) -> EncodedRecord:
    """Encode a record; ``perfusion``, computed from the images, fills numbers that the record does not give.

    Raises:
        InvalidClinical: A variable is no field of the record, or is known only after the puncture, or the record has a
            value of an own variable that its declaration refuses.
        MissingInput: A required variable is missing.
    """
    validate_names(variable.name for variable in clinical.variables)
    if refused := own_variables.value_faults(record, clinical):
        raise InvalidClinical("A value of an own variable cannot be used.", errors=refused)
    given = {variable.name: _value(record, variable.name, perfusion) for variable in clinical.variables}
    shown = {v.name: given[v.name] if _has_column(v, given[v.name]) else None for v in clinical.variables}
    required = [variable for variable in clinical.variables if variable.required and shown[variable.name] is None]
    if required:
        names = ", ".join(variable.name for variable in required)
        errors = [
            FieldError(
                f"clinical.{variable.name}",
                "this model requires it"
                if given[variable.name] is None
                else f"this model requires it, and knows only {', '.join(variable.categories)}",
            )
            for variable in required
        ]
        raise MissingInput(f"This model requires the clinical fields: {names}.", errors=errors)
    columns = [column for variable in clinical.variables for column in _columns(variable, shown[variable.name])]
    missing = [float(value is None) for value in shown.values()]
    return EncodedRecord(
        values=np.asarray(columns, dtype=np.float32),
        missing=np.asarray(missing, dtype=np.float32),
        imputed=tuple(name for name, value in shown.items() if value is None),
        shown=shown,
        flags=(
            *clinical_rules.doubts(record),
            *_disagreements(record, perfusion),
            *_mild_deficit(record, perfusion),
            *category_flags(record, clinical),
        ),
    )


def category_flags(record: ClinicalRecord, clinical: Clinical) -> Iterator[Flag]:
    """Yield a flag for each category that the version has no column for, or that no training patient had."""
    for variable in clinical.variables:
        if variable.kind is not VariableKind.CATEGORY or (value := record.value(variable.name)) is None:
            continue
        if value not in variable.categories:
            known = ", ".join(variable.categories)
            detail = f"{variable.name}: the version does not know this category and takes it as missing; known: {known}"
            yield Flag(code="category-unknown", detail=detail)
        elif any(variable.category_means) and not variable.category_means[variable.categories.index(str(value))]:
            detail = f"{variable.name}: no training patient had this category, so its effect was not learnt"
            yield Flag(code="category-unknown", detail=detail)


def validate_names(names: Iterable[str]) -> None:
    """Check that each variable is a field of the record and known before the puncture.

    Raises:
        InvalidClinical: The message names each unusable variable and the reason.
    """
    errors = []
    for name in names:
        if name.startswith(OWN):
            fault = own_variables.name_fault(name.removeprefix(OWN))
            errors += [FieldError(name, fault)] if fault else []
        elif post_procedure.is_listed(name):
            errors.append(FieldError(name, "it is known only after the puncture and can never be an input"))
        elif not _is_record_field(name):
            errors.append(FieldError(name, "the clinical record has no such field"))
    if errors:
        reasons = "; ".join(f"{error.field}: {error.detail}" for error in errors)
        raise InvalidClinical(f"The clinical variables cannot be used: {reasons}.", errors=errors)


def check_variables(clinical: Clinical) -> None:
    """Raise ModelNotReady if the variables of a manifest could encode no record."""
    try:
        validate_names(variable.name for variable in clinical.variables)
    except InvalidClinical as error:
        raise ModelNotReady(error.detail) from error
    for variable in clinical.variables:
        if variable.kind is not VariableKind.CATEGORY and _is_text(variable.name):
            raise ModelNotReady(f"{variable.name} has words as values, so the manifest must list it as a category.")


def fit(records: Sequence[ClinicalRecord], variables: Sequence[ClinicalVariable]) -> Clinical:
    """Return the variables with imputation and standardisation learnt from training records.

    A number is imputed by its median, a flag by its frequency, a category by its frequencies. Mean and standard
    deviation are those of the imputed and transformed column. Statistics in ``variables`` are replaced. A category
    of the schema that a training record has gets a column, even if ``variables`` does not list it.

    Raises:
        InvalidClinical: See ``validate_names``.
    """
    validate_names(variable.name for variable in variables)
    return Clinical(variables=tuple(_fit_variable(variable, records) for variable in variables))


def _fit_variable(variable: ClinicalVariable, records: Sequence[ClinicalRecord]) -> ClinicalVariable:
    raw = [record.value(variable.name) for record in records]
    known = [value for value in raw if value is not None]
    if variable.kind is VariableKind.CATEGORY:
        words = [str(value) for value in known]
        categories = (*variable.categories, *sorted(set(words) - set(variable.categories)))
        counts = np.asarray([words.count(category) for category in categories])
        shares = tuple(float(share) for share in counts / max(int(counts.sum()), 1))
        return variable.model_copy(update={"categories": categories, "category_means": shares})
    numbers = np.asarray([float(value) for value in known], dtype=np.float64)
    middle = np.mean if variable.kind is VariableKind.FLAG else np.median
    imputed = float(middle(numbers)) if len(numbers) else 0.0
    filled = np.asarray([_transform(variable, imputed if value is None else float(value)) for value in raw] or [0.0])
    spread = float(filled.std())
    # A constant column has no information; a standard deviation of 1 keeps it at zero.
    update = {"imputed": imputed, "mean": float(filled.mean()), "std": spread if spread > 1e-6 else 1.0}
    return variable.model_copy(update=update)


def _value(record: ClinicalRecord, name: str, perfusion: PerfusionSummary | None) -> Value | None:
    value = record.value(name)
    if value is None and perfusion is not None and name.startswith(PERFUSION):
        value = getattr(perfusion, name.removeprefix(PERFUSION), None)
    return str(value) if isinstance(value, str) else value


def _has_column(variable: ClinicalVariable, value: Value | None) -> bool:
    return variable.kind is not VariableKind.CATEGORY or value is None or value in variable.categories


def _columns(variable: ClinicalVariable, value: Value | None) -> list[float]:
    if variable.kind is VariableKind.CATEGORY:
        if value is None:
            return list(variable.category_means)
        return [float(value == category) for category in variable.categories]
    number = variable.imputed if value is None else float(value)
    return [(_transform(variable, number) - variable.mean) / variable.std]


def _transform(variable: ClinicalVariable, number: float) -> float:
    return math.log1p(max(number, 0.0)) if variable.log else number


def _is_record_field(name: str) -> bool:
    """Whether a record has a field of this dotted name; a section is no field."""
    annotation = _annotation(name)
    return annotation is not None and name not in SECOND_UNITS and _section(annotation) is None


def _annotation(name: str) -> object:
    """Type of a field of the record, by its dotted name; None if there is no such field."""
    section, _, field = name.rpartition(".")
    model: type[BaseModel] | None = ClinicalRecord
    if section:
        parent = ClinicalRecord.model_fields.get(section)
        model = _section(parent.annotation) if parent else None
    return model.model_fields[field].annotation if model is not None and field in model.model_fields else None


def _is_text(name: str) -> bool:
    def is_text(annotation: object) -> bool:
        text = isinstance(annotation, type) and issubclass(annotation, str)
        return text or any(map(is_text, get_args(annotation)))

    return is_text(_annotation(name))


def _section(annotation: object) -> type[BaseModel] | None:
    for part in get_args(annotation):
        if isinstance(part, type) and issubclass(part, BaseModel):
            return part
    return None


def _disagreements(record: ClinicalRecord, perfusion: PerfusionSummary | None) -> Iterator[Flag]:
    """Yield a flag for each perfusion number that differs from the computed one.

    The difference must exceed a third of the larger number, and 5 mL for a volume or 0.1 for an index.
    """
    if record.perfusion is None or perfusion is None:
        return
    for field in PerfusionSummary.model_fields:
        recorded, computed = getattr(record.perfusion, field), getattr(perfusion, field)
        if recorded is None or computed is None:
            continue
        difference, larger = abs(recorded - computed), max(abs(recorded), abs(computed))
        if difference > (5.0 if field.endswith("_ml") else 0.1) and difference > larger / 3:
            yield Flag(
                code="perfusion-differs",
                detail=f"{field} of the record differs from the value computed from the images; the record is used",
            )


def _mild_deficit(record: ClinicalRecord, perfusion: PerfusionSummary | None) -> Iterator[Flag]:
    """Yield a flag if hardly any deficit stands beside a large core, of the record or else of the maps."""
    cores = [numbers.core_ml for numbers in (record.perfusion, perfusion) if numbers and numbers.core_ml is not None]
    if record.nihss is not None and record.nihss <= _MILD_NIHSS and cores and cores[0] >= _LARGE_CORE_ML:
        yield Flag(
            code="nihss-core-contradiction",
            detail=f"nihss is {_MILD_NIHSS} or less beside a core of {_LARGE_CORE_ML:.0f} mL or more; check it, and "
            "that record and maps are of one patient",
        )
