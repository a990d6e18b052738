"""Choice of the clinical variables of a training: ``--variables age,sex,perfusion.mismatch_ratio``.

Design notes:
- Any field of the clinical record can be chosen. Kind, unit and categories follow from the record's schema.
- The side of the occlusion cannot be chosen, because training mirrors the images.
- The own variables of the cohort (``own_variables``) can be chosen too; without a choice all of them are used.
- The names are kept in the order of the record, so that the order of the option changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from functools import cache

from pydantic import BaseModel

from app.inference import defaults
from app.inference.clinical_encoder import PERFUSION
from app.registry.manifest import ClinicalVariable, VariableKind
from app.sdk.clinical import SECOND_UNITS, ClinicalRecord, ImagingSigns, PerfusionScalars
from app.training.columns import column_types, normalised
from app.training.dataset import Dataset
from app.training.errors import CohortFault

NOT_A_VARIABLE = (*SECOND_UNITS, "perfusion.software", "occlusion_side")
SKEWED = ("crp", "leukocytes", "creatinine", "onset_to_imaging", "perfusion.mismatch_ratio")
"""Numbers besides volumes that enter the network as log(1 + x)."""
SECTIONS: Mapping[str, type[BaseModel]] = {
    "": ClinicalRecord,
    "perfusion": PerfusionScalars,
    "imaging_signs": ImagingSigns,
}


@cache
def available() -> Mapping[str, ClinicalVariable]:
    """Every variable that can be chosen, by name: the default ones first."""
    known = {variable.name: variable for variable in defaults.VARIABLES}
    others = {name: _variable(name, kind) for name, kind in column_types().items() if name not in known}
    return known | {name: variable for name, variable in others.items() if name not in NOT_A_VARIABLE}


def available_with(own: Sequence[ClinicalVariable]) -> Mapping[str, ClinicalVariable]:
    """Every variable that can be chosen for a cohort with these own variables, by name."""
    return {**available(), **{variable.name: variable for variable in own}}


def parse(text: str, own: Sequence[ClinicalVariable] = ()) -> tuple[str, ...]:
    """Names of the option ``--variables``; () for the default ones and all ``own``. A name may lack its section.

    Raises:
        CohortFault: With every unknown name, and the names that exist.
    """
    if not text:
        return ()
    every = tuple(available_with(own))
    names = {normalised(name): name for name in every}
    names |= {normalised(name.rpartition(".")[2]): name for name in every}
    given = [part.strip() for part in text.split(",") if part.strip()]
    unknown = [part for part in given if normalised(part) not in names]
    if any(part.endswith(".toml") for part in unknown):
        raise CohortFault(
            ["--variables takes names of variables; give the file that declares own ones to --own-variables"]
        )
    if unknown or not given:
        fault = f"--variables: unknown: {', '.join(unknown)}" if unknown else "--variables names no variable"
        raise CohortFault([f"{fault}; expected some of {', '.join(every)}"])
    chosen = {names[normalised(part)] for part in given}
    return () if chosen == {v.name for v in (*defaults.VARIABLES, *own)} else tuple(n for n in every if n in chosen)


def select(names: Sequence[str], own: Sequence[ClinicalVariable] = ()) -> list[ClinicalVariable]:
    """Variables of these names; without names the default ones and all ``own``.

    Raises:
        CohortFault: If a name is unknown.
    """
    known = available_with(own)
    return [known[name] for name in parse(",".join(names), own)] or [*defaults.VARIABLES, *own]


def check_values(names: Sequence[str], data: Dataset) -> None:
    """Check that the studies have a value of each chosen variable; without a choice, of each own variable.

    Raises:
        CohortFault: With every variable without a value.
    """
    chosen = names or [variable.name for variable in data.own]
    empty = [name for name in chosen if not any(_has_value(data, row, name) for row in range(len(data)))]
    if empty:
        raise CohortFault([f"--variables: no study has a value of {', '.join(empty)}; leave it out, or add its column"])


def _has_value(data: Dataset, row: int, name: str) -> bool:
    computed = data.perfusion[row] if name.startswith(PERFUSION) else None
    return (
        data.records[row].value(name) is not None or getattr(computed, name.removeprefix(PERFUSION), None) is not None
    )


def _variable(name: str, kind: type) -> ClinicalVariable:
    section, _, field = name.rpartition(".")
    group = "perfusion" if section == "perfusion" else None
    if kind is bool:
        return ClinicalVariable(name=name, kind=VariableKind.FLAG, group=group)
    if issubclass(kind, StrEnum):
        levels = tuple(kind)
        means = (0.0,) * len(levels)
        return ClinicalVariable(
            name=name, kind=VariableKind.CATEGORY, categories=tuple(map(str, levels)), category_means=means
        )
    extra = SECTIONS[section].model_fields[field].json_schema_extra
    unit = str(extra.get("unit", "1")) if isinstance(extra, dict) else "1"
    log = name.endswith("_ml") or name in SKEWED
    return ClinicalVariable(name=name, kind=VariableKind.NUMBER, unit=unit, log=log, group=group)
