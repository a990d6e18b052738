"""Imports ISLES'24 (Riedel et al., arXiv:2408.11142): its folder tree becomes the table that ``cohort.read`` takes.

    raw_data/<id>/ses-01/*_{ncct,cta,ctp}.nii.gz, perfusion-maps/*_{tmax,cbf,cbv,mtt}.nii.gz
    derivatives/<id>/ses-01/*_space-ncct_*.nii.gz                                     if the raw volume is missing
    phenotype/<id>/ses-01/*_demographic_baseline.{csv,xlsx}, ses-02/*_outcome.{csv,xlsx}
    phenotype/ses-0001/<id>_*_demographic_baseline.csv                                the layout of the challenge

Design notes:
- ISLES'24 has the grade of reperfusion (TICI), but neither residual stenosis nor rescue treatment. The target is
  therefore ``unsuccessful_reperfusion`` (0-2a), never rLVO.
- Of the second session only the grade is read. Times after the puncture are dropped and listed in the summary.
- An unknown header stops the import, because it may be a renamed column. ``columns.toml`` of the folder declares it.
- Each fault and each note is one line for all patients. docs/isles24.md lists the headers with their sources.
- The licence (CC BY-NC-SA 4.0) forbids commercial use, and a model that was trained on this data set is not shipped.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from app.inference.post_procedure import POST_PROCEDURE_FIELDS
from app.sdk.etici import UNSUCCESSFUL, parse_etici
from app.training import isles24_values as values
from app.training.cells import form_of
from app.training.columns import FILE, ColumnRule, ColumnRules, declared_value
from app.training.errors import SHOWN_ROWS, CohortFault
from app.training.table_reader import SYSTEM_FILES, read_rows

SUBJECT = re.compile(r"sub-stroke(?:case)?0*(\d+)(?![^_])", re.IGNORECASE)
ACUTE, LATER = re.compile(r"ses-0*1", re.IGNORECASE), re.compile(r"ses-0*2", re.IGNORECASE)
VOLUME = re.compile(r"_(ncct|cta|ctp|tmax|cbf|cbv|mtt)\.nii(?:\.gz)?", re.IGNORECASE)
GRADE = ("mtici postinterventional", "tici postinterventional", "mtici", "tici")
NO_RULES = ColumnRules()
TITLES = ("variable", "name", "field", "column", "parameter")  # header cells of a two-column table


@dataclass
class ImportLog:
    """Messages by their text, each with the patients that it is about."""

    patients: dict[tuple[str, str], list[str]] = field(default_factory=dict)
    forms: dict[tuple[str, str], str] = field(default_factory=dict)

    def add(self, patient: str, message: str, *, header: str = "", value: str = "") -> None:
        """Add a message on one patient; the form of the first ``value`` is shown."""
        self.patients.setdefault((header, message), []).append(patient)
        self.forms.setdefault((header, message), f" (found: {form_of(value)})" if value else "")

    def lines(self) -> list[str]:
        """One line for each message: number of patients, first patients, header, message."""
        return [
            f"{_names(patients)}{f', header {header!r}' if header else ''}: {message}{self.forms[header, message]}"
            for (header, message), patients in self.patients.items()
        ]


@dataclass
class ImportedCohort:
    """Imported table, dropped headers (known only after the puncture, or without a field in the record), and notes."""

    frame: pd.DataFrame
    post_procedure: set[str] = field(default_factory=set)
    unused: set[str] = field(default_factory=set)
    notes: ImportLog = field(default_factory=ImportLog)


def has_layout(folder: Path) -> bool:
    """Whether ``folder`` has the layout of ISLES'24."""
    return any((base / "phenotype").is_dir() for base in _bases(folder))


