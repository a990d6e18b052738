"""Reads a cohort: one table with one row per study (paths, clinical fields, outcome).

Columns: ``patient``; optionally ``site``, ``scanner``, ``date`` (ISO) and ``fold`` (test, 1, 2 ...); volumes by upload
name (``ncct``, ``cta`` ...; paths relative to the table), or ``prepared`` (row of ``images.npy``, see ``preprocess``);
clinical fields by the names of the record (``age``, ``perfusion.core_ml``); and the outcome. The components of rLVO are
``final_stenosis_percent``, ``etici`` and ``rescue_treatment``; ``mtici`` alone defines another target.

Design notes:
- All faults of all rows are reported together, with the row number of a spreadsheet; no row is dropped silently.
- A column that is known only after the puncture is refused by name, and so is an unknown column.
- rLVO is 1 if any component is positive, else unknown if any is missing, else 0. An unknown outcome is a fault unless
  ``drop_unknown`` is set. ``mtici`` 0-2a is ``unsuccessful_reperfusion``, never rLVO.
- Each cell is parsed as the type of its field in the clinical record; the record validates ranges.
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
STUDY_COLUMNS = ("patient", "site", "scanner", "date", "fold", "prepared")
TRUE, FALSE = ("1", "1.0", "true", "yes"), ("0", "0.0", "false", "no")
HEADER_ROWS = 1


@dataclass(frozen=True)
class CohortRow:
    """One study: ``row`` is the row number of a spreadsheet; ``outcome`` is 1, 0, or None if unknown."""

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
    """All rows of one table; ``folder`` is the base of relative paths, ``target`` the name of the outcome."""

    folder: Path
    studies: tuple[CohortRow, ...]
    target: str = "rLVO"


def read(path: Path, *, drop_unknown: bool = False) -> Cohort:
    """Read a table (.csv or .parquet), the ``cohort.csv`` of a folder, or a folder with the layout of ISLES'24.

    ``drop_unknown`` leaves out rows with an unknown outcome instead of refusing them.

    Raises:
        CohortFault: All faults of the table.
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
            faults.append(f"row {row}: the outcome is unknown; complete it, or use --drop-unknown to leave the row out")
        studies.append(study)
    _check_folds(studies, faults)
    if not faults and len({study.patient for study in studies}) < 20:
        faults.append(f"{len(studies)} rows are too few: at least 20 patients are needed")
    if faults:
        raise CohortFault(faults)
    target = "unsuccessful_reperfusion" if REPERFUSION in frame.columns else "rLVO"
    return Cohort(folder, tuple(studies), target)


