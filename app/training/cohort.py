"""Reads a cohort: one table with one row per study (paths, clinical fields, outcome).

Columns: ``patient``; optionally ``site``, ``scanner``, ``date`` (ISO) and ``fold`` (test, 1, 2 ...); volumes by upload
name (``ncct``, ``cta`` ...; paths relative to the table), or ``study_instance_uid`` or ``accession_number`` (see
``dicom_studies``), or ``prepared`` (row of ``images.npy``, see ``preprocess``);
clinical fields by the names of the record (``age``, ``perfusion.core_ml``); own variables (``own_variables.py``); and
the outcome (``outcome.py``).

Design notes:
- All faults of all rows are reported together, one line for each kind, with the row numbers of a spreadsheet. No row is
  dropped silently.
- ``table_reader`` reads the file, ``columns`` names its columns, ``cells`` parses its cells. The record validates
  ranges.
- An unknown outcome is a fault unless ``drop_unknown`` is set.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from app.core.display_names import NOT_RECORDED
from app.inference.own_variables import value_fault as own_value_fault
from app.registry.manifest import ClinicalVariable
from app.registry.own_variable import OWN
from app.sdk.clinical import ClinicalRecord
from app.sdk.types import Flag, Input
from app.training import cells as parsing
from app.training import columns, isles24, outcome, suspicious, table_reader, value_rules
from app.training.columns import ColumnRules, MappedTable
from app.training.errors import CohortFault, FaultList
from app.training.options import Target
from app.training.outcome import Findings, OutcomeCounts
from app.training.own_variables import OwnColumns
from app.training.suspicious import Suspicion
from app.training.table_reader import RawTable

LEAST_PATIENTS = 20
ONE_SITE = "one"
"""Site of all studies of a table without sites."""


@dataclass(frozen=True)
class CohortRow:
    """One study: ``row`` is the row number of a spreadsheet; ``outcome`` is 1, 0, or None if unknown.

    ``dicom`` is the Study Instance UID and the accession number of a study without paths of volumes; one of them may be
    empty. ``conversion_flags`` are those of its conversion (``dicom_studies``).
    """

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
    dicom: tuple[str, str] | None = None
    conversion_flags: tuple[Flag, ...] = ()


@dataclass(frozen=True)
class Cohort:
    """All rows of one table.

    Attributes:
        folder: Base of relative paths.
        target: Name of the outcome.
        counts: Outcomes by component and site, before rows of unknown outcome are left out.
        notes: How the table was read.
        suspicions: Values that are valid and probably wrong, which the caller checks.
        own: Own variables (``own_variables``), which the table may have as columns.
    """

    folder: Path
    studies: tuple[CohortRow, ...]
    target: str = "rLVO"
    counts: OutcomeCounts | None = None
    notes: tuple[str, ...] = ()
    suspicions: tuple[Suspicion, ...] = ()
    own: tuple[ClinicalVariable, ...] = ()


@dataclass(frozen=True)
class _Source:
    """A table with named columns, and how its cells are parsed: decimal mark by field, pattern of the dates."""

    folder: Path
    raw: RawTable
    table: MappedTable
    marks: Mapping[str, str]
    dates: str
    own: tuple[ClinicalVariable, ...] = ()

    @cached_property
    def unnamed_site(self) -> str:
        """Site of a row without one. Beside named sites it is unknown, and no site of its own."""
        return NOT_RECORDED if self.table.cells("site") else ONE_SITE

    def suspicions(self, studies: Sequence[CohortRow]) -> tuple[Suspicion, ...]:
        """Values of the rows ``studies`` that are valid and probably wrong."""
        mark = self.marks.get(suspicious.STENOSIS, ".")
        return suspicious.find(studies, dict(self.table.rows), mark, self.own)


@dataclass(frozen=True)
class Inspection:
    """A table, its columns, all its faults and suspicions, its own variables, and the cohort if there is no fault."""

    raw: RawTable
    table: MappedTable
    faults: FaultList
    cohort: Cohort | None
    suspicions: tuple[Suspicion, ...] = ()
    own: tuple[ClinicalVariable, ...] = ()


def read(
    path: Path,
    *,
    drop_unknown: bool = False,
    target: Target | None = None,
    rules: Path | None = None,
    date_format: str = "",
    own: OwnColumns | None = None,
) -> Cohort:
    """Read a table (.csv, .xlsx, .parquet), the ``cohort.csv`` of a folder, or a folder with the layout of ISLES'24.

    Args:
        path: Table, or folder.
        drop_unknown: Leave out rows with an unknown outcome instead of refusing them.
        target: Outcome; None: rLVO, if the table has any of its components.
        rules: ``columns.toml``; None: the one in the folder of the table, if there is one.
        date_format: Form of the dates, as ``dd/mm/yyyy``; "": ISO, or that of ``columns.toml``.
        own: Own variables; None: those of ``variables.toml`` in the folder of the table, if there is one.

    Raises:
        CohortFault: All faults of the table.
    """
    inspection = inspect(path, drop_unknown=drop_unknown, target=target, rules=rules, date_format=date_format, own=own)
    inspection.faults.check()
    assert inspection.cohort is not None
    return inspection.cohort


def inspect(
    path: Path,
    *,
    drop_unknown: bool = False,
    target: Target | None = None,
    rules: Path | None = None,
    date_format: str = "",
    own: OwnColumns | None = None,
) -> Inspection:
    """Like ``read``, but return the faults of columns and cells. Raises CohortFault if the file is no table."""
    faults = FaultList()
    source = _source(path, rules, date_format, faults, own)
    chosen, components = outcome.choose(source.table.fields.values(), target, faults)
    studies, found = [], []
    for row, cells in source.table.rows:
        before = len(faults)
        findings = outcome.findings(row, cells, components, faults, source.marks)
        study = _study(row, cells, findings, source, faults)
        if study is None or len(faults) > before:
            continue
        found.append((study.site, findings))
        if study.outcome is None and components and not drop_unknown:
            faults.add("the outcome is unknown; complete it, or use --drop-unknown to leave the row out", row=row)
        if study.outcome is not None:
            studies.append(study)
    _check_folds(studies, faults)
    if not faults and len({study.patient for study in studies}) < LEAST_PATIENTS:
        faults.add(f"{len(studies)} rows are too few: at least {LEAST_PATIENTS} patients are needed")
    suspicions = source.suspicions(studies)
    if faults:
        return Inspection(source.raw, source.table, faults, None, suspicions, source.own)
    counts = outcome.count(chosen.outcome, components, found, drop_unknown=drop_unknown)
    cohort = Cohort(source.folder, tuple(studies), chosen.outcome, counts, source.raw.notes, suspicions, source.own)
    return Inspection(source.raw, source.table, faults, cohort, suspicions, source.own)


def read_for_prediction(path: Path) -> list[CohortRow]:
    """Read the rows of a table for prediction: like ``read``, but without outcome and without a minimum number of rows.

    Raises:
        CohortFault: All faults of the table.
    """
    faults = FaultList()
    source = _source(path, None, "", faults)
    faults.check()
    rows = [(row, _study(row, cells, {}, source, faults)) for row, cells in source.table.rows]
    studies = [study for _, study in rows if study is not None]
    counts = Counter(study.patient for study in studies)
    for study in studies:
        if not study.volumes:
            faults.add("there is no volume to send", row=study.row)
        if counts[study.patient] > 1:
            faults.add("its patient is in several rows", row=study.row)
    faults.check()
    return studies


def read_unlabelled(
    path: Path, target: str, *, rules: Path | None = None, date_format: str = "", own: OwnColumns | None = None
) -> Cohort:
    """Like ``read``, for a prediction alone: any number of rows, whose outcomes may be unknown.

    Args:
        path: As for ``read``.
        target: Name of the outcome of the version; it is read if the table has its columns.
        rules: As for ``read``.
        date_format: As for ``read``.
        own: As for ``read``.

    Raises:
        CohortFault: All faults of the table.
    """
    faults = FaultList()
    source = _source(path, rules, date_format, faults, own)
    kind = next((one for one in Target if one.outcome == target), None)
    components = outcome.components_of(source.table.fields.values(), kind) if kind else ()
    studies = []
    for row, cells in source.table.rows:
        findings = outcome.findings(row, cells, components, faults, source.marks)
        if (study := _study(row, cells, findings, source, faults)) is not None:
            studies.append(study)
    if not source.table.rows:
        faults.add("the table has no row")
    faults.check()
    suspicions = source.suspicions(studies)
    return Cohort(source.folder, tuple(studies), target, None, source.raw.notes, suspicions, source.own)


def _source(
    path: Path, rules: Path | None, date_format: str, faults: FaultList, own_columns: OwnColumns | None = None
) -> _Source:
    """The table at ``path`` with its columns named; faults of the columns are added to ``faults``."""
    if path.is_dir() and not (path / "cohort.csv").exists() and isles24.has_layout(path):
        folder, given = path, ColumnRules()
        imported = isles24.load(path, columns.find_rules(rules, path))
        raw = table_reader.from_frame(imported.frame, imported.notes.lines())
    else:
        path = path / "cohort.csv" if path.is_dir() else path
        folder = path.parent
        given = columns.find_rules(rules, folder)
        raw = table_reader.read_table(path, given.sheet)
    own = (own_columns or OwnColumns()).find(folder)
    table = columns.map_columns(raw, given, faults, own)
    if "patient" not in table.fields.values():
        faults.add("column patient is missing")
    default = given.decimal or ("," if raw.semicolons else ".")
    numbers = [name for name in table.fields.values() if table.types.get(name) in (int, float)]
    marks = {f: parsing.decimal_mark(table.cells(f), default) for f in (*numbers, "final_stenosis_percent")}
    try:
        pattern = parsing.date_pattern(date_format or given.date_format)
    except ValueError as error:
        raise CohortFault([str(error)]) from None
    return _Source(folder, raw, table, marks, pattern, own)


def _study(
    row: int, cells: Mapping[str, str], findings: Findings, source: _Source, faults: FaultList
) -> CohortRow | None:
    fault_count = len(faults)
    patient = cells.get("patient", "")
    if not patient and "patient" in cells:
        faults.add("the patient is missing", row=row)
    volumes = {}
    for volume in Input:
        if name := cells.get(volume.value, ""):
            volumes[volume] = source.folder / name
            if fault := _file_fault(volumes[volume]):
                faults.add(fault, row=row, column=volume.value)
    prepared = cells.get("prepared", "").removesuffix(".0")
    is_number = prepared.isascii() and prepared.isdecimal() and len(prepared) < 10
    if prepared and not is_number:
        faults.add("expected a row number of images.npy", row=row, column="prepared", found=parsing.form_of(prepared))
    uid, accession = (cells.get(name, "").strip() for name in columns.DICOM_COLUMNS)
    if not volumes and not prepared and not uid and not accession:
        faults.add("there is no volume; name at least one file, or the DICOM study", row=row)
    record = _record(row, cells, source, faults)
    day = ""
    if cell := cells.get("date", ""):
        try:
            day = parsing.parse_day(cell, source.dates, from_1904=source.raw.from_1904).isoformat()
        except ValueError as error:
            faults.add(str(error), row=row, column="date", found=parsing.form_of(cell))
    if len(faults) > fault_count or record is None:
        return None
    return CohortRow(
        row=row,
        patient=patient,
        site=cells.get("site", "") or source.unnamed_site,
        date=day,
        fold=cells.get("fold", ""),
        volumes=volumes,
        prepared=int(prepared) if prepared else None,
        record=record,
        outcome=outcome.decide(findings),
        scanner=cells.get("scanner", ""),
        dicom=(uid, accession) if not volumes and not prepared else None,
    )


def _file_fault(path: Path) -> str:
    """What is wrong with the path of a volume; "" if it is a file that can be read."""
    if path.name.startswith(table_reader.SYSTEM_FILES) or "__MACOSX" in path.parts:
        return "a file of the spreadsheet program or the system, and no volume; name the volume itself"
    try:
        if path.is_dir():
            return "it is a folder; name one file"
        if not path.is_file():
            windows = "; write the path with / and not with \\" if "\\" in path.name else ""
            return f"there is no such file{windows}"
    except OSError:
        return "the path is no valid file name"
    return "" if os.access(path, os.R_OK) else "the file cannot be opened; check its permissions"


def _record(row: int, cells: Mapping[str, str], source: _Source, faults: FaultList) -> ClinicalRecord | None:
    document: dict[str, Any] = {}
    failed = False
    for name, kind in source.table.types.items():
        cell = cells.get(name, "")
        if not cell:
            continue
        try:
            value = parsing.parse_cell(
                cell, kind, source.marks.get(name, "."), synonyms=name not in source.table.mapped
            )
        except ValueError as error:
            faults.add(str(error), row=row, column=name, found=parsing.form_of(cell))
            failed = True
            continue
        section, _, part = name.rpartition(".")
        (document.setdefault(section, {}) if section else document)[part] = value
    for variable in source.own:
        value = document.get("own", {}).get(variable.name.removeprefix(OWN))
        if value is not None and (fault := own_value_fault(variable, value)):
            cell, failed = cells[variable.name], True
            advice = value_rules.range_advice(variable.name, value_rules.OUT_OF_RANGE, cell)
            faults.add(fault + advice, row=row, column=variable.name, found=parsing.form_of(cell))
    if failed:
        return None
    try:
        return ClinicalRecord.model_validate(document)
    except ValidationError as error:
        for detail in error.errors():
            column = ".".join(str(part) for part in detail["loc"])
            cell = cells.get(column, "")
            advice = value_rules.range_advice(column, detail["type"], cell)
            faults.add(detail["msg"] + advice, row=row, column=column, found=parsing.form_of(cell))
        return None


def _check_folds(studies: list[CohortRow], faults: FaultList) -> None:
    """Require one fold per patient, and a fold in all rows or in none."""
    first_rows: dict[str, CohortRow] = {}
    for study in studies:
        first = first_rows.setdefault(study.patient, study)
        if first.fold != study.fold:
            message, other = "the same patient has another fold", f"in row {first.row}"
            faults.add(message, row=study.row, column="fold", example=other)
    if studies and any(study.fold for study in studies):
        for study in studies:
            if not study.fold:
                faults.add("missing", row=study.row, column="fold")
