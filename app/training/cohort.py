"""A cohort as its user keeps it: one table, one row a study, with paths, clinical facts and how it ended.

Columns: ``patient``; ``site``, ``scanner``, ``date`` (ISO), ``fold`` (test, 1, 2 ...) if wanted; volumes by upload name
(``ncct``, ``cta`` ...; paths relative to the table), or ``prepared`` (a row of ``images.npy``, see prepared.py);
clinical facts by the record's own names (``age``, ``perfusion.core_ml``); and how it ended: rLVO's components
``final_stenosis_percent``, ``etici``, ``rescue_treatment``, or ``mtici`` alone, whose target is another one.

Notable choices:
- Every fault of every row is collected and told at once, with its row as a spreadsheet numbers it; no row is dropped.
- A column that is known only after the puncture is refused by name; so is one that nobody knows.
- rLVO: any component positive is 1, else any missing is unknown, else 0. Unknown outcomes are faults: they can only be
  left out by asking for it. ``mtici`` 0-2a without the other components is ``unsuccessful_reperfusion``, never rLVO.
- A cell is parsed by what the clinical record expects there; the record itself then judges ranges.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any, get_args

import pandas as pd
from pydantic import BaseModel, ValidationError

from app.inference.clinical_encoder import POST_PROCEDURE_FIELDS
from app.sdk.clinical import ClinicalRecord
from app.sdk.types import Input
from app.training import isles24
from app.training.errors import CohortFault

OUTCOME = ("final_stenosis_percent", "etici", "rescue_treatment")
ETICI = ("0", "1", "2a", "2b", "2b50", "2b67", "2c", "3")
UNSUCCESSFUL = ("0", "1", "2a")
REPERFUSION = "mtici"
ORGANISING = ("patient", "site", "scanner", "date", "fold", "prepared")
TRUE, FALSE = ("1", "1.0", "true", "yes"), ("0", "0.0", "false", "no")
HEADER_ROWS = 1


@dataclass(frozen=True)
class CohortRow:
    """One row: ``row`` as a spreadsheet numbers it; ``outcome`` 1, 0, or None where it is unknown."""

    row: int
    patient: str
    site: str
    date: str
    fold: str
    volumes: Mapping[Input, Path]
    prepared: int | None
    record: ClinicalRecord
    outcome: int | None
    scanner: str = ""


@dataclass(frozen=True)
class Cohort:
    """All rows of one table. ``folder`` is where its relative paths start; ``target`` names the outcome."""

    folder: Path
    studies: tuple[CohortRow, ...]
    target: str = "rLVO"


def read(path: Path, *, drop_unknown: bool = False) -> Cohort:
    """Read a manifest (.csv or .parquet), the ``cohort.csv`` of a folder, or a folder laid out as ISLES'24.

    :param drop_unknown: leave out the rows whose outcome is unknown, instead of refusing them
    :raises CohortFault: with every fault of the table
    """
    folder, frame = _table(path)
    _check_columns(frame)
    faults: list[str] = []
    studies = []
    for position, cells in enumerate(frame.to_dict("records")):
        row = position + HEADER_ROWS + 1
        study = _study(row, {str(name): _text(value) for name, value in cells.items()}, folder, faults)
        if study is None or (study.outcome is None and drop_unknown):
            continue
        if study.outcome is None:
            faults.append(f"row {row}: the outcome is unknown (a component is missing and none is positive)")
        studies.append(study)
    _check_folds(studies, faults)
    if not faults and len({study.patient for study in studies}) < 20:
        faults.append(f"{len(studies)} rows are too few: at least 20 patients are needed")
    if faults:
        raise CohortFault(faults)
    target = "unsuccessful_reperfusion" if REPERFUSION in frame.columns else "rLVO"
    return Cohort(folder, tuple(studies), target)


def to_predict(path: Path) -> list[CohortRow]:
    """The studies of a table that are to be predicted: as `read`, whatever their outcomes, and however few.

    :raises CohortFault: with every fault of the table
    """
    folder, frame = _table(path)
    _check_columns(frame, outcome=False)
    faults: list[str] = []
    studies = []
    for row, cells in enumerate(frame.to_dict("records"), HEADER_ROWS + 1):
        study = _study(row, {str(name): _text(value) for name, value in cells.items()}, folder, faults)
        if study is not None:
            studies.append(study)
    faults += [f"row {study.row}: there is no volume to send" for study in studies if not study.volumes]
    seen = Counter(study.patient for study in studies)
    faults += [f"row {study.row}: its patient stands twice" for study in studies if seen[study.patient] > 1]
    if faults:
        raise CohortFault(faults)
    return studies


def _table(path: Path) -> tuple[Path, pd.DataFrame]:
    """The table at ``path``, and the folder where its relative paths start."""
    if path.is_dir() and not (path / "cohort.csv").exists() and isles24.recognised(path):
        return path, isles24.load(path).frame
    path = path / "cohort.csv" if path.is_dir() else path
    return path.parent, _load(path)


def _load(path: Path) -> pd.DataFrame:
    if not path.exists():
        raise CohortFault([f"there is no table {path.name}; give a .csv, a .parquet, or a folder with cohort.csv"])
    try:
        if path.suffix == ".parquet":
            return pd.read_parquet(path)
        return pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except (ValueError, OSError) as error:
        raise CohortFault([f"the table {path.name} cannot be read as {path.suffix or 'a table'}"]) from error


def _text(value: Any) -> str:
    return "" if pd.isna(value) else str(value).strip()


def _check_columns(frame: pd.DataFrame, *, outcome: bool = True) -> None:
    known = {*ORGANISING, *OUTCOME, REPERFUSION, *(field.value for field in Input), *_kinds()}
    faults = []
    for column in map(str, frame.columns):
        if column in known:
            continue
        if column.lower().rpartition(".")[2] in POST_PROCEDURE_FIELDS:
            faults.append(f"column {column}: it is known only after the puncture and can never be an input; remove it")
        else:
            faults.append(f"column {column}: unknown; remove it or name it as the clinical schema does")
    faults += [f"column {name} is missing" for name in ("patient",) if name not in frame.columns]
    components = [name for name in OUTCOME if name in frame.columns]
    if outcome and not components and REPERFUSION not in frame.columns:
        faults.append(f"no outcome: at least one of the columns {', '.join(OUTCOME)} is needed, or {REPERFUSION} alone")
    if components and REPERFUSION in frame.columns:
        faults.append(f"column {REPERFUSION}: beside {', '.join(components)} it would be another target; call it etici")
    if faults:
        raise CohortFault(faults)


def _kinds() -> dict[str, type]:
    """Every clinical column and the Python type that its cells hold; sections by dotted names."""

    def leaves(model: type[BaseModel], prefix: str) -> dict[str, type]:
        found: dict[str, type] = {}
        for name, info in model.model_fields.items():
            kind = next(a for a in (*get_args(info.annotation), info.annotation) if a is not type(None))
            kind = next((a for a in get_args(kind) if isinstance(a, type)), kind)
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                found |= leaves(kind, f"{name}.")
            else:
                found[prefix + name] = kind
        return found

    return leaves(ClinicalRecord, "")


def _study(row: int, cells: dict[str, str], folder: Path, faults: list[str]) -> CohortRow | None:
    before = len(faults)
    patient = cells.get("patient", "")
    if not patient:
        faults.append(f"row {row}: the patient is missing")
    volumes = {}
    for field in Input:
        if name := cells.get(field.value, ""):
            volumes[field] = folder / name
            if not volumes[field].is_file():
                faults.append(f"row {row}, column {field.value}: there is no such file")
    prepared = cells.get("prepared", "")
    if not volumes and not prepared.isdigit():
        faults.append(f"row {row}: there is no volume")
    record = _record(row, cells, faults)
    outcome = _outcome(row, cells, faults)
    day = cells.get("date", "")
    if day:
        try:
            date.fromisoformat(day[:10])
        except ValueError:
            faults.append(f"row {row}, column date: not an ISO date (YYYY-MM-DD)")
    if len(faults) > before or record is None:
        return None
    return CohortRow(
        row=row,
        patient=patient,
        site=cells.get("site", "") or "one",
        date=day,
        fold=cells.get("fold", ""),
        volumes=volumes,
        prepared=int(prepared) if prepared else None,
        record=record,
        outcome=outcome,
        scanner=cells.get("scanner", ""),
    )


def _record(row: int, cells: dict[str, str], faults: list[str]) -> ClinicalRecord | None:
    document: dict[str, Any] = {}
    wrong = False
    for name, kind in _kinds().items():
        cell = cells.get(name, "")
        if not cell:
            continue
        try:
            value = _cell(cell, kind)
        except ValueError as error:
            faults.append(f"row {row}, column {name}: {error}")
            wrong = True
            continue
        section, _, field = name.rpartition(".")
        (document.setdefault(section, {}) if section else document)[field] = value
    if wrong:
        return None
    try:
        return ClinicalRecord.model_validate(document)
    except ValidationError as error:
        for each in error.errors():
            where = ".".join(str(part) for part in each["loc"]) or "the record"
            faults.append(f"row {row}, column {where}: {each['msg']}")
        return None


def _cell(cell: str, kind: type) -> object:
    """A cell as the record's type; pandas may have written an integer as 1.0."""
    if kind is bool:
        if cell.lower() in TRUE or cell.lower() in FALSE:
            return cell.lower() in TRUE
        raise ValueError("expected 1 or 0, true or false, yes or no")
    if kind in (int, float):
        try:
            number = float(cell)
        except ValueError:
            raise ValueError("expected a number with a decimal point, or nothing") from None
        if kind is float:
            return number
        if number != int(number):
            raise ValueError("expected a whole number")
        return int(number)
    return cell.lower() if kind is not str else cell


