"""Columns of a cohort that a version does not predict from, as one line of the report.

A column is named if no row of the cohort has an effect on the prediction by it. Categories that the version does not
know are counted, because it takes them as missing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from app.inference import clinical_encoder, defaults
from app.inference.unread_inputs import ReadInputs, given_fields
from app.network.architecture import Fusion
from app.registry.manifest import Clinical, Manifest
from app.training import variables
from app.training.cohort import Cohort
from app.training.experiment import LOGISTIC, NETWORKS, PUBLISHED
from app.training.options import PublishedModel


def of_version(cohort: Cohort, manifest: Manifest) -> str:
    """Lines on the columns that a version does not read, and on categories that it does not know; "" without any."""
    name = f"{manifest.name} {manifest.version}"
    parts = [_line(name, cohort, ReadInputs.of(manifest)), *_unknown(name, cohort, manifest.clinical)]
    return "\n\n".join(filter(None, parts))


def of_training(cohort: Cohort, model: PublishedModel, chosen: Sequence[str] = ()) -> str:
    """Line on the columns that the model to be published will not read; "" if there are none.

    ``chosen``: names of the clinical variables (``variables.py``); (): the default ones and the own ones.
    """
    logistic = PUBLISHED[model] == LOGISTIC
    fusion, channels = (Fusion.NONE, ()) if logistic else NETWORKS[PUBLISHED[model]]
    names = frozenset(variable.name for variable in variables.select(chosen, cohort.own))
    read = ReadInputs(
        channels=frozenset(channel.name for channel in defaults.CHANNELS if channel.name in channels),
        variables=names if logistic or fusion is not Fusion.NONE else frozenset(),
    )
    return _line(f"The model {model.value}", cohort, read)


def _line(name: str, cohort: Cohort, read: ReadInputs) -> str:
    filled: Counter[str] = Counter()
    unread: Counter[str] = Counter()
    for study in cohort.studies:
        filled.update({*study.volumes, *given_fields(study.record)})
        unread.update(read.unread(study.volumes, study.record))
    names = [column for column, rows in unread.items() if rows == filled[column]]
    return f"{name} does not predict from the columns {', '.join(names)}." if names else ""


def _unknown(name: str, cohort: Cohort, clinical: Clinical) -> list[str]:
    """One line for each variable with categories that the version does not know."""
    rows: Counter[str] = Counter()
    for study in cohort.studies:
        for flag in clinical_encoder.category_flags(study.record, clinical):
            rows[flag.detail] += 1
    return [f"{name}, {count} rows: {detail}." for detail, count in rows.items()]