def load(folder: Path, rules: ColumnRules = NO_RULES) -> ImportedCohort:
    """Load the data set as a table with paths relative to ``folder``.

    Args:
        folder: Folder of the unpacked data set.
        rules: Declared headers, words and codes of the phenotype tables.

    Raises:
        CohortFault: The folder has another layout, a header is unknown, or a value cannot be read.
    """
    base = next((base for base in _bases(folder) if (base / "phenotype").is_dir()), None)
    if base is None:
        raise CohortFault([f"{folder.name} is not laid out as ISLES'24: it has no phenotype folder"])
    raw = _subjects(base / "raw_data") or _subjects(base / "rawdata")
    derived, tables = _subjects(base / "derivatives"), _phenotypes(base / "phenotype")
    faults = ImportLog()
    imported = ImportedCohort(pd.DataFrame())
    rows = []
    for number, paths in sorted(tables.items()):
        name = f"sub-stroke{number:04d}"
        facts = _Reader(name, base / "phenotype", rules, imported, faults).facts(paths)
        volumes = {**_volumes(derived.get(number)), **_volumes(raw.get(number))}
        if not volumes:
            faults.add(name, "there is no volume of the first session; add one or remove the patient")
        rows.append({"patient": name, **facts, **{k: os.path.relpath(path, folder) for k, path in volumes.items()}})
    for number in sorted(raw.keys() - tables):
        faults.add(f"sub-stroke{number:04d}", "there are volumes, but no phenotype; add it")
    if faults.patients:
        raise CohortFault(faults.lines())
    if not rows:
        raise CohortFault([f"{folder.name}: the phenotype folder holds no patient (sub-stroke0001 ...)"])
    imported.frame = pd.DataFrame(rows).fillna("").astype(str)
    if "mtici" not in imported.frame:
        imported.frame["mtici"] = ""
    return imported


def write(folder: Path, table: Path, rules: ColumnRules = NO_RULES) -> str:
    """Write the new file ``table`` with paths relative to it, and return a summary for the user.

    Raises:
        CohortFault: As in ``load``, or the file exists, or its folder does not.
    """
    if table.exists():
        raise CohortFault([f"the table {table.name} exists and is not overwritten; choose another name"])
    if not table.parent.is_dir():
        raise CohortFault([f"the folder of the table {table.name} does not exist; make it, or choose another"])
    imported = load(folder, rules)
    frame = imported.frame.copy()
    for column in frame.columns.intersection(["ncct", "cta", "ctp", "tmax", "cbf", "cbv", "mtt"]):
        frame[column] = [os.path.relpath(folder / name, table.parent) if name else "" for name in frame[column]]
    draft = table.with_name(f".{table.name}.part")
    frame.to_csv(draft, index=False)
    draft.replace(table)
    failed, unknown = int(frame["mtici"].isin(UNSUCCESSFUL).sum()), int((frame["mtici"] == "").sum())
    counts = f"{len(frame)} patients, {failed} with unsuccessful_reperfusion (mTICI 0-2a), {unknown} of unknown mTICI."
    return "\n".join(
        [
            counts,
            f"Dropped, known only after the puncture: {', '.join(sorted(imported.post_procedure)) or 'nothing'}.",
            f"Dropped, no field in the clinical record: {', '.join(sorted(imported.unused)) or 'nothing'}.",
            *(f"Note: {line}." for line in imported.notes.lines()),
            "Licence CC BY-NC-SA 4.0: no commercial use, and rlvo ships no model trained on it.",
        ]
    )


def _names(patients: list[str]) -> str:
    if len(patients) == 1:
        return patients[0]
    shown = ", ".join(patients[:SHOWN_ROWS])
    return f"{len(patients)} patients ({shown}{', ...' if len(patients) > SHOWN_ROWS else ''})"


def _bases(folder: Path) -> tuple[Path, Path]:
    return folder, folder / "train"


def _files(folder: Path) -> Iterator[Path]:
    """Every file below a folder, without those of the system and of spreadsheet programs."""
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        if path.is_file() and not path.name.startswith(SYSTEM_FILES) and "__MACOSX" not in parts:
            yield path


def _subjects(folder: Path) -> dict[int, Path]:
    """Folders of the patients by number."""
    if not folder.is_dir():
        return {}
    matches = ((SUBJECT.fullmatch(path.name), path) for path in sorted(folder.iterdir()) if path.is_dir())
    return {int(match[1]): path for match, path in matches if match}


def _phenotypes(folder: Path) -> dict[int, list[Path]]:
    """Tables of the patients by number, of both layouts: a folder for each patient, or for each session."""
    tables: dict[int, list[Path]] = {number: [] for number in _subjects(folder)}
    for path in _files(folder):
        parts = path.relative_to(folder).parts
        if match := next((m for part in parts if (m := SUBJECT.match(part))), None):
            tables.setdefault(int(match[1]), []).append(path)
    return tables


def _volumes(patient: Path | None) -> dict[str, Path]:
    """Volumes of the first session by upload name."""
    volumes: dict[str, Path] = {}
    for path in _files(patient) if patient else ():
        match = VOLUME.search(path.name)
        if match and patient and _in_session(path, patient, ACUTE):
            volumes.setdefault(match[1].lower(), path)
    return volumes


def _in_session(path: Path, base: Path, session: re.Pattern[str]) -> bool:
    return any(session.fullmatch(part) for part in path.relative_to(base).parts)


