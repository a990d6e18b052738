"""Rules for a clinical record as a whole: refusals, flags, and valid look-alikes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from app.sdk.clinical import SECOND_UNITS, ClinicalRecord
from app.sdk.clinical_rules import USUAL, contradictions, doubts
from app.sdk.flags import Severity

RAPID = {"core_ml": 22.0, "tmax4_ml": 180.0, "tmax6_ml": 110.0, "tmax8_ml": 70.0, "tmax10_ml": 40.0}

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "systolic below diastolic": ({"systolic_bp": 80, "diastolic_bp": 140}, "systolic_bp"),
    "systolic equal to diastolic": ({"systolic_bp": 90, "diastolic_bp": 90}, "systolic_bp"),
    "tmax10 above tmax6": ({"perfusion": RAPID | {"tmax8_ml": None, "tmax10_ml": 150.0}}, "perfusion.tmax10_ml"),
    "tmax6 above tmax4": ({"perfusion": RAPID | {"tmax6_ml": 250.0}}, "perfusion.tmax6_ml"),
    "core above tmax6 with a mismatch": (
        {"perfusion": {"core_ml": 90.0, "tmax6_ml": 30.0, "mismatch_ml": 60.0}},
        "perfusion.core_ml",
    ),
}

FLAGGED: dict[str, tuple[dict[str, Any], str]] = {
    "core above tmax6": ({"perfusion": {"core_ml": 90.0, "tmax6_ml": 30.0}}, "record-contradiction"),
    "mismatch of another patient": ({"perfusion": RAPID | {"mismatch_ml": 20.0}}, "record-contradiction"),
    "ratio of another patient": ({"perfusion": RAPID | {"mismatch_ratio": 1.8}}, "record-contradiction"),
    "HIR of another patient": ({"perfusion": RAPID | {"hypoperfusion_intensity_ratio": 0.8}}, "record-contradiction"),
    "mismatch above tmax6, no core": ({"perfusion": {"tmax6_ml": 50.0, "mismatch_ml": 300.0}}, "record-contradiction"),
    "mismatch above tmax4": ({"perfusion": {"tmax4_ml": 50.0, "mismatch_ml": 200.0}}, "record-contradiction"),
    "core above tmax4": ({"perfusion": {"tmax4_ml": 50.0, "core_ml": 200.0}}, "record-contradiction"),
    "ratio beside core and mismatch": (
        {"perfusion": {"core_ml": 100.0, "mismatch_ml": 50.0, "mismatch_ratio": 5.0}},
        "record-contradiction",
    ),
    "ratio beside tmax6 and mismatch": (
        {"perfusion": {"tmax6_ml": 100.0, "mismatch_ml": 95.0, "mismatch_ratio": 2.0}},
        "record-contradiction",
    ),
    "HIR above what tmax8 leaves": (
        {"perfusion": {"tmax6_ml": 100.0, "tmax8_ml": 10.0, "hypoperfusion_intensity_ratio": 0.9}},
        "record-contradiction",
    ),
    "HIR above tmax10 over tmax8": (
        {"perfusion": {"tmax8_ml": 80.0, "tmax10_ml": 8.0, "hypoperfusion_intensity_ratio": 0.7}},
        "record-contradiction",
    ),
    "HIR below tmax10 over tmax4": (
        {"perfusion": {"tmax4_ml": 100.0, "tmax10_ml": 70.0, "hypoperfusion_intensity_ratio": 0.1}},
        "record-contradiction",
    ),
    "imaging before the arrival": ({"onset_to_imaging": 60, "onset_to_door": 240}, "record-unusual"),
    "hours as minutes": ({"onset_to_imaging": 4.5}, "record-unusual"),
    "platelets in another unit": ({"platelets": 25}, "record-unusual"),
    "CRP in mg/dL": ({"crp": 0.4}, "record-unusual"),
    "LDL in mmol/L": ({"ldl": 3.1}, "record-unusual"),
    "clot length in cm": ({"imaging_signs": {"clot_length_mm": 1.2}}, "record-unusual"),
    "HbA1c without diabetes": ({"hba1c": 9.1, "diabetes": False}, "record-unusual"),
    "HbA1c in mmol/mol without diabetes": ({"hba1c_mmol_mol": 76, "diabetes": False}, "record-unusual"),
    "HbA1c in per cent as mmol/mol": ({"hba1c_mmol_mol": 11.0}, "record-unusual"),
    "diastolic of an emergency": ({"diastolic_bp": 175}, "record-unusual"),
    "glucose of a hyperosmolar state": ({"glucose": 750}, "record-unusual"),
    "the same in mmol/L": ({"glucose_mmol_l": 41.6}, "record-unusual"),
    "glucose of a deep hypoglycaemia": ({"glucose": 24}, "record-unusual"),
    "seen well three days ago": ({"onset_to_imaging": 4320}, "record-unusual"),
    "leukocytes of a leukaemia": ({"leukocytes": 310}, "record-unusual"),
    "LDL of a familial hypercholesterolaemia": ({"ldl": 640}, "record-unusual"),
}

VALID: dict[str, dict[str, Any]] = {
    "RAPID": {"perfusion": RAPID | {"mismatch_ml": 88.0, "mismatch_ratio": 5.0, "hypoperfusion_intensity_ratio": 0.4}},
    "rounded volumes": {"perfusion": {"tmax6_ml": 20.0, "tmax8_ml": 20.6}},
    "no core": {"perfusion": {"core_ml": 0.0, "tmax6_ml": 60.0, "mismatch_ml": 60.0, "mismatch_ratio": 999.0}},
    "no delayed tissue": {"perfusion": {"tmax4_ml": 3.0, "tmax6_ml": 0.0, "hypoperfusion_intensity_ratio": 0.0}},
    "a large core, its ratio rounded": {"perfusion": {"core_ml": 210.0, "mismatch_ml": 30.0, "mismatch_ratio": 1.1}},
    "a large tmax6, its ratio rounded": {"perfusion": {"tmax6_ml": 290.0, "mismatch_ml": 16.0, "mismatch_ratio": 1.1}},
    "no core, and no number for it": {"perfusion": {"tmax6_ml": 60.0, "mismatch_ml": 60.0, "mismatch_ratio": 999.0}},
    "no core, and a ratio of 0 for it": {"perfusion": {"tmax6_ml": 60.0, "mismatch_ml": 60.0, "mismatch_ratio": 0.0}},
    "mismatch alone beside tmax4": {"perfusion": {"tmax4_ml": 180.0, "mismatch_ml": 88.0, "core_ml": 22.0}},
    "HIR beside neighbours": {
        "perfusion": {"tmax4_ml": 180.0, "tmax8_ml": 70.0, "tmax10_ml": 40.0, "hypoperfusion_intensity_ratio": 0.36}
    },
    "HIR without tmax10": {"perfusion": {"tmax6_ml": 110.0, "tmax8_ml": 70.0, "hypoperfusion_intensity_ratio": 0.36}},
    "narrow pulse pressure": {"systolic_bp": 101, "diastolic_bp": 92},
    "stroke in the hospital": {"onset_to_door": 0, "onset_to_imaging": 25},
    "leukaemia excluded, usual bloods": {"leukocytes": 7.2, "platelets": 240, "crp": 3.0, "inr": 1.0, "ldl": 120},
    "no CRP measured above the limit": {"crp": 0.0},
    "glucose in mmol/L": {"glucose_mmol_l": 6.1},
    "HbA1c in mmol/mol": {"hba1c_mmol_mol": 41, "diabetes": False},
    "tandem occlusion": {"tandem_occlusion": True, "occlusion_site": "m1-proximal"},
    "cervical occlusion alone": {"tandem_occlusion": False, "occlusion_site": "ica-cervical"},
}


@pytest.mark.parametrize(("document", "field"), REFUSED.values(), ids=REFUSED.keys())
def test_contradiction_names_its_field(document: dict[str, Any], field: str) -> None:
    assert [error.field for error in contradictions(ClinicalRecord.model_validate(document))] == [field]


@pytest.mark.parametrize(("document", "code"), FLAGGED.values(), ids=FLAGGED.keys())
def test_doubtful_values_are_flagged(document: dict[str, Any], code: str) -> None:
    record = ClinicalRecord.model_validate(document)
    assert contradictions(record) == []
    flags = doubts(record)
    assert [flag.code for flag in flags] == [code]
    assert flags[0].severity is (Severity.WARNING if code == "record-contradiction" else Severity.INFO)


@pytest.mark.parametrize("document", VALID.values(), ids=VALID.keys())
def test_valid_record_has_no_flag(document: dict[str, Any]) -> None:
    record = ClinicalRecord.model_validate(document)
    assert contradictions(record) == []
    assert doubts(record) == ()


def test_detail_never_repeats_a_value() -> None:
    flags = doubts(ClinicalRecord.model_validate({"platelets": 27.125, "crp": 0.4375}))
    assert "27.125" not in flags[0].detail
    assert "platelets" in flags[0].detail
    assert "crp" in flags[0].detail


def test_usual_ranges_lie_within_the_ranges_of_the_schema() -> None:
    for name, (low, high, _) in USUAL.items():
        section, _, field = name.rpartition(".")
        document = {field: low} if not section else {section: {field: low}}
        ClinicalRecord.model_validate(document)
        assert low < high


@pytest.mark.parametrize(
    "document",
    [
        {"glucose": 110, "glucose_mmol_l": 6.1},
        {"hba1c": 6.0, "hba1c_mmol_mol": 42},
        {"tandem_occlusion": True, "occlusion_site": "ica-cervical"},
        {"glucose": 6.1},  # mmol/L
        {"glucose_mmol_l": 110},  # mg/dL
        {"hba1c": 42},  # mmol/mol
        {"hba1c_mmol_mol": 6.0},  # per cent
        *({name: code} for name in ("diastolic_bp", "glucose", "leukocytes", "ldl") for code in (777, 888, 999, 9999)),
        *({name: code} for name in ("onset_to_imaging", "onset_to_door") for code in (7777, 8888, 9999)),
    ],
    ids=str,
)
def test_value_in_another_unit_or_code_of_a_missing_value_is_refused(document: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        ClinicalRecord.model_validate(document)


def test_codes_of_the_schema_are_those_of_docs_clinical() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "clinical.md").read_text()
    listed = dict(re.findall(r"^\| (\w+) \| (?:SNOMED CT|LOINC) ([0-9-]+) \|", page, re.MULTILINE))
    properties = ClinicalRecord.model_json_schema()["properties"]
    assert {name: each["code"]["code"] for name, each in properties.items() if "code" in each} == listed
    assert {"prior_stroke", "prior_tia", "nihss"} <= set(listed)
    assert {each["code"]["system"] for each in properties.values() if "code" in each} == {
        "http://snomed.info/sct",
        "http://loinc.org",
    }


def test_limits_of_both_units_are_the_same_values() -> None:
    for second, first in SECOND_UNITS.items():
        for bound in ("minimum", "maximum"):
            limit = ClinicalRecord.model_json_schema()["properties"][second]["anyOf"][0][bound]
            converted = ClinicalRecord.model_validate({second: limit}).value(first)
            ClinicalRecord.model_validate({first: converted})
            expected = ClinicalRecord.model_json_schema()["properties"][first]["anyOf"][0][bound]
            assert converted == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize(("mmol_mol", "percent"), [(20, 3.98), (42, 5.99), (48, 6.54), (75, 9.01)])
def test_hba1c_in_mmol_mol_is_converted_to_per_cent(mmol_mol: float, percent: float) -> None:
    """By the master equation, 48 mmol/mol is the 6.5 % of the definition of diabetes."""
    converted = ClinicalRecord.model_validate({"hba1c_mmol_mol": mmol_mol}).value("hba1c")
    assert converted == pytest.approx(percent, abs=0.005)


@pytest.mark.parametrize("field", ["nihss", "prestroke_mrs", "aspects"])
def test_whole_float_is_an_integer(field: str) -> None:
    assert getattr(ClinicalRecord.model_validate({field: 4.0}), field) == 4
    for wrong in (4.5, True, "4", float("inf")):
        with pytest.raises(ValidationError):
            ClinicalRecord.model_validate({field: wrong})
