"""The clinical record as the network's clinical vector, and back to words for the explanation.

Notable choices:
- Everything that was learnt from training patients (imputation, mean, standard deviation) stands in the manifest;
  ``fit`` writes it, ``encode`` only reads it. Training and serving run the same ``encode``.
- A variable is named as in the record, dotted inside a section: ``age``, ``perfusion.core_ml``.
- What is known only after the puncture can never be a variable: ``POST_PROCEDURE_FIELDS`` lists it, once, for the whole house.
- A perfusion number that the site's own software gave wins over the one computed here; a disagreement is flagged.
- ``log`` means log(1 + x): volumes and times may be zero.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import get_args

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from app.registry.manifest import Clinical, ClinicalVariable, VariableKind
from app.sdk.clinical import ClinicalRecord
from app.sdk.errors import FieldError, InvalidClinical, MissingInput
from app.sdk.types import Flag, PerfusionSummary

Value = float | bool | str

PERFUSION = "perfusion."

# Known only once the artery has been punctured, or later: a model that reads one of these reads its own answer.
POST_PROCEDURE_FIELDS = frozenset(
    {
        "passes",
        "first_pass_effect",
        "device",
        "devices",
        "technique",
        "stent_retriever",
        "aspiration",
        "puncture_time",
        "time_to_puncture",
        "onset_to_puncture",
        "door_to_puncture",
        "time_of_intervention",
        "recanalization_time",
        "recanalisation_time",
        "door_to_recanalization",
        "onset_to_recanalization",
        "door_to_first_series",
        "procedure_time",
        "anesthesia",
        "anaesthesia",
        "operator_notes",
        "complications",
        "mtici",
        "etici",
        "tici",
        "final_stenosis_percent",
        "residual_stenosis",
        "rescue_treatment",
        "rescue_stenting",
        "angioplasty",
        "tirofiban",
        "gp_iib_iiia",
        "reocclusion",
        "rlvo",
        "refractory",
        "unsuccessful_reperfusion",
        "follow_up",
        "followup_nihss",
        "nihss_24h",
        "discharge_nihss",
        "mrs_90",
        "mrs_3_months",
        "mortality",
        "death",
        "infarct_volume",
        "lesion_volume",
        "hemorrhage",
        "haemorrhage",
        "sich",
        "dwi",
        "length_of_stay",
    }
)


@dataclass(frozen=True)
class EncodedRecord:
    """One patient's clinical side.

    ``values``: (columns,) float32, standardised; ``missing``: (variables,) float32, 1 where the record had nothing;
    ``imputed``: the names of those variables; ``shown``: what the record said, None where it said nothing.
    """

    values: NDArray[np.float32]
    missing: NDArray[np.float32]
    imputed: tuple[str, ...]
    shown: dict[str, Value | None]
    flags: tuple[Flag, ...]


def encode(record: ClinicalRecord, clinical: Clinical, perfusion: PerfusionSummary | None = None) -> EncodedRecord:
    """The record in the manifest's words.

    :param perfusion: what was computed from this patient's images; fills what the record leaves open
    :raises InvalidClinical: for a variable that no record has, or one known only after the puncture
    :raises MissingInput: where the model requires a variable that is missing
    """
    check(variable.name for variable in clinical.variables)
    shown = {variable.name: _value(record, variable.name, perfusion) for variable in clinical.variables}
    required = [variable.name for variable in clinical.variables if variable.required and shown[variable.name] is None]
    if required:
        errors = [FieldError(f"clinical.{name}", "this model requires it") for name in required]
        raise MissingInput(f"this model requires clinical fields: {', '.join(required)}", errors=errors)
    columns = [column for variable in clinical.variables for column in _columns(variable, shown[variable.name])]
    missing = [float(value is None) for value in shown.values()]
    return EncodedRecord(
        values=np.asarray(columns, dtype=np.float32),
        missing=np.asarray(missing, dtype=np.float32),
        imputed=tuple(name for name, value in shown.items() if value is None),
        shown=shown,
        flags=tuple(_disagreements(record, perfusion)),
    )


def width(variable: ClinicalVariable) -> int:
    """How many columns of the clinical vector a variable's values take."""
    return len(variable.categories) if variable.kind is VariableKind.CATEGORY else 1