@dataclass(frozen=True)
class _Reader:
    """Reads the phenotype tables of one patient."""

    name: str
    base: Path
    rules: ColumnRules
    imported: ImportedCohort
    faults: ImportLog

    def facts(self, paths: list[Path]) -> dict[str, str]:
        """Table cells of the patient, from the baseline table and the outcome table."""
        facts: dict[str, str] = {}
        baselines = [path for path in paths if self._is(path, ACUTE, "demographic_baseline")]
        for path in baselines:
            facts |= self._baseline(self._cells(path))
        if not facts:
            self.faults.add(self.name, "there is no demographic_baseline table in the first session")
        for path in paths:
            if self._is(path, LATER, "outcome"):
                facts |= self._grade(self._cells(path))
        return facts

    def _is(self, path: Path, session: re.Pattern[str], kind: str) -> bool:
        return kind in path.stem.lower() and _in_session(path, self.base, session)

    def _cells(self, path: Path) -> dict[str, Any]:
        """Cells of a table by normalised header; the table has one row, or two columns (name, value)."""
        try:
            rows = read_rows(path)
        except CohortFault as error:
            for fault in error.faults:
                self.faults.add(self.name, fault)
            return {}
        width = max(map(len, rows), default=0)
        if width == 2 and (len(rows) != 2 or _normalised_header(rows[0][1]) not in _known_headers()):
            lines = [row for row in rows if _normalised_header(row[0]) not in TITLES]
            pairs = [(row[0], row[-1] if len(row) > 1 else "") for row in lines]
        elif len(rows) == 2 and len(rows[0]) == len(rows[1]):
            pairs = list(zip(rows[0], rows[1], strict=True))
        else:
            self.faults.add(self.name, f"{path.name}: expected a header and one row, or two columns (name, value)")
            return {}
        return {_normalised_header(head): value for head, value in pairs if _normalised_header(head)}

    def _grade(self, cells: Mapping[str, Any]) -> dict[str, str]:
        head = next((head for head in GRADE if head in cells), "")
        if not head:
            if cells:
                self.faults.add(self.name, f"the outcome table has no column {GRADE[0]}")
            return {}
        text = self._text(head, cells[head])
        try:
            return {"mtici": parse_etici(text).value if text else ""}
        except ValueError as error:
            self.faults.add(self.name, f"{error}, or an empty cell", header=head, value=text)
            return {}

    def _rule(self, head: str) -> ColumnRule | None:
        return next((rule for name, rule in self.rules.columns.items() if _normalised_header(name) == head), None)

    def _text(self, head: str, cell: Any) -> str:
        return declared_value(values.text_of(cell), self.rules, self._rule(head))

    def _baseline(self, cells: Mapping[str, Any]) -> dict[str, str]:
        """Clinical fields from the cells of the baseline table."""
        facts: dict[str, str] = {}
        for head, cell in cells.items():
            rule, text = self._rule(head), self._text(head, cell)
            field = values.field_of(head) if rule is None else rule.field
            if head.replace(" ", "_").replace("-", "_") in POST_PROCEDURE_FIELDS:
                self.imported.post_procedure.add(head)
            elif not field and (rule is not None or head in values.WITHOUT_FIELD):
                self.imported.unused.add(head)
            elif not field:
                advice = f'declare its field in {FILE} of the folder, or the field "" to leave it out'
                self.faults.add(self.name, f"unknown; {advice}", header=head)
            elif text:
                facts |= self._fact(head, field, cell if text == values.text_of(cell) else text)
        to_imaging = facts.pop("door_to_imaging", None)
        if to_imaging and "onset_to_door" in facts:
            facts["onset_to_imaging"] = f"{float(facts['onset_to_door']) + float(to_imaging):g}"
        return facts

    def _fact(self, head: str, field: str, cell: Any) -> dict[str, str]:
        try:
            facts, note = values.read(field, cell)
        except (ValueError, KeyError):
            advice = f"the value cannot be read; map it in {FILE} of the folder, or leave the cell empty"
            self.faults.add(self.name, advice, header=head, value=values.text_of(cell))
            return {}
        if note:
            self.imported.notes.add(self.name, note, header=head, value=values.text_of(cell))
        return facts


def _known_headers() -> set[str]:
    return {*values.KNOWN, *GRADE, *values.WITHOUT_FIELD}


def _normalised_header(cell: Any) -> str:
    """Header without prefix (``section::name``), byte-order mark and double spaces, in lower case."""
    return " ".join(values.text_of(cell).split("::")[-1].replace("\ufeff", "").split()).casefold()
