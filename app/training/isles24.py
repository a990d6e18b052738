"""Imports ISLES'24 (Riedel et al., arXiv:2408.11142): its folder tree becomes the table that ``cohort.read`` takes.

    raw_data/<id>/ses-01/*_{ncct,cta,ctp}.nii.gz, perfusion-maps/*_{tmax,cbf,cbv,mtt}.nii.gz
    derivatives/<id>/ses-01/*_space-ncct_*.nii.gz                                     if the raw volume is missing
    phenotype/<id>/ses-01/*_demographic_baseline.{csv,xlsx}, ses-02/*_outcome.{csv,xlsx}

Design notes:
- ISLES'24 has the grade of reperfusion (mTICI), but neither residual stenosis nor rescue treatment. The target is
  therefore ``unsuccessful_reperfusion`` (0-2a), never rLVO.
- Of the second session only the mTICI is read. Times after the puncture are dropped and listed in the summary.
- Releases differ in spelling: ``ses-0001``, ``sub-strokecase``, ``rawdata``, one row or two columns, case, spaces,
  byte-order marks. Any other unknown header stops the import, because it may be a renamed column.
- Glucose is in mg/dL or mmol/L; the ranges do not overlap, so the value shows the unit. CRP has no known unit.
- The licence (CC BY-NC-SA 4.0) forbids shipping a model that was trained on this data set.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import time, timedelta
from pathlib import Path
from typing import Any

import pandas as pd

from app.inference.clinical_encoder import POST_PROCEDURE_FIELDS
from app.sdk.etici import UNSUCCESSFUL, parse_etici
from app.training.errors import CohortFault
from app.training.table_reader import read_rows

SUBJECT = re.compile(r"sub-stroke(?:case)?0*(\d+)", re.IGNORECASE)
ACUTE, LATER = re.compile(r"ses-0*1", re.IGNORECASE), re.compile(r"ses-0*2", re.IGNORECASE)
VOLUME = re.compile(r"_(ncct|cta|ctp|tmax|cbf|cbv|mtt)\.nii(?:\.gz)?", re.IGNORECASE)

FLAGS = {
    "atrial fibrillation": "atrial_fibrillation",
    "hypertension": "hypertension",
    "diabetes": "diabetes",
    "hyperlipidemia": "dyslipidemia",
    "anticoagulation": "anticoagulant",
    "lipid lowering drugs": "statin",
    "pais": "antiplatelet",
    "platelet aggregation inhibitors": "antiplatelet",
    "wake-up": "wake_up",
}
NUMBERS = {
    "age": "age",
    "leucocytes": "leukocytes",
    "inr": "inr",
    "nihss at admission": "nihss",
    "mrs premorbid": "prestroke_mrs",
}
OTHERS = ("center", "sex", "glucose", "onset to door", "door to imaging")
GRADE = ("mtici postinterventional", "mtici")
WITHOUT_FIELD = ("in-house", "referral", "crp")
TITLES = ("variable", "name", "field", "column", "parameter")  # header cells of a two-column table
SEXES = {"m": "male", "male": "male", "f": "female", "female": "female", "w": "female"}
TRUE, FALSE = ("1", "yes", "true", "y"), ("0", "no", "false", "n")


@dataclass
class ImportedCohort:
    """Imported table, and dropped headers: known only after the puncture, or without a field in the record."""

    frame: pd.DataFrame
    post_procedure: set[str] = field(default_factory=set)
    unused: set[str] = field(default_factory=set)


def has_layout(folder: Path) -> bool:
    """Whether ``folder`` has the layout of ISLES'24."""
    return any((base / "phenotype").is_dir() for base in _bases(folder))


