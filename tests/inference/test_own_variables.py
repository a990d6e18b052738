"""Own variables of a site: names that can never be an input, values, the manifest, and the answer of a version."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from pydantic import ValidationError

from app.core.explanation_text import contributions
from app.inference import clinical_encoder, explain, own_variables, unread_inputs
from app.inference.ensemble_predictor import NetworkFolds
from app.inference.post_procedure import POST_PROCEDURE_FIELDS, is_near
from app.network.ensemble import Ensemble
from app.registry.manifest import ClinicalVariable, Manifest, VariableKind
from app.registry.own_variable import OwnVariable
from app.sdk.clinical import MOST_OWN, ClinicalRecord
from app.sdk.errors import InvalidClinical, ModelNotReady
from app.sdk.types import Attribution
from tests.factory import VARIABLES, random_network, tiny_case, tiny_manifest

DDIMER = ClinicalVariable(
    name="own.ddimer",
    kind=VariableKind.NUMBER,
    unit="ng/mL",
    log=True,
    imputed=400,
    mean=6,
    std=1,
    own=OwnVariable(label="D-dimer", low=0, high=100_000),
)
PACEMAKER = ClinicalVariable(name="own.pacemaker", kind=VariableKind.FLAG, own=OwnVariable(label="Pacemaker"))
GRADE = ClinicalVariable(
    name="own.grade",
    kind=VariableKind.CATEGORY,
    categories=("none", "mild"),
    category_means=(0.5, 0.5),
    own=OwnVariable(label="Leukoaraiosis"),
)
OWN = (DDIMER, PACEMAKER, GRADE)


def manifest() -> Manifest:
    """A tiny manifest with the standard variables of the tests and the own ones."""
    return tiny_manifest(variables=(*VARIABLES, *OWN))


def record(**own: object) -> ClinicalRecord:
    return ClinicalRecord.model_validate({"age": 70, "own": own})


@pytest.mark.parametrize(
    "name",
    [
        *sorted(POST_PROCEDURE_FIELDS - {"dwi"}),
        "dwi",
        *(
            "number_of_passes",
            "tici_final",
            "final_mtici",
            "mtici_2b",
            "ticiscore",
            "n_pass",
            "passcount",
            "Final TICI",
        ),
        *("devices_used", "time_to_groin", "groin_to_reperfusion", "onset_to_recan", "stent_type", "rescue_stent"),
        *("nihss_at_24h", "mrs_day_90", "mrs_3m", "nihss_discharge_total", "follow_up_volume", "hemorrhage_type"),
        *(
            "outcome",
            "post_procedure_bp",
            "bp_after_intervention",
            "prior_tici",
            "previous_passes",
            "stenosis_residual",
        ),
        *(
            "last_mrs_90",
            "prior_mrs_3m",
            "past_nihss_24h",
            "nihss_last_24h",
            "mrs3m",
            "mrs_at_three_months",
            "nihss_24",
        ),
        *("last_recanalization_time", "npasses", "retrieval_attempts", "abciximab", "balloon_used", "dsa_stenosis"),
        *("procedure_duration", "fluoroscopy_time", "clot_histology", "craniectomy", "icu_days"),
        *("numero_de_pases", "trombectomia", "puncion", "rescate", "exitus", "mrs_al_alta", "fallecido"),
        *("rekanalisation", "thrombektomie", "leistenpunktion", "passagen", "reststenose", "nihss_entlassung"),
        *("nb_passages", "deces", "ponction", "nihss_sortie", "passaggi", "decesso", "obito", "puncao"),
    ],
)
def test_name_of_what_is_known_after_the_puncture_is_refused(name: str) -> None:
    assert is_near(name)
    fault = own_variables.name_fault(name.lower().replace(" ", "_"))
    assert "known only after the puncture" in fault


@pytest.mark.parametrize(
    "name",
    [
        *(
            "ddimer",
            "troponin",
            "fibrinogen",
            "lipoprotein_a",
            "weight",
            "vitamin_d25",
            "cancer",
            "pacemaker",
            "bypass",
        ),
        *("carotid_stenosis", "collateral_score", "dwi_aspects", "passive_smoking", "participating_centre"),
        *(
            "prior_angioplasty",
            "history_of_haemorrhage",
            "prior_stent",
            "bp_last_24h",
            "menopause",
            "anticipated_delay",
        ),
        *("nihss_1a", "prior_thrombectomy", "prior_ballooning", "history_of_craniectomy", "prestroke_mrs_source"),
        *("last_seen_well_known", "glucosa_alta", "compass_score", "attention_deficit", "methodist_hospital"),
    ],
)
def test_name_of_what_is_known_before_the_puncture_is_accepted(name: str) -> None:
    assert own_variables.name_fault(name) == ""


@pytest.mark.parametrize("label", ["Recanalización", "Punción", "\uff4d\uff34\uff29\uff23\uff29", "Décès", "Manöver"])
def test_accents_and_wide_letters_do_not_hide_a_name(label: str) -> None:
    assert is_near(label)
    assert not is_near("Größe")
    assert not is_near("Leukoaraiosis à l'entrée")


@pytest.mark.parametrize("name", ["age", "core_ml", "glucose_mmol_l", "patient", "ncct", "own", "clot_hu", "outcome_x"])
def test_name_of_a_field_or_a_column_is_refused(name: str) -> None:
    assert own_variables.name_fault(name)


@pytest.mark.parametrize("name", ["", "Ddimer", "d-dimer", "1st", "a__b", "_a", "a" * 41, "Jane Doe", "ñ"])
def test_name_in_another_form_is_refused(name: str) -> None:
    assert "small letters" in own_variables.name_fault(name)


def test_version_whose_manifest_names_a_near_variant_is_not_served() -> None:
    bad = DDIMER.model_copy(update={"name": "own.tici_final"})
    with pytest.raises(ModelNotReady, match=r"own\.tici_final: .*after the puncture"):
        clinical_encoder.check_variables(manifest().clinical.model_copy(update={"variables": (bad,)}))
    clinical_encoder.check_variables(manifest().clinical)


def test_values_are_encoded_and_a_missing_one_is_imputed() -> None:
    clinical = manifest().clinical
    encoded = clinical_encoder.encode(record(ddimer=np.expm1(8), pacemaker=True), clinical)
    widths = [variable.width for variable in clinical.variables]
    start = sum(widths[:-3])
    assert encoded.values[start:] == pytest.approx([2.0, 1.0, 0.5, 0.5])  # (log(1 + x) - 6) / 1, a flag, the shares
    assert encoded.missing[-3:].tolist() == [0, 0, 1]
    assert encoded.imputed[-1] == "own.grade"
    assert encoded.shown["own.pacemaker"] is True


def test_statistics_are_learnt_from_the_records() -> None:
    records = [record(ddimer=100.0 * n, pacemaker=n % 2 == 0, grade="mild") for n in range(1, 6)]
    fitted = clinical_encoder.fit(records, OWN)
    assert fitted.variables[0].imputed == 300
    assert fitted.variables[0].own == DDIMER.own
    assert fitted.variables[1].imputed == pytest.approx(0.4)
    assert fitted.variables[2].category_means == (0, 1)


@pytest.mark.parametrize(
    ("own", "rule"),
    [
        ({"ddimer": 100_001}, "must be a number within 0 to 100000 ng/mL"),
        ({"ddimer": -1}, "must be a number within 0 to 100000 ng/mL"),
        ({"ddimer": True}, "must be a number within"),
        ({"ddimer": "high"}, "must be a number within"),
        ({"pacemaker": 1}, "must be true or false"),
        ({"grade": "huge"}, "must be one of none, mild"),
        ({"grade": False}, "must be one of none, mild"),
    ],
)
def test_value_that_the_declaration_refuses_is_named(own: dict[str, object], rule: str) -> None:
    clinical = manifest().clinical
    with pytest.raises(InvalidClinical) as refusal:
        own_variables.check_record(record(**own), clinical)
    (error,) = refusal.value.errors
    assert error.field == f"own.{next(iter(own))}"
    assert error.detail.startswith(rule)
    assert "ddimer, pacemaker, grade" in refusal.value.detail
    with pytest.raises(InvalidClinical):  # a worker encodes a record that another version was checked for
        clinical_encoder.encode(record(**own), clinical)


def test_name_that_only_another_version_knows_is_not_used_and_a_name_that_none_knows_is_refused() -> None:
    without = tiny_manifest()
    sent = record(ddimer=5.0)
    own_variables.check_record(sent, without.clinical, [manifest().clinical])
    (flag,) = unread_inputs.flags(without, [], sent)
    assert "own.ddimer: given, but this version does not predict from it" in flag.detail
    assert unread_inputs.flags(manifest(), [], sent) == []
    with pytest.raises(InvalidClinical, match="knows the own variables: none") as refusal:
        own_variables.check_record(record(dimer=5.0), without.clinical, [manifest().clinical])
    assert refusal.value.errors[0].field == "own.dimer"


def test_explanation_names_the_variable_by_its_label() -> None:
    described = manifest()
    folds = NetworkFolds(
        Ensemble([random_network(described.architecture, seed) for seed in (1, 2)]), (2, *described.grid.shape)
    )
    case = replace(tiny_case(described), shown={"age": 70.0, "own.ddimer": 812.0, "own.pacemaker": True})
    attribution = explain.explain(folds, described, case, maps=False).attribution
    labels = {item.variable: item.label for item in attribution.clinical}
    assert labels["own.ddimer"] == "D-dimer"
    assert labels["age"] is None
    texts = {item.name: item.value for item in contributions(attribution)}
    assert texts["D-dimer"] == "812 ng/mL"
    assert texts["Pacemaker"] == "yes"  # only a number has a unit
    units = {item.variable: item.unit for item in attribution.clinical}
    assert (units["own.ddimer"], units["own.pacemaker"], units["age"]) == ("ng/mL", None, None)
    assert texts["Leukoaraiosis"] == "not given"
    assert Attribution.model_validate_json(attribution.model_dump_json()) == attribution


def test_manifest_with_own_variables_needs_schema_3_and_others_are_written_as_before() -> None:
    with pytest.raises(ValidationError, match="own variables need schema_version 3"):
        Manifest.model_validate(manifest().model_dump() | {"schema_version": 2})
    described = manifest()
    assert Manifest.model_validate_json(described.model_dump_json()) == described
    plain = tiny_manifest().model_dump()
    assert plain["schema_version"] == 2
    assert all("own" not in variable for variable in plain["clinical"]["variables"])


@pytest.mark.parametrize(
    "change",
    [
        {"own": None},
        {"name": "ddimer"},
        {"own": {"label": "D-dimer", "low": 5, "high": 5}},
        {"own": {"label": "D-dimer", "low": -1, "high": 5}},
        {"own": {"label": "", "low": 0, "high": 5}},
        {"own": {"label": "a\nb", "low": 0, "high": 5}},
    ],
    ids=str,
)
def test_declaration_that_fits_no_variable_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        ClinicalVariable.model_validate(DDIMER.model_dump() | change)


@pytest.mark.parametrize(
    "own",
    [
        {"Bad": 1},
        {"a": "Free text of a patient"},
        {"a": [1]},
        {"a": 1e13},
        {"a": float("nan")},
        {f"a{n}": 1 for n in range(MOST_OWN + 1)},
        5,
    ],
    ids=str,
)
def test_record_takes_no_text_and_no_odd_name(own: object) -> None:
    with pytest.raises(ValidationError):
        ClinicalRecord.model_validate({"own": own})


def test_record_without_a_value_has_no_section() -> None:
    assert ClinicalRecord.model_validate({"own": {"ddimer": None}}) == ClinicalRecord()
    assert ClinicalRecord.model_validate({"own": {}}) == ClinicalRecord()
    assert record(ddimer=1).value("own.ddimer") == 1
    assert record(ddimer=1).value("own.other") is None