def check(names: Iterable[str]) -> None:
    """Refuse variables that a record cannot have, or that would leak the outcome.

    :raises InvalidClinical: naming each, and why
    """
    errors = []
    for name in names:
        if name.rpartition(".")[2].lower().replace("-", "_") in POST_PROCEDURE_FIELDS:
            errors.append(FieldError(name, "it is known only after the puncture and can never be an input"))
        elif not _known(name):
            errors.append(FieldError(name, "the clinical record has no such field"))
    if errors:
        said = "; ".join(f"{error.field}: {error.detail}" for error in errors)
        raise InvalidClinical(f"the clinical variables cannot be used: {said}", errors=errors)


def fit(records: Sequence[ClinicalRecord], variables: Sequence[ClinicalVariable]) -> Clinical:
    """The variables with imputation and standardisation learnt from training records.

    A number is imputed by its median, a flag by its frequency, a category by its frequencies. Mean and standard
    deviation are those of the imputed column, of the transformed number.

    :param variables: names, kinds, units, groups; their statistics are replaced
    :raises InvalidClinical: as ``check``
    """
    check(variable.name for variable in variables)
    return Clinical(variables=tuple(_fitted(variable, records) for variable in variables))


def _fitted(variable: ClinicalVariable, records: Sequence[ClinicalRecord]) -> ClinicalVariable:
    raw = [record.value(variable.name) for record in records]
    known = [value for value in raw if value is not None]
    if variable.kind is VariableKind.CATEGORY:
        counts = np.asarray([sum(str(value) == category for value in known) for category in variable.categories])
        shares = counts / max(int(counts.sum()), 1)
        return variable.model_copy(update={"category_means": tuple(float(share) for share in shares)})
    numbers = np.asarray([float(value) for value in known], dtype=np.float64)
    middle = np.mean if variable.kind is VariableKind.FLAG else np.median
    imputed = float(middle(numbers)) if len(numbers) else 0.0
    filled = np.asarray([_transform(variable, imputed if value is None else float(value)) for value in raw] or [0.0])
    spread = float(filled.std())
    # A column that never varies carries nothing; a standard deviation of 1 leaves it at zero.
    update = {"imputed": imputed, "mean": float(filled.mean()), "std": spread if spread > 1e-6 else 1.0}
    return variable.model_copy(update=update)


def _value(record: ClinicalRecord, name: str, perfusion: PerfusionSummary | None) -> Value | None:
    value = record.value(name)
    if value is None and perfusion is not None and name.startswith(PERFUSION):
        value = getattr(perfusion, name.removeprefix(PERFUSION), None)
    return str(value) if isinstance(value, str) else value


def _columns(variable: ClinicalVariable, value: Value | None) -> list[float]:
    if variable.kind is VariableKind.CATEGORY:
        if value is None:
            return list(variable.category_means)
        return [float(value == category) for category in variable.categories]
    number = variable.imputed if value is None else float(value)
    return [(_transform(variable, number) - variable.mean) / variable.std]


def _transform(variable: ClinicalVariable, number: float) -> float:
    return math.log1p(max(number, 0.0)) if variable.log else number


def _known(name: str) -> bool:
    """Whether a record has a field of this dotted name (a section itself is no variable)."""
    section, _, field = name.rpartition(".")
    model: type[BaseModel] | None = ClinicalRecord
    if section:
        found = ClinicalRecord.model_fields.get(section)
        model = _section(found.annotation) if found else None
    if model is None or field not in model.model_fields or name == "glucose_mmol_l":
        return False
    return _section(model.model_fields[field].annotation) is None


def _section(annotation: object) -> type[BaseModel] | None:
    for part in get_args(annotation):
        if isinstance(part, type) and issubclass(part, BaseModel):
            return part
    return None


def _disagreements(record: ClinicalRecord, perfusion: PerfusionSummary | None) -> Iterator[Flag]:
    """The site's perfusion numbers against ours: apart by more than a third, and by more than 5 in their own unit
    for volumes (mL), 0.1 for indices.
    """
    if record.perfusion is None or perfusion is None:
        return
    for field in PerfusionSummary.model_fields:
        theirs, ours = getattr(record.perfusion, field), getattr(perfusion, field)
        if theirs is None or ours is None:
            continue
        apart = abs(theirs - ours)
        if apart > (5.0 if field.endswith("_ml") else 0.1) and apart > max(abs(theirs), abs(ours)) / 3:
            yield Flag(
                code="perfusion-differs",
                detail=f"{field} of the record differs from the one computed from the images; the record's was used",
            )
