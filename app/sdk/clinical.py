"""The clinical document: what a stroke team knows of the patient before the puncture.

Notable choices:
- Every field is optional here; a model's manifest says which ones it requires.
- Types are strict (no "74" for 74, no true for 1), unknown fields are refused, NaN and infinity are refused.
- Units are fixed by the field, and stand in the JSON Schema with the ranges, so that a form can be built from it.
- Nothing that is known only after the puncture (passes, devices, times, follow-up) has a field.
- Codes: SNOMED CT and LOINC codes are in ``json_schema_extra`` where they were verified; see docs/clinical.md.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

__all__ = ["ClinicalRecord", "ImagingSigns", "OcclusionSite", "PerfusionScalars", "Sex", "Side", "Smoking"]


class Sex(StrEnum):
    FEMALE = "female"
    MALE = "male"


class Smoking(StrEnum):
    NEVER = "never"
    FORMER = "former"
    CURRENT = "current"


class Side(StrEnum):
    LEFT = "left"
    RIGHT = "right"


class OcclusionSite(StrEnum):
    ICA_CERVICAL = "ica-cervical"
    ICA_INTRACRANIAL = "ica-intracranial"
    ICA_TERMINUS = "ica-terminus"
    M1_PROXIMAL = "m1-proximal"
    M1_DISTAL = "m1-distal"
    M2 = "m2"


def _number(low: float, high: float, unit: str, description: str) -> Any:
    return Field(
        default=None, ge=low, le=high, allow_inf_nan=False, description=description, json_schema_extra={"unit": unit}
    )


def _count(low: int, high: int, description: str, unit: str = "1") -> Any:
    return Field(default=None, ge=low, le=high, description=description, json_schema_extra={"unit": unit})


def _fact(description: str) -> Any:
    return Field(default=None, description=description)


# Enumerations come as JSON strings; strict mode alone would refuse a plain string for an enum member.
_Lax = Field(strict=False)


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class PerfusionScalars(_Section):
    """CT perfusion results of the site's own software; they win over the ones computed here."""

    core_ml: float | None = _number(0, 1000, "mL", "Ischaemic core, rCBF < 30 %")
    tmax4_ml: float | None = _number(0, 2000, "mL", "Volume with Tmax > 4 s")
    tmax6_ml: float | None = _number(0, 2000, "mL", "Volume with Tmax > 6 s")
    tmax8_ml: float | None = _number(0, 2000, "mL", "Volume with Tmax > 8 s")
    tmax10_ml: float | None = _number(0, 2000, "mL", "Volume with Tmax > 10 s")
    mismatch_ml: float | None = _number(0, 2000, "mL", "Tmax > 6 s volume minus core")
    mismatch_ratio: float | None = _number(0, 1000, "1", "Tmax > 6 s volume over core")
    hypoperfusion_intensity_ratio: float | None = _number(0, 1, "1", "Tmax > 10 s volume over Tmax > 6 s volume")
    cbv_index: float | None = _number(0, 5, "1", "Mean CBV within Tmax > 6 s over mean CBV of normal tissue")
    software: Annotated[str, Field(max_length=64, pattern=r"^[A-Za-z0-9 ._+-]+$")] | None = _fact(
        "Name and version of the software that made these numbers"
    )


class ImagingSigns(_Section):
    """Signs that a reader sees on the images before the puncture."""

    truncal_type: bool | None = _fact("Truncal-type occlusion: the bifurcation is spared")
    hyperdense_artery: bool | None = _fact("Hyperdense artery sign on NCCT")
    calcified_artery: bool | None = _fact("Calcification at the occlusion")
    clot_length_mm: float | None = _number(0, 150, "mm", "Length of the clot")
    clot_hu: float | None = _number(-50, 400, "HU", "Mean density of the clot on NCCT")


class ClinicalRecord(_Section):
    """One patient before thrombectomy. Every field is optional; a missing one is imputed and said to be."""

    age: float | None = _number(18, 110, "years", "Age")
    sex: Annotated[Sex, _Lax] | None = _fact("Sex")
    atrial_fibrillation: bool | None = _fact("Atrial fibrillation, known or newly found")
    hypertension: bool | None = _fact("Arterial hypertension")
    diabetes: bool | None = _fact("Diabetes mellitus")
    dyslipidemia: bool | None = _fact("Dyslipidaemia")
    smoking: Annotated[Smoking, _Lax] | None = _fact("Smoking")
    coronary_disease: bool | None = _fact("Coronary artery disease")
    heart_failure: bool | None = _fact("Heart failure")
    prior_stroke: bool | None = _fact("Stroke before this one")
    prior_tia: bool | None = _fact("Transient ischaemic attack before")
    antiplatelet: bool | None = _fact("On an antiplatelet drug")
    anticoagulant: bool | None = _fact("On an anticoagulant")
    statin: bool | None = _fact("On a statin")
    nihss: int | None = _count(0, 42, "NIH Stroke Scale at admission")
    prestroke_mrs: int | None = _count(0, 5, "Modified Rankin Scale before the stroke")
    systolic_bp: float | None = _number(60, 280, "mmHg", "Systolic blood pressure at admission")
    diastolic_bp: float | None = _number(30, 160, "mmHg", "Diastolic blood pressure at admission")
    glucose: float | None = _number(40, 700, "mg/dL", "Glucose at admission")
    glucose_mmol_l: float | None = _number(2.2, 38.9, "mmol/L", "Glucose at admission, in place of `glucose`")
    crp: float | None = _number(0, 600, "mg/L", "C-reactive protein")
    leukocytes: float | None = _number(0, 200, "10^9/L", "Leukocytes")
    inr: float | None = _number(0.5, 20, "1", "International normalised ratio")
    platelets: float | None = _number(0, 2000, "10^9/L", "Platelets")
    creatinine: float | None = _number(0.1, 20, "mg/dL", "Creatinine")
    ldl: float | None = _number(0, 500, "mg/dL", "LDL cholesterol")
    hba1c: float | None = _number(3, 20, "%", "Glycated haemoglobin")
    onset_to_imaging: float | None = _number(0, 2880, "min", "From onset, or last seen well, to imaging")
    onset_to_door: float | None = _number(0, 2880, "min", "From onset, or last seen well, to the door")
    wake_up: bool | None = _fact("Wake-up stroke")
    ivt: bool | None = _fact("Intravenous thrombolysis before puncture")
    occlusion_side: Annotated[Side, _Lax] | None = _fact("Side of the occlusion")
    occlusion_site: Annotated[OcclusionSite, _Lax] | None = _fact("Site of the occlusion")
    aspects: int | None = _count(0, 10, "ASPECTS")
    perfusion: PerfusionScalars | None = _fact("CT perfusion results of the site's own software")
    imaging_signs: ImagingSigns | None = _fact("Signs on the images")

    @model_validator(mode="after")
    def _one_glucose(self) -> ClinicalRecord:
        if self.glucose is not None and self.glucose_mmol_l is not None:
            raise ValueError("give glucose or glucose_mmol_l, not both")
        return self

    def value(self, variable: str) -> float | int | bool | str | None:
        """One variable by its dotted name (``age``, ``perfusion.core_ml``), in canonical units; None if missing.

        ``glucose`` is answered in mg/dL whichever unit was sent (1 mmol/L = 18.016 mg/dL).
        """
        if variable == "glucose" and self.glucose is None and self.glucose_mmol_l is not None:
            return self.glucose_mmol_l * 18.016
        section, _, name = variable.rpartition(".")
        holder = getattr(self, section) if section else self
        found: float | int | bool | str | None = None if holder is None else getattr(holder, name)
        return found