def load(folder: Path) -> ImportedCohort:
    """Load the data set as a table with paths relative to ``folder``.

    Raises:
        CohortFault: The folder has another layout, a header is unknown, or a value cannot be read.
    """
    base = next((base for base in _bases(folder) if (base / "phenotype").is_dir()), None)
    if base is None:
        raise CohortFault([f"{folder} is not laid out as ISLES'24: it has no phenotype folder"])
    raw = _subjects(base / "raw_data") or _subjects(base / "rawdata")
    derived, phenotypes = _subjects(base / "derivatives"), _subjects(base / "phenotype")
    faults: list[str] = []
    imported = ImportedCohort(pd.DataFrame())
    rows = []
    for number, place in sorted(phenotypes.items()):
        name = f"sub-stroke{number:04d}"
        facts = _phenotype(name, place, imported, faults)
        volumes = {**_volumes(derived.get(number)), **_volumes(raw.get(number))}
        if not volumes:
            faults.append(f"{name}: there is no volume of the first session; add one or remove the patient")
        paths = {kind: os.path.relpath(path, folder) for kind, path in volumes.items()}
        rows.append({"patient": name, **facts, **paths})
    faults += [
        f"sub-stroke{number:04d}: there are volumes, but no phenotype; add it"
        for number in sorted(raw.keys() - phenotypes)
    ]
    if faults:
        raise CohortFault(faults)
    if not rows:
        raise CohortFault([f"{folder}: the phenotype folder holds no patient (sub-stroke0001 ...)"])
    imported.frame = pd.DataFrame(rows).fillna("").astype(str)
    if "mtici" not in imported.frame:
        imported.frame["mtici"] = ""
    return imported


def write(folder: Path, table: Path) -> str:
    """Write the new file ``table`` with paths relative to it, and return a summary for the user.

    Raises:
        CohortFault: As in ``load``, or the file exists.
    """
    if table.exists():
        raise CohortFault([f"the table {table.name} exists and is not overwritten; choose another name"])
    imported = load(folder)
    frame = imported.frame.copy()
    for column in frame.columns.intersection(["ncct", "cta", "ctp", "tmax", "cbf", "cbv", "mtt"]):
        frame[column] = [os.path.relpath(folder / name, table.parent) if name else "" for name in frame[column]]
    draft = table.with_name(f".{table.name}.part")
    frame.to_csv(draft, index=False)
    draft.replace(table)
    known = frame["mtici"] != ""
    failed = frame["mtici"].isin(UNSUCCESSFUL)
    return (
        f"{len(frame)} patients, {int(failed.sum())} with unsuccessful_reperfusion (mTICI 0-2a), "
        f"{int((~known).sum())} of unknown mTICI.\n"
        f"Dropped, known only after the puncture: {', '.join(sorted(imported.post_procedure)) or 'nothing'}.\n"
        f"Dropped, no field in the clinical record: {', '.join(sorted(imported.unused)) or 'nothing'}.\n"
        "Licence CC BY-NC-SA 4.0: a model trained on it may not be shipped."
    )


def _bases(folder: Path) -> tuple[Path, Path]:
    return folder, folder / "train"


def _subjects(folder: Path) -> dict[int, Path]:
    """Folders of the patients by number."""
    if not folder.is_dir():
        return {}
    matches = ((SUBJECT.fullmatch(path.name), path) for path in sorted(folder.iterdir()) if path.is_dir())
    return {int(match[1]): path for match, path in matches if match}


def _session(patient: Path | None, which: re.Pattern[str]) -> Iterator[Path]:
    """Every file of one session of a patient."""
    for place in sorted(patient.iterdir()) if patient else ():
        if place.is_dir() and which.fullmatch(place.name):
            yield from sorted(path for path in place.rglob("*") if path.is_file())


def _volumes(patient: Path | None) -> dict[str, Path]:
    """Volumes of the first session by upload name."""
    volumes: dict[str, Path] = {}
    for path in _session(patient, ACUTE):
        if match := VOLUME.search(path.name):
            volumes.setdefault(match[1].lower(), path)
    return volumes


def _phenotype(name: str, patient: Path, imported: ImportedCohort, faults: list[str]) -> dict[str, str]:
    """Table cells of one patient, from the baseline table and the outcome table."""
    facts: dict[str, str] = {}
    for path in _session(patient, ACUTE):
        if "demographic_baseline" in path.stem.lower():
            facts |= _baseline(name, _cells(path, faults), imported, faults)
    if not facts:
        faults.append(f"{name}: there is no demographic_baseline table in the first session")
    for path in _session(patient, LATER):
        if "outcome" in path.stem.lower():
            cells = _cells(path, faults)
            if grade := next((cells[head] for head in GRADE if head in cells), None):
                try:
                    facts["mtici"] = parse_etici(_text(grade)).value if _text(grade) else ""
                except ValueError as error:
                    faults.append(f"{name}, mTICI: {error}, or an empty cell")
            if not any(head in cells for head in GRADE):
                faults.append(f"{name}: the outcome table has no column {GRADE[0]}")
    return facts


