"""Clinical document: data of the patient that are known before the puncture.

Design notes:
- Every field is optional; the manifest of a model says which fields it requires.
- Types are strict ("74" is not 74, true is not 1). Unknown fields, NaN and infinity are refused.
- Each field has a fixed unit; units and ranges are in the JSON Schema, so that a form can be built from it.
- Ranges are wide enough for real patients, and exclude the usual codes of a missing value (777, 888, 999, 9999).
  ``clinical_rules`` flags values beyond the usual.
- Data that are known only after the puncture (passes, devices, times, follow-up) have no field.
- ``own`` holds the variables that a site declared for its own versions; the version checks their names and values.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema, field_validator, model_validator

__all__ = ["ClinicalRecord", "ImagingSigns", "OcclusionSite", "PerfusionScalars", "Sex", "Side", "Smoking"]

OWN_NAME: Final = r"^[a-z][a-z0-9]*(?:_[a-z0-9]+)*$"
OWN_WORD: Final = r"^[a-z0-9]+(?:-[a-z0-9]+)*$"
MOST_OWN: Final = 32
"""Own variables of one record."""
LONGEST_OWN: Final = 40
"""Characters of the name of an own variable, and of a word that is its value."""
LARGEST_OWN: Final = 1e12
"""Absolute value of a number."""

SECOND_UNITS: Final = {"glucose_mmol_l": "glucose", "hba1c_mmol_mol": "hba1c"}
"""Fields that give another field in a second unit; a variable has the name and the unit of the other field."""


class Sex(StrEnum):
    """Sex of the patient."""

    FEMALE = "female"
    MALE = "male"


class Smoking(StrEnum):
    """Smoking status."""

    NEVER = "never"
    FORMER = "former"
    CURRENT = "current"


class Side(StrEnum):
    """Side of the brain."""

    LEFT = "left"
    RIGHT = "right"


class OcclusionSite(StrEnum):
    """Site of the occlusion."""

    ICA_CERVICAL = "ica-cervical"
    ICA_INTRACRANIAL = "ica-intracranial"
    ICA_TERMINUS = "ica-terminus"
    M1_PROXIMAL = "m1-proximal"
    M1_DISTAL = "m1-distal"
    M2 = "m2"


_SNOMED: Final = "http://snomed.info/sct"
_LOINC: Final = "http://loinc.org"


def _number(low: float, high: float, unit: str, description: str) -> Any:
    return Field(
        default=None, ge=low, le=high, allow_inf_nan=False, description=description, json_schema_extra={"unit": unit}
    )


def _count(low: int, high: int, description: str, loinc: str = "") -> Any:
    return Field(
        default=None, ge=low, le=high, description=description, json_schema_extra={"unit": "1", **_code(_LOINC, loinc)}
    )


def _optional(description: str, snomed: str = "") -> Any:
    return Field(default=None, description=description, json_schema_extra=_code(_SNOMED, snomed) or None)


def _code(system: str, code: str) -> dict[str, Any]:
    """The code of a field in a terminology, for the JSON Schema; docs/clinical.md gives the meanings."""
    return {"code": {"system": system, "code": code}} if code else {}


# JSON has strings only; strict mode would refuse a string for an enum member.
_Lax = Field(strict=False)


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


OwnName = Annotated[str, Field(pattern=OWN_NAME, max_length=LONGEST_OWN)]
OwnValue = (
    bool
    | Annotated[float, Field(ge=-LARGEST_OWN, le=LARGEST_OWN, allow_inf_nan=False)]
    | Annotated[str, Field(pattern=OWN_WORD, max_length=LONGEST_OWN)]
)
OwnValues = Annotated[
    dict[OwnName, OwnValue | None],
    Field(max_length=MOST_OWN),
    WithJsonSchema(
        {
            "type": "object",
            "maxProperties": MOST_OWN,
            "propertyNames": {"pattern": OWN_NAME, "maxLength": LONGEST_OWN},
            "additionalProperties": {
                "anyOf": [
                    {"type": "boolean"},
                    {"type": "number", "minimum": -LARGEST_OWN, "maximum": LARGEST_OWN},
                    {"type": "string", "pattern": OWN_WORD, "maxLength": LONGEST_OWN},
                    {"type": "null"},
                ]
            },
        }
    ),
]


class PerfusionScalars(_Section):
    """CT perfusion results of the software of the site; they replace the results that the service computes."""

    core_ml: float | None = _number(0, 1000, "mL", "Ischaemic core, rCBF < 30 %")
    tmax4_ml: float | None = _number(0, 2000, "mL", "Volume with Tmax > 4 s")
    tmax6_ml: float | None = _number(0, 2000, "mL", "Volume with Tmax > 6 s")
    tmax8_ml: float | None = _number(0, 2000, "mL", "Volume with Tmax > 8 s")
    tmax10_ml: float | None = _number(0, 2000, "mL", "Volume with Tmax > 10 s")
    mismatch_ml: float | None = _number(0, 2000, "mL", "Tmax > 6 s volume minus core")
    mismatch_ratio: float | None = _number(0, 1000, "1", "Tmax > 6 s volume over core")
    hypoperfusion_intensity_ratio: float | None = _number(0, 1, "1", "Tmax > 10 s volume over Tmax > 6 s volume")
    cbv_index: float | None = _number(0, 5, "1", "Mean CBV within Tmax > 6 s over mean CBV of normal tissue")
    software: Annotated[str, Field(max_length=64, pattern=r"^[A-Za-z0-9 ._+-]+$")] | None = _optional(
        "Name and version of the software that computed the results"
    )


class ImagingSigns(_Section):
    """Signs that a reader sees on the images before the puncture."""

    truncal_type: bool | None = _optional("Truncal-type occlusion on CT angiography: the bifurcation is spared")
    hyperdense_artery: bool | None = _optional("Hyperdense artery sign on NCCT")
    calcified_artery: bool | None = _optional("Calcification at the occlusion")
    clot_length_mm: float | None = _number(0, 150, "mm", "Length of the clot")
    clot_hu: float | None = _number(-50, 400, "HU", "Mean density of the clot on NCCT")


class ClinicalRecord(_Section):
    """Patient before thrombectomy. Every field is optional; a missing one is imputed and flagged."""

    age: float | None = _number(18, 110, "years", "Age")
    sex: Annotated[Sex, _Lax] | None = _optional("Sex")
    atrial_fibrillation: bool | None = _optional("Atrial fibrillation, known or new", "49436004")
    hypertension: bool | None = _optional("Arterial hypertension", "38341003")
    diabetes: bool | None = _optional("Diabetes mellitus", "73211009")
    dyslipidemia: bool | None = _optional("Dyslipidaemia")
    smoking: Annotated[Smoking, _Lax] | None = _optional("Smoking")
    coronary_disease: bool | None = _optional("Coronary artery disease", "53741008")
    heart_failure: bool | None = _optional("Heart failure", "84114007")
    prior_stroke: bool | None = _optional("Stroke before this one", "275526006")
    prior_tia: bool | None = _optional("Transient ischaemic attack before this stroke", "161511000")
    antiplatelet: bool | None = _optional("On an antiplatelet drug")
    anticoagulant: bool | None = _optional("On an anticoagulant")
    statin: bool | None = _optional("On a statin")
    nihss: int | None = _count(0, 42, "NIH Stroke Scale at admission, total score", "72089-6")
    prestroke_mrs: int | None = _count(0, 5, "Modified Rankin Scale before the stroke")
    systolic_bp: float | None = _number(50, 300, "mmHg", "Systolic blood pressure at admission")
    diastolic_bp: float | None = _number(20, 200, "mmHg", "Diastolic blood pressure at admission")
    glucose: float | None = _number(20, 770, "mg/dL", "Glucose at admission")
    glucose_mmol_l: float | None = _number(1.2, 42.7, "mmol/L", "Glucose at admission, in place of `glucose`")
    crp: float | None = _number(0, 700, "mg/L", "C-reactive protein")
    leukocytes: float | None = _number(0, 700, "10^9/L", "Leukocytes")
    inr: float | None = _number(0.5, 20, "1", "International normalised ratio")
    platelets: float | None = _number(0, 2000, "10^9/L", "Platelets")
    creatinine: float | None = _number(0.1, 20, "mg/dL", "Creatinine")
    ldl: float | None = _number(0, 760, "mg/dL", "LDL cholesterol")
    hba1c: float | None = _number(3, 20, "%", "Glycated haemoglobin")
    hba1c_mmol_mol: float | None = _number(9.5, 195, "mmol/mol", "Glycated haemoglobin, in place of `hba1c`")
    onset_to_imaging: float | None = _number(0, 7200, "min", "From onset, or last seen well, to imaging")
    onset_to_door: float | None = _number(0, 7200, "min", "From onset, or last seen well, to arrival at the hospital")
    wake_up: bool | None = _optional("Wake-up stroke")
    ivt: bool | None = _optional("Intravenous thrombolysis before puncture")
    occlusion_side: Annotated[Side, _Lax] | None = _optional("Side of the occlusion")
    occlusion_site: Annotated[OcclusionSite, _Lax] | None = _optional(
        "Site of the occlusion; of a tandem occlusion, the intracranial site"
    )
    tandem_occlusion: bool | None = _optional("Also an occlusion or severe stenosis of the cervical ICA on that side")
    aspects: int | None = _count(0, 10, "ASPECTS")
    perfusion: PerfusionScalars | None = _optional("CT perfusion results of the software of the site")
    imaging_signs: ImagingSigns | None = _optional("Signs on the images")
    own: OwnValues | None = _optional("Own variables of the version by name, as its clinical-schema declares them")

    @field_validator("nihss", "prestroke_mrs", "aspects", mode="before")
    @classmethod
    def _whole(cls, value: object) -> object:
        """Take 15.0 as 15: JSON Schema counts it as an integer, and some languages write integers so."""
        return int(value) if type(value) is float and value.is_integer() else value

    @field_validator("own")
    @classmethod
    def _given(cls, values: dict[str, OwnValue | None] | None) -> dict[str, OwnValue | None] | None:
        """Leave out missing values; without any value there is no section."""
        return {name: value for name, value in (values or {}).items() if value is not None} or None

    @model_validator(mode="after")
    def _one_unit(self) -> ClinicalRecord:
        for second, first in SECOND_UNITS.items():
            if getattr(self, first) is not None and getattr(self, second) is not None:
                raise ValueError(f"give {first} or {second}, not both")
        return self

    @model_validator(mode="after")
    def _intracranial_site(self) -> ClinicalRecord:
        if self.tandem_occlusion and self.occlusion_site is OcclusionSite.ICA_CERVICAL:
            raise ValueError("give the intracranial site as occlusion_site if tandem_occlusion is true")
        return self

    def value(self, variable: str) -> float | int | bool | str | None:
        """Value of a variable by its dotted name (``age``, ``perfusion.core_ml``); None if missing.

        ``glucose`` is in mg/dL for either unit of the document (1 mmol/L = 18.016 mg/dL). ``hba1c`` is in per cent:
        0.09148 times the value in mmol/mol, plus 2.152 (Hoelzel et al., Clin Chem 2004;50:166-174).
        """
        if variable == "glucose" and self.glucose_mmol_l is not None:
            return self.glucose_mmol_l * 18.016
        if variable == "hba1c" and self.hba1c_mmol_mol is not None:
            return 0.09148 * self.hba1c_mmol_mol + 2.152
        section, _, name = variable.rpartition(".")
        if section == "own":
            return (self.own or {}).get(name)
        record = getattr(self, section) if section else self
        value: float | int | bool | str | None = None if record is None else getattr(record, name)
        return value


_SECTIONS: Final[dict[str, type[BaseModel]]] = {
    "": ClinicalRecord,
    "perfusion": PerfusionScalars,
    "imaging_signs": ImagingSigns,
}


def unit_of(variable: str) -> str:
    """Unit of a variable by its dotted name (``age``, ``perfusion.core_ml``); empty if the document gives none."""
    section, _, name = variable.rpartition(".")
    field = _SECTIONS[section].model_fields.get(name) if section in _SECTIONS else None
    extra = field.json_schema_extra if field is not None else None
    unit = str(extra.get("unit", "")) if isinstance(extra, dict) else ""
    return "" if unit == "1" else unit
