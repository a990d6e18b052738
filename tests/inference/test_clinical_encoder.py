"""The clinical record as a vector."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.inference.clinical_encoder import POST_PROCEDURE_FIELDS, check, encode, fit, width
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


def test_a_number_is_standardised() -> None:
    variable = AGE.model_copy(update={"mean": 70.0, "std": 10.0})
    assert column(variable, record(age=85.0)) == [1.5]


def test_a_log_takes_zero() -> None:
    variable = ClinicalVariable(name="perfusion.core_ml", kind=VariableKind.NUMBER, log=True, mean=1.0, std=2.0)
    assert column(variable, record(perfusion={"core_ml": 0.0})) == [-0.5]
    assert column(variable, record(perfusion={"core_ml": 20.0})) == pytest.approx([(math.log(21) - 1) / 2])


def test_a_category_has_a_column_each() -> None:
    assert column(SMOKING, record(smoking="former")) == [0, 1, 0]
    assert width(SMOKING) == 3
    known = SMOKING.model_copy(update={"category_means": (0.5, 0.3, 0.2)})
    assert column(known, record()) == pytest.approx([0.5, 0.3, 0.2])


def test_what_is_missing_is_imputed_and_said_to_be() -> None:
    found = encode(record(age=74.0, atrial_fibrillation=False), CLINICAL)
    names = [variable.name for variable in VARIABLES]
    assert dict(zip(names, found.missing, strict=True)) == {name: float(name in found.imputed) for name in names}
    assert found.imputed == ("nihss", "smoking", "systolic_bp", "diastolic_bp", "perfusion.core_ml")
    assert found.shown["age"] == 74.0
    assert found.shown["atrial_fibrillation"] is False
    assert found.shown["nihss"] is None
    assert found.values[2] == 0  # nihss: the imputed value is the mean


def test_either_unit_of_glucose() -> None:
    variable = ClinicalVariable(name="glucose", kind=VariableKind.NUMBER)
    assert column(variable, record(glucose_mmol_l=10.0)) == pytest.approx([180.16])


def test_the_sites_perfusion_numbers_win_and_a_difference_is_flagged() -> None:
    computed = PerfusionSummary(core_ml=60.0, hypoperfusion_intensity_ratio=0.4)
    found = encode(record(perfusion={"core_ml": 10.0}), CLINICAL, computed)
    assert found.shown["perfusion.core_ml"] == 10.0
    assert [flag.code for flag in found.flags] == ["perfusion-differs"]
    assert "core_ml" in found.flags[0].detail
    assert "10" not in found.flags[0].detail  # a flag never repeats what was submitted
    alike = encode(record(perfusion={"core_ml": 55.0}), CLINICAL, computed)
    assert alike.flags == ()


def test_computed_perfusion_numbers_fill_what_the_record_leaves_open() -> None:
    found = encode(record(), CLINICAL, PerfusionSummary(core_ml=33.0))
    assert found.shown["perfusion.core_ml"] == 33.0
    assert "perfusion.core_ml" not in found.imputed


def test_a_required_variable_is_asked_for_by_name() -> None:
    needed = Clinical(variables=(AGE.model_copy(update={"required": True}), SMOKING))
    with pytest.raises(MissingInput, match="age") as caught:
        encode(record(), needed)
    assert [error.field for error in caught.value.errors] == ["clinical.age"]


@pytest.mark.parametrize("name", ["shoe_size", "perfusion", "perfusion.volume", "imaging_signs", "", "glucose_mmol_l"])
def test_unknown_variables_are_refused(name: str) -> None:
    with pytest.raises(InvalidClinical, match="no such field"):
        check([name])


@pytest.mark.parametrize("name", [*sorted(POST_PROCEDURE_FIELDS)[::9], "imaging_signs.etici", "Door-to-recanalization"])
def test_what_is_known_only_afterwards_is_refused(name: str) -> None:
    with pytest.raises(InvalidClinical, match="after the puncture"):
        check(["age", name])


def test_no_field_of_the_record_counts_as_known_only_afterwards() -> None:
    fields = {*ClinicalRecord.model_fields}
    assert not fields & POST_PROCEDURE_FIELDS


def test_fit_learns_what_encode_uses() -> None:
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


def test_fit_survives_columns_that_say_nothing() -> None:
    never = fit([record(), record()], [AGE, SMOKING]).variables
    assert (never[0].mean, never[0].std) == (0.0, 1.0)
    assert never[1].category_means == (0, 0, 0)
    same = fit([record(age=70.0)] * 3, [AGE]).variables[0]
    assert same.std == 1.0


@given(age=st.none() | st.floats(18, 110), nihss=st.none() | st.integers(0, 42), core=st.none() | st.floats(0, 1000))
def test_every_record_gives_a_finite_vector(age: float | None, nihss: int | None, core: float | None) -> None:
    found = encode(record(age=age, nihss=nihss, perfusion={"core_ml": core}), CLINICAL)
    assert found.values.dtype == np.float32
    assert len(found.values) == sum(map(width, VARIABLES))
    assert np.isfinite(found.values).all()
