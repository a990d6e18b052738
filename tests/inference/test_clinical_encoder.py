"""Encoding of the clinical record as a vector."""

from __future__ import annotations

import math
from enum import StrEnum
from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.inference import defaults
from app.inference.clinical_encoder import encode, fit, validate_names
from app.inference.post_procedure import POST_PROCEDURE_FIELDS
from app.registry.manifest import Clinical, ClinicalVariable, VariableKind
from app.sdk.clinical import ClinicalRecord
from app.sdk.errors import InvalidClinical, MissingInput
from app.sdk.types import PerfusionSummary
from tests.factory import VARIABLES

CLINICAL = Clinical(variables=VARIABLES)
AGE = ClinicalVariable(name="age", kind=VariableKind.NUMBER)
SMOKING = ClinicalVariable(
    name="smoking", kind=VariableKind.CATEGORY, categories=("never", "former", "current"), category_means=(0, 0, 0)
)


def record(**fields: object) -> ClinicalRecord:
    return ClinicalRecord.model_validate(fields)


def column(variable: ClinicalVariable, patient: ClinicalRecord) -> list[float]:
    return [float(value) for value in encode(patient, Clinical(variables=(variable,))).values]


def test_number_is_standardised() -> None:
    variable = AGE.model_copy(update={"mean": 70.0, "std": 10.0})
    assert column(variable, record(age=85.0)) == [1.5]


def test_log_variable_accepts_zero() -> None:
    variable = ClinicalVariable(name="perfusion.core_ml", kind=VariableKind.NUMBER, log=True, mean=1.0, std=2.0)
    assert column(variable, record(perfusion={"core_ml": 0.0})) == [-0.5]
    assert column(variable, record(perfusion={"core_ml": 20.0})) == pytest.approx([(math.log(21) - 1) / 2])


def test_each_category_has_a_column() -> None:
    assert column(SMOKING, record(smoking="former")) == [0, 1, 0]
    assert SMOKING.width == 3
    known = SMOKING.model_copy(update={"category_means": (0.5, 0.3, 0.2)})
    assert column(known, record()) == pytest.approx([0.5, 0.3, 0.2])


def test_missing_values_are_imputed_and_listed() -> None:
    encoded = encode(record(age=74.0, atrial_fibrillation=False), CLINICAL)
    names = [variable.name for variable in VARIABLES]
    assert dict(zip(names, encoded.missing, strict=True)) == {name: float(name in encoded.imputed) for name in names}
    assert encoded.imputed == ("nihss", "smoking", "systolic_bp", "diastolic_bp", "perfusion.core_ml")
    assert encoded.shown["age"] == 74.0
    assert encoded.shown["atrial_fibrillation"] is False
    assert encoded.shown["nihss"] is None
    assert encoded.values[2] == 0  # nihss: the imputed value is the mean


def test_glucose_in_either_unit() -> None:
    variable = ClinicalVariable(name="glucose", kind=VariableKind.NUMBER)
    assert column(variable, record(glucose_mmol_l=10.0)) == pytest.approx([180.16])


def test_large_core_without_a_deficit_is_told() -> None:
    """Before, NIHSS 0 with a core of 239 mL had an answer without a word."""
    large = PerfusionSummary(core_ml=120.0)
    found = encode(record(nihss=0), CLINICAL, large).flags
    assert [(flag.code, flag.severity) for flag in found] == [("nihss-core-contradiction", "warning")]
    assert encode(record(nihss=5), CLINICAL, large).flags == ()
    assert encode(record(nihss=0), CLINICAL, PerfusionSummary(core_ml=20.0)).flags == ()
    assert encode(record(), CLINICAL, large).flags == ()


def test_recorded_perfusion_numbers_have_priority_and_differences_are_flagged() -> None:
    computed = PerfusionSummary(core_ml=60.0, hypoperfusion_intensity_ratio=0.4)
    encoded = encode(record(perfusion={"core_ml": 10.0}), CLINICAL, computed)
    assert encoded.shown["perfusion.core_ml"] == 10.0
    assert [flag.code for flag in encoded.flags] == ["perfusion-differs"]
    assert "core_ml" in encoded.flags[0].detail
    assert "10" not in encoded.flags[0].detail  # a flag never repeats a submitted value
    close = encode(record(perfusion={"core_ml": 55.0}), CLINICAL, computed)
    assert close.flags == ()


def test_computed_perfusion_numbers_fill_missing_ones() -> None:
    encoded = encode(record(), CLINICAL, PerfusionSummary(core_ml=33.0))
    assert encoded.shown["perfusion.core_ml"] == 33.0
    assert "perfusion.core_ml" not in encoded.imputed


def test_missing_required_variable_is_refused_by_name() -> None:
    needed = Clinical(variables=(AGE.model_copy(update={"required": True}), SMOKING))
    with pytest.raises(MissingInput, match="age") as caught:
        encode(record(), needed)
    assert [error.field for error in caught.value.errors] == ["clinical.age"]


def enum_fields() -> dict[str, type[StrEnum]]:
    """Categories of the schema by field."""
    kinds = {name: get_args(get_args(info.annotation)[0]) for name, info in ClinicalRecord.model_fields.items()}
    found = {name: [*parts, *get_args(ClinicalRecord.model_fields[name].annotation)] for name, parts in kinds.items()}
    return {
        name: next(part for part in parts if isinstance(part, type) and issubclass(part, StrEnum))
        for name, parts in found.items()
        if any(isinstance(part, type) and issubclass(part, StrEnum) for part in parts)
    }