def _cells(path: Path, faults: list[str]) -> dict[str, Any]:
    """Cells of a table of one patient by normalised header; the table has one row, or two columns (name, value)."""
    try:
        rows = read_rows(path)
    except CohortFault as error:
        faults.extend(error.faults)
        return {}
    width = max(map(len, rows), default=0)
    if width == 2 and (len(rows) != 2 or _normalised_header(rows[0][1]) not in _known_headers()):
        pairs = [(row[0], row[-1] if len(row) > 1 else "") for row in rows if _normalised_header(row[0]) not in TITLES]
    elif len(rows) == 2 and len(rows[0]) == len(rows[1]):
        pairs = list(zip(rows[0], rows[1], strict=True))
    else:
        faults.append(f"{path.name}: expected a header and one row, or two columns (name, value)")
        return {}
    return {_normalised_header(head): value for head, value in pairs if _normalised_header(head)}


def _known_headers() -> set[str]:
    return {*FLAGS, *NUMBERS, *OTHERS, *GRADE, *WITHOUT_FIELD}


def _normalised_header(cell: Any) -> str:
    """Header without prefix (``section::name``), byte-order mark and double spaces, in lower case."""
    return " ".join(_text(cell).split("::")[-1].replace("\ufeff", "").split()).casefold()


def _text(cell: Any) -> str:
    return "" if cell is None or cell is pd.NaT or cell != cell else str(cell).strip()


def _baseline(name: str, cells: Mapping[str, Any], imported: ImportedCohort, faults: list[str]) -> dict[str, str]:
    """Clinical fields from the cells of the baseline table."""
    facts: dict[str, str] = {}
    for head, value in cells.items():
        if head.replace(" ", "_").replace("-", "_") in POST_PROCEDURE_FIELDS:
            imported.post_procedure.add(head)
        elif head in WITHOUT_FIELD:
            imported.unused.add(head)
        elif head not in _known_headers():
            faults.append(f"{name}: the header {head!r} is unknown; if the column was renamed, restore its name")
        elif _text(value):
            try:
                facts |= _fact(head, value)
            except (ValueError, KeyError):
                faults.append(f"{name}, {head}: the value cannot be read")
    door_to_imaging = facts.pop("door_to_imaging", None)
    if door_to_imaging and "onset_to_door" in facts:
        facts["onset_to_imaging"] = f"{float(facts['onset_to_door']) + float(door_to_imaging):g}"
    return facts


def _fact(head: str, value: Any) -> dict[str, str]:
    """Table cell of one known column; the caller adds ``door_to_imaging`` to ``onset_to_door``."""
    text = _text(value)
    if head in FLAGS:
        return {FLAGS[head]: _flag(text)}
    if head in NUMBERS:
        return {NUMBERS[head]: f"{_number(text):g}"}
    if head == "sex":
        return {"sex": SEXES[text.lower()]}
    if head == "glucose":
        amount = _number(text)
        return {"glucose" if amount >= 40 else "glucose_mmol_l": f"{amount:g}"}
    if head in ("onset to door", "door to imaging"):
        return {head.replace(" ", "_"): f"{_minutes(value):g}"}
    return {"site": text} if head == "center" else {}


def _flag(text: str) -> str:
    word = text.lower().removesuffix(".0")
    if word in TRUE:
        return "1"
    if word in FALSE:
        return "0"
    raise ValueError


def _number(text: str) -> float:
    return float(text.replace(",", "."))


def _minutes(value: Any) -> float:
    """Minutes of a duration: H:MM, H:MM:SS, or a time value of a spreadsheet."""
    if isinstance(value, time):
        return value.hour * 60 + value.minute + value.second / 60
    if isinstance(value, timedelta):
        return value.total_seconds() / 60
    match = re.fullmatch(r"(\d+):([0-5]\d)(?::([0-5]\d))?", _text(value))
    if not match:
        raise ValueError
    hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return hours * 60 + minutes + seconds / 60