def _outcome(row: int, cells: dict[str, str], faults: list[str]) -> int | None:
    """The rLVO rule on the components that the table has columns for, or the grade of reperfusion alone."""
    positive: list[bool | None] = []
    stenosis = cells.get("final_stenosis_percent")
    if stenosis is not None:
        try:
            percent = float(stenosis) if stenosis else None
            if percent is not None and not 0 <= percent <= 100:
                raise ValueError
            positive.append(None if percent is None else percent > 50)
        except ValueError:
            faults.append(f"row {row}, column final_stenosis_percent: expected 0 to 100, or nothing")
    for name in ("etici", REPERFUSION):
        grade = cells.get(name)
        if grade is None:
            continue
        grade = grade.lower().removesuffix(".0")
        if grade and grade not in ETICI:
            faults.append(f"row {row}, column {name}: expected one of {', '.join(ETICI)}, or nothing")
        positive.append(None if not grade else grade in UNSUCCESSFUL)
    rescue = cells.get("rescue_treatment")
    if rescue is not None:
        try:
            positive.append(None if not rescue else bool(_cell(rescue, bool)))
        except ValueError as error:
            faults.append(f"row {row}, column rescue_treatment: {error}")
    if any(positive):
        return 1
    return None if None in positive or not positive else 0


def _check_folds(studies: list[CohortRow], faults: list[str]) -> None:
    """A patient's rows must lie in one fold, and all rows or none must say theirs."""
    seen: dict[str, CohortRow] = {}
    for study in studies:
        first = seen.setdefault(study.patient, study)
        if first.fold != study.fold:
            faults.append(f"row {study.row}, column fold: the patient of row {first.row} is in another fold there")
    if studies and any(study.fold for study in studies) and not all(study.fold for study in studies):
        faults.extend(f"row {study.row}, column fold: missing" for study in studies if not study.fold)