def to_predict(path: Path) -> list[CohortRow]:
    """Read the rows of a table for prediction: like ``read``, but without outcome and without a minimum number of rows.

    Raises:
        CohortFault: All faults of the table.
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
    counts = Counter(study.patient for study in studies)
    faults += [f"row {study.row}: its patient is in several rows" for study in studies if counts[study.patient] > 1]
    if faults:
        raise CohortFault(faults)
    return studies


def _table(path: Path) -> tuple[Path, pd.DataFrame]:
    """Table at ``path``, and the base folder of its relative paths."""
    if path.is_dir() and not (path / "cohort.csv").exists() and isles24.has_layout(path):
        return path, isles24.load(path).frame
    path = path / "cohort.csv" if path.is_dir() else path
    return path.parent, _load(path)


def _load(path: Path) -> pd.DataFrame:
    if not path.exists():
        raise CohortFault([f"there is no table {path.name}; give a .csv, a .parquet, or a folder with a cohort.csv"])
    try:
        if path.suffix == ".parquet":
            return pd.read_parquet(path)
        return pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except (ValueError, OSError) as error:
        raise CohortFault([f"the table {path.name} cannot be read as {path.suffix or 'a table'}"]) from error


def _text(value: Any) -> str:
    return "" if pd.isna(value) else str(value).strip()


def _check_columns(frame: pd.DataFrame, *, outcome: bool = True) -> None:
    known = {*STUDY_COLUMNS, *OUTCOME, REPERFUSION, *(field.value for field in Input), *_column_types()}
    faults = []
    for column in map(str, frame.columns):
        if column in known:
            continue
        if column.lower().rpartition(".")[2] in POST_PROCEDURE_FIELDS:
            faults.append(f"column {column}: it is known only after the puncture and cannot be an input; remove it")
        else:
            faults.append(f"column {column}: unknown; remove it, or use a name of the clinical schema")
    faults += [f"column {name} is missing" for name in ("patient",) if name not in frame.columns]
    components = [name for name in OUTCOME if name in frame.columns]
    if outcome and not components and REPERFUSION not in frame.columns:
        faults.append(f"no outcome: give at least one of the columns {', '.join(OUTCOME)}, or only {REPERFUSION}")
    if components and REPERFUSION in frame.columns:
        faults.append(f"column {REPERFUSION}: with {', '.join(components)} it is a second target; rename it to etici")
    if faults:
        raise CohortFault(faults)


def _column_types() -> dict[str, type]:
    """Python type of every clinical column; sections have dotted names."""

    def leaves(model: type[BaseModel], prefix: str) -> dict[str, type]:
        types: dict[str, type] = {}
        for name, info in model.model_fields.items():
            kind = next(a for a in (*get_args(info.annotation), info.annotation) if a is not type(None))
            kind = next((a for a in get_args(kind) if isinstance(a, type)), kind)
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                types |= leaves(kind, f"{name}.")
            else:
                types[prefix + name] = kind
        return types

    return leaves(ClinicalRecord, "")


def _study(row: int, cells: dict[str, str], folder: Path, faults: list[str]) -> CohortRow | None:
    fault_count = len(faults)
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
        faults.append(f"row {row}: there is no volume; name at least one file")
    record = _record(row, cells, faults)
    outcome = _outcome(row, cells, faults)
    day = cells.get("date", "")
    if day:
        try:
            date.fromisoformat(day[:10])
        except ValueError:
            faults.append(f"row {row}, column date: not an ISO date (YYYY-MM-DD)")
    if len(faults) > fault_count or record is None:
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
    failed = False
    for name, kind in _column_types().items():
        cell = cells.get(name, "")
        if not cell:
            continue
        try:
            value = _cell(cell, kind)
        except ValueError as error:
            faults.append(f"row {row}, column {name}: {error}")
            failed = True
            continue
        section, _, field = name.rpartition(".")
        (document.setdefault(section, {}) if section else document)[field] = value
    if failed:
        return None
    try:
        return ClinicalRecord.model_validate(document)
    except ValidationError as error:
        for detail in error.errors():
            column = ".".join(str(part) for part in detail["loc"]) or "the record"
            faults.append(f"row {row}, column {column}: {detail['msg']}")
        return None


def _cell(cell: str, kind: type) -> object:
    """Cell as the type of its field; pandas may write an integer as 1.0."""
    if kind is bool:
        if cell.lower() in TRUE or cell.lower() in FALSE:
            return cell.lower() in TRUE
        raise ValueError("expected 1 or 0, true or false, yes or no")
    if kind in (int, float):
        try:
            number = float(cell)
        except ValueError:
            raise ValueError("expected a number with a decimal point, or an empty cell") from None
        if kind is float:
            return number
        if number != int(number):
            raise ValueError("expected a whole number")
        return int(number)
    return cell.lower() if kind is not str else cell


def _outcome(row: int, cells: dict[str, str], faults: list[str]) -> int | None:
    """Outcome by the rLVO rule on the components in the table, or by the grade of reperfusion alone."""
    positive: list[bool | None] = []
    stenosis = cells.get("final_stenosis_percent")
    if stenosis is not None:
        try:
            percent = float(stenosis) if stenosis else None
            if percent is not None and not 0 <= percent <= 100:
                raise ValueError
            positive.append(None if percent is None else percent > 50)
        except ValueError:
            faults.append(f"row {row}, column final_stenosis_percent: expected 0 to 100, or an empty cell")
    for name in ("etici", REPERFUSION):
        grade = cells.get(name)
        if grade is None:
            continue
        grade = grade.lower().removesuffix(".0")
        if grade and grade not in ETICI:
            faults.append(f"row {row}, column {name}: expected one of {', '.join(ETICI)}, or an empty cell")
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
    """Require one fold per patient, and a fold in all rows or in none."""
    first_rows: dict[str, CohortRow] = {}
    for study in studies:
        first = first_rows.setdefault(study.patient, study)
        if first.fold != study.fold:
            faults.append(f"row {study.row}, column fold: the same patient has another fold in row {first.row}")
    if studies and any(study.fold for study in studies) and not all(study.fold for study in studies):
        faults.extend(f"row {study.row}, column fold: missing" for study in studies if not study.fold)
