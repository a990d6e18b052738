"""The recorded answers of a version and their outcomes, as a table for a validation.

Design notes:
- Only the first answer about a subject counts, because later ones are about the same outcome.
- An answer whose decision was withheld counts: its number was given, and the subgroups show such answers alone.
- The site of an answer is the caller who sent it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

import numpy as np
from numpy.typing import NDArray
from sqlalchemy.orm import Session

from app.database.followup import FollowedUpPrediction, followed
from app.evaluation.baseline_table import Value
from app.evaluation.patient_groups import patient_groups
from app.evaluation.validation import Groups, PredictionTable
from app.registry.manifest import Manifest, VariableKind
from app.sdk.clinical import ClinicalRecord
from app.sdk.errors import InvalidRequest

PERFUSION = "perfusion."


def table(session: Session, manifest: Manifest, *, since: datetime | None = None, caller: str = "") -> PredictionTable:
    """The answers of a version since a time, of one caller or of all.

    Raises:
        InvalidRequest: Their known outcomes are not of both kinds.
    """
    answers = list(followed(session, manifest.name, manifest.version, since))
    of_caller = [one for one in answers if not caller or one.caller == caller]
    found = _first_of_each_subject(of_caller)
    left_out = (
        ("another site", len(answers) - len(of_caller)),
        ("a later answer about the same subject", len(of_caller) - len(found)),
    )
    flow = [("answers", len(answers))]
    flow += [(f"left out: {reason}", count) for reason, count in left_out if count]
    known = [one.refractory for one in found if one.refractory is not None]
    flow += [("predicted", len(found)), ("outcome unknown", len(found) - len(known)), ("analysed", len(known))]
    if not 0 < sum(known) < len(known):
        detail = f"{len(known)} answers have an outcome, all of one kind or none"
        raise InvalidRequest(f"{detail}; a validation needs patients with and without the outcome")
    return _table(found, manifest, flow)


def _first_of_each_subject(found: Iterable[FollowedUpPrediction]) -> list[FollowedUpPrediction]:
    seen: set[tuple[str, str]] = set()
    kept = []
    for one in found:
        if one.subject is not None:
            if (one.caller, one.subject) in seen:
                continue
            seen.add((one.caller, one.subject))
        kept.append(one)
    return kept


def _table(
    found: Sequence[FollowedUpPrediction], manifest: Manifest, flow: Sequence[tuple[str, int]]
) -> PredictionTable:
    probabilities = np.array([one.probability for one in found])
    conformal = manifest.conformal
    records = [_record(one) for one in found]
    callers = np.array([one.caller for one in found])
    return PredictionTable(
        probabilities=probabilities,
        outcomes=np.array([np.nan if one.refractory is None else float(one.refractory) for one in found]),
        sites=callers if len(set(callers.tolist())) > 1 else None,
        dates=np.array([f"{one.created:%Y-%m-%d}" for one in found]),
        groups=_groups(found, records),
        characteristics=_characteristics(found, records, manifest),
        kept=None
        if conformal is None
        else np.stack(
            [1 - probabilities >= conformal.quantile_negative, probabilities >= conformal.quantile_positive], axis=1
        ),
        flow=tuple(flow),
        records=tuple(records),
    )


@dataclass(frozen=True)
class _Patients:
    """The patients of the answers, as ``subgroups`` reads them."""

    labels: NDArray[np.int64]
    records: Sequence[ClinicalRecord]
    sites: NDArray[np.str_]
    scanners: None = None


def _groups(found: Sequence[FollowedUpPrediction], records: Sequence[ClinicalRecord]) -> dict[str, Groups]:
    known = _Patients(np.zeros(len(found), np.int64), records, np.full(len(found), ""))
    decisions = np.array(["withheld" if one.withheld else "given" for one in found])
    return patient_groups(known) | {"decision": Groups(decisions, tuple(sorted(set(decisions.tolist()))))}


def _record(one: FollowedUpPrediction) -> ClinicalRecord:
    """The record of an answer; an empty one if today's rules refuse it."""
    try:
        return ClinicalRecord.model_validate(dict(one.clinical))
    except ValueError:
        return ClinicalRecord()


def _characteristics(
    found: Sequence[FollowedUpPrediction], records: Sequence[ClinicalRecord], manifest: Manifest
) -> dict[str, list[Value]]:
    """Values of the variables of the version, as they were sent."""
    described: dict[str, list[Value]] = {}
    for variable in manifest.clinical.variables:
        values: list[Value] = []
        for one, record in zip(found, records, strict=True):
            value: Value = record.value(variable.name)
            if value is None and one.perfusion is not None and variable.name.startswith(PERFUSION):
                value = getattr(one.perfusion, variable.name.removeprefix(PERFUSION), None)
            if value is None:
                values.append(None)
            elif variable.kind is VariableKind.FLAG:
                values.append(bool(value))
            else:
                values.append(str(value) if variable.kind is VariableKind.CATEGORY else float(value))
        if any(value is not None for value in values):
            described[variable.name] = values
    return described
