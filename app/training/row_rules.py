"""Finds rows of a table that are valid and probably wrong: unnamed names, repeated studies, contradictory outcomes.

Design notes:
- A study that is there twice counts twice, in training and in the test part. Rows of one patient with one image are one
  study, unless the rows name two sides of the occlusion.
- An artery that stays occluded (100 %) has no complete reperfusion (eTICI 2c or 3).
- A column tells the outcome if it separates the outcomes almost perfectly, or if it is filled for one outcome only. No
  variable that is known before the puncture does so. Few patients prove nothing, so they are not judged.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from app.evaluation.metrics import auc
from app.registry.manifest import ClinicalVariable
from app.sdk.etici import Etici, parse_etici
from app.sdk.types import Input
from app.training.cells import parse_number
from app.training.columns import NAMES, types_with
from app.training.repeated_files import repeated_files

if TYPE_CHECKING:
    from app.training.cohort import CohortRow

Cells = Mapping[int, Mapping[str, str]]
"""Text by column of each row, by its row number."""
RowFinding = tuple[str, tuple[int, ...], str]
"""Column, rows and message."""

NOT_A_NAME = re.compile(
    r"[\W_]*|n[\W_]*a[\W_]*|[nsk][\W_]+[ad][\W_]*|nan|none|null|missing|unknown|"
    r"not[\W_]*(?:known|recorded|available|applicable)|"
    r"unbekannt|desconocid[oa]|desconegut|inconnue?|sconosciut[oa]|sin datos",
    re.IGNORECASE,
)
"""Words for a missing name, in English, German, Spanish, Catalan, French and Italian."""
COMPLETE = frozenset({Etici.NEAR_COMPLETE, Etici.COMPLETE})
OCCLUDED = 100.0
"""Final stenosis of an occluded artery, in percent."""
ENOUGH = 10
"""Fewest patients of each outcome from which the values of a column are judged."""
ENOUGH_MISSING = 20
"""Fewest patients of each outcome from which the gaps of a column are judged."""
SEPARATED = 0.97
"""AUC that no variable reaches that is known before the puncture."""
FILLED = 0.5
"""Share of the patients of one outcome with a value, above which gaps of all others are suspicious."""


def unnamed(studies: Sequence[CohortRow], cells: Cells) -> Iterator[RowFinding]:
    """Patients, sites, scanners or folds whose name is a word for a missing one; they would count as one."""
    for column in NAMES:
        words = ((study.row, cells[study.row].get(column, "")) for study in studies)
        if rows := tuple(row for row, word in words if word and NOT_A_NAME.fullmatch(word)):
            message = f"the {column} is a word for a missing one, and all such rows count as one {column}"
            yield column, rows, f"{message}; give the name, or declare the word as missing in columns.toml"


def repeated_studies(studies: Sequence[CohortRow]) -> Iterator[RowFinding]:
    """Rows of one patient with the same image: one study that counts several times."""
    groups: dict[str, list[CohortRow]] = defaultdict(list)
    for study in studies:
        groups[study.patient].append(study)
    found: set[int] = set()
    for group in groups.values():
        for rows in _same_images(group) if len(group) > 1 else ():
            sides = [study.record.occlusion_side for study in group if study.row in rows]
            if None in sides or len(set(sides)) < len(sides):
                found |= rows
    if found:
        message = "one study is in several rows of its patient and would count several times; keep one of the rows"
        yield "patient", tuple(sorted(found)), message


def _same_images(group: Sequence[CohortRow]) -> Iterator[set[int]]:
    """Sets of rows of one patient that have an image in common."""
    for _, rows in repeated_files([(study.row, str(study.row), study.volumes) for study in group]):
        yield set(rows)
    keys: dict[tuple[str, object], set[int]] = defaultdict(set)
    for study in group:
        uid, accession = study.dicom or ("", "")
        for name, key in (("prepared", study.prepared), ("uid", uid), ("accession", accession if not uid else "")):
            if key not in (None, ""):
                keys[name, key].add(study.row)
    yield from (rows for rows in keys.values() if len(rows) > 1)


def contradictions(studies: Sequence[CohortRow], cells: Cells, mark: str) -> Iterator[RowFinding]:
    """Outcomes with complete reperfusion of an occluded artery; ``mark``: decimal mark of the stenosis."""
    column = "final_stenosis_percent"
    rows = []
    for study in studies:
        stenosis, grade = (cells[study.row].get(name, "") for name in (column, "etici"))
        if stenosis and grade and parse_number(stenosis, mark) >= OCCLUDED and parse_etici(grade) in COMPLETE:
            rows.append(study.row)
    if rows:
        message = "the artery is occluded (100 %) beside an eTICI of 2c or 3"
        yield column, tuple(rows), f"{message}; write the stenosis at the end of the procedure, not that before it"


def outcome_columns(studies: Sequence[CohortRow], own: Sequence[ClinicalVariable]) -> Iterator[RowFinding]:
    """Columns whose values, or whose gaps, tell the outcome."""
    known = [study for study in studies if study.outcome is not None]
    labels = np.array([study.outcome for study in known], np.int64)
    if min(labels.sum(), len(labels) - labels.sum()) < ENOUGH:
        return
    advice = "if it is known only after the puncture, remove it"
    columns = {column: [study.record.value(column) for study in known] for column in types_with(own)}
    columns |= {field.value: [field in study.volumes or None for study in known] for field in Input}
    for column, values in columns.items():
        filled = np.array([value is not None for value in values])
        if _separates([value for value in values if value is not None], labels[filled]):
            message = "it separates the patients with and without the outcome almost completely"
            yield column, tuple(s.row for s, has in zip(known, filled, strict=True) if has), f"{message}; {advice}"
        elif _filled_for_one(filled, labels):
            message = "it is filled only for patients of one outcome, so its gaps tell the outcome"
            yield column, tuple(s.row for s, has in zip(known, filled, strict=True) if has), f"{message}; {advice}"


def _separates(values: Sequence[object], labels: NDArray[np.int64]) -> bool:
    """Whether numbers, a flag or a category (n,) separate the outcomes (n,)."""
    if min(labels.sum(), len(labels) - labels.sum()) < ENOUGH:
        return False
    if any(isinstance(value, str) for value in values):
        coded = [np.array([value == word for value in values], np.float64) for word in sorted(map(str, set(values)))]
    else:
        coded = [np.array(values, np.float64)]
    return any(abs(auc(labels, one) - 0.5) >= SEPARATED - 0.5 for one in coded)


def _filled_for_one(filled: NDArray[np.bool_], labels: NDArray[np.int64]) -> bool:
    """Whether only patients of one outcome have a value, and many of them."""
    if min(labels.sum(), len(labels) - labels.sum()) < ENOUGH_MISSING:
        return False
    shares = sorted(float(filled[labels == outcome].mean()) for outcome in (0, 1))
    return shares[0] == 0 and shares[1] >= FILLED
