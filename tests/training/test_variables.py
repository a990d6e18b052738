"""Choice of the clinical variables: names of the record are accepted, others are refused with the list."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from app.inference import clinical_encoder, defaults
from app.registry.manifest import VariableKind
from app.sdk.clinical import ClinicalRecord
from app.sdk.types import PerfusionSummary
from app.training import variables
from app.training.errors import CohortFault
from tests.training.tiny import tiny_dataset

NAMES = tuple(variable.name for variable in defaults.VARIABLES)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("", ()),
        ("sex,age", ("age", "sex")),
        (" Age , AGE ", ("age",)),
        ("core_ml,perfusion.mismatch_ratio", ("perfusion.core_ml", "perfusion.mismatch_ratio")),
        ("imaging_signs.clot_length_mm,prestroke mrs", ("prestroke_mrs", "imaging_signs.clot_length_mm")),
        (",".join(NAMES), ()),  # the default variables are no choice
    ],
)
def test_names_are_put_into_the_order_of_the_record(text: str, names: tuple[str, ...]) -> None:
    assert variables.parse(text) == names


@pytest.mark.parametrize(
    "text", ["weight", "age,etici", "mrs_90", "occlusion_side", "perfusion.software", ",", "perfusion"]
)
def test_unknown_name_is_refused_with_the_names_that_exist(text: str) -> None:
    with pytest.raises(CohortFault, match=r"age, sex, .*perfusion.core_ml"):
        variables.parse(text)


def test_only_the_unknown_names_are_named() -> None:
    with pytest.raises(CohortFault, match="--variables: unknown: weight, height; expected"):
        variables.parse("age,weight,height")


def test_every_variable_can_be_encoded() -> None:
    chosen = variables.select(tuple(variables.available()))
    record = ClinicalRecord.model_validate(
        {"age": 70, "statin": True, "perfusion": {"mismatch_ratio": 3.0}, "imaging_signs": {"clot_hu": -10.0}}
    )
    spec = clinical_encoder.fit([record, ClinicalRecord()], chosen)
    encoded = clinical_encoder.encode(record, spec)
    assert encoded.shown["imaging_signs.clot_hu"] == -10.0
    kinds = {variable.name: (variable.kind, variable.unit, variable.log, variable.group) for variable in chosen}
    assert kinds["statin"] == (VariableKind.FLAG, "1", False, None)
    assert kinds["perfusion.tmax10_ml"] == (VariableKind.NUMBER, "mL", True, "perfusion")
    assert kinds["ldl"] == (VariableKind.NUMBER, "mg/dL", False, None)


def test_chosen_variable_without_any_value_is_refused() -> None:
    data = tiny_dataset(np.zeros(4), np.zeros(4), np.arange(4) % 2)
    with pytest.raises(CohortFault, match=r"no study has a value of nihss, perfusion.core_ml;"):
        variables.check_values(("age", "nihss", "perfusion.core_ml"), data)
    measured = replace(data, perfusion=[None, PerfusionSummary(core_ml=3.0), None, None])
    variables.check_values(("age", "perfusion.core_ml"), measured)