@pytest.mark.parametrize("name", sorted(enum_fields()))
def test_no_category_of_the_schema_looks_like_a_known_value_of_zeros(name: str) -> None:
    words = [word.value for word in enum_fields()[name]]
    short = ClinicalVariable(
        name=name, kind=VariableKind.CATEGORY, categories=tuple(words[1:]), category_means=(0.4,) * len(words[1:])
    )
    for word in words:
        encoded = encode(record(**{name: word}), Clinical(variables=(short,)))
        if word in words[1:]:
            assert (encoded.values.sum(), encoded.missing[0], encoded.flags) == (1, 0, ())
        else:
            assert encoded.values == pytest.approx(short.category_means)
            assert (encoded.missing[0], encoded.imputed, encoded.shown[name]) == (1, (name,), None)
            assert [flag.code for flag in encoded.flags] == ["category-unknown"]
            assert word not in encoded.flags[0].detail  # a flag never repeats a submitted value


@pytest.mark.parametrize("name", sorted({v.name for v in defaults.VARIABLES if v.kind is VariableKind.CATEGORY}))
def test_fitted_variables_encode_every_category_of_the_training_records(name: str) -> None:
    records = [record(**{name: word.value}) for word in enum_fields()[name]]
    spec = fit(records, [variable for variable in defaults.VARIABLES if variable.name == name])
    for one in records:
        encoded = encode(one, spec)
        assert (encoded.values.sum(), encoded.missing[0], encoded.flags) == (1, 0, ())


def test_category_without_a_training_patient_keeps_its_column_and_is_flagged() -> None:
    learnt = SMOKING.model_copy(update={"category_means": (0.7, 0.3, 0.0)})
    assert column(learnt, record(smoking="current")) == [0, 0, 1]
    (flag,) = encode(record(smoking="current"), Clinical(variables=(learnt,))).flags
    assert (flag.code, "no training patient" in flag.detail) == ("category-unknown", True)
    assert encode(record(smoking="former"), Clinical(variables=(learnt,))).flags == ()
    assert encode(record(smoking="former"), Clinical(variables=(SMOKING,))).flags == ()  # not fitted


def test_required_variable_of_an_unknown_category_is_refused_with_the_known_ones() -> None:
    needed = SMOKING.model_copy(
        update={"required": True, "categories": ("never", "former"), "category_means": (0.5, 0.5)}
    )
    with pytest.raises(MissingInput, match="smoking") as caught:
        encode(record(smoking="current"), Clinical(variables=(needed,)))
    assert [error.detail for error in caught.value.errors] == ["this model requires it, and knows only never, former"]


@pytest.mark.parametrize("name", ["shoe_size", "perfusion", "perfusion.volume", "imaging_signs", "", "glucose_mmol_l"])
def test_unknown_variables_are_refused(name: str) -> None:
    with pytest.raises(InvalidClinical, match="no such field"):
        validate_names([name])


@pytest.mark.parametrize("name", [*sorted(POST_PROCEDURE_FIELDS)[::9], "imaging_signs.etici", "Door-to-recanalization"])
def test_post_procedure_field_is_refused(name: str) -> None:
    with pytest.raises(InvalidClinical, match="after the puncture"):
        validate_names(["age", name])


def test_record_has_no_post_procedure_field() -> None:
    fields = {*ClinicalRecord.model_fields}
    assert not fields & POST_PROCEDURE_FIELDS


def test_fitted_statistics_standardise_the_columns() -> None:
    records = [
        record(age=60.0, atrial_fibrillation=True, smoking="never"),
        record(age=70.0, atrial_fibrillation=False, smoking="current"),
        record(age=80.0, atrial_fibrillation=False),
        record(smoking="never"),
    ]
    flag = ClinicalVariable(name="atrial_fibrillation", kind=VariableKind.FLAG)
    fitted = fit(records, [AGE, flag, SMOKING])
    age, af, smoking = fitted.variables
    assert (age.imputed, age.mean) == (70.0, 70.0)
    assert af.imputed == pytest.approx(1 / 3)
    assert smoking.category_means == pytest.approx((2 / 3, 0, 1 / 3))
    columns = np.stack([encode(one, fitted).values for one in records])
    assert columns[:, :2].mean(axis=0) == pytest.approx([0, 0], abs=1e-6)
    assert columns[:, :2].std(axis=0) == pytest.approx([1, 1], abs=1e-6)


def test_fit_handles_empty_and_constant_columns() -> None:
    never = fit([record(), record()], [AGE, SMOKING]).variables
    assert (never[0].mean, never[0].std) == (0.0, 1.0)
    assert never[1].category_means == (0, 0, 0)
    same = fit([record(age=70.0)] * 3, [AGE]).variables[0]
    assert same.std == 1.0


@given(age=st.none() | st.floats(18, 110), nihss=st.none() | st.integers(0, 42), core=st.none() | st.floats(0, 1000))
def test_every_record_gives_a_finite_vector(age: float | None, nihss: int | None, core: float | None) -> None:
    encoded = encode(record(age=age, nihss=nihss, perfusion={"core_ml": core}), CLINICAL)
    assert encoded.values.dtype == np.float32
    assert len(encoded.values) == sum(variable.width for variable in VARIABLES)
    assert np.isfinite(encoded.values).all()
