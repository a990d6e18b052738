"""Maps the columns of a hospital's table to the columns of a cohort, by name and by ``columns.toml``.

Design notes:
- A header is matched without regard to case, spaces, hyphens and underscores. ``columns.toml`` declares other names.
- Only an empty cell is missing. Codes such as 999 or NA are declared, for one column or for all.
- An own variable (``own_variables``) is named with or without its section: ``ddimer``, ``own.ddimer``.
- A column that is known only after the puncture cannot be an input. A name that may be the outcome gets the right name.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from app.inference.post_procedure import is_listed
from app.registry.manifest import ClinicalVariable, VariableKind
from app.registry.own_variable import OWN
from app.sdk.clinical import ClinicalRecord
from app.sdk.types import Input
from app.training.cells import POINT_NUMBER, composed
from app.training.errors import CohortFault, FaultList
from app.training.table_reader import RawTable

FILE = "columns.toml"
DICOM_COLUMNS = ("study_instance_uid", "accession_number")
STUDY_COLUMNS = ("patient", "site", "scanner", "date", "fold", "prepared", *DICOM_COLUMNS)
NAMES = ("patient", "site", "scanner", "fold")
"""Columns whose texts tell studies apart."""
COMPONENTS = ("final_stenosis_percent", "etici", "rescue_treatment")
REPERFUSION = "mtici"
OUTCOME_NAMES = {
    r"m_?tici": "mtici",
    r"e_tici": "etici",
    r"e?tici": "etici, or mtici",
    r"(?:residual|final)_stenosis": "final_stenosis_percent",
    r"rescue|angioplasty": "rescue_treatment",
}
"""Words in a header that may be the outcome, and the name of the cohort's column."""
MMOL = {"glucose": "glucose_mmol_l", "hba1c": "hba1c_mmol_mol"}
"""Field of a column by its name without the unit, if the unit has mmol."""
SYNONYMS = {
    **dict.fromkeys(("id", "patient_id", "case_id", "pseudonym", "subject", "subject_id"), "patient"),
    **dict.fromkeys(("hospital", "center", "centre", "clinic", "institution"), "site"),
    **dict.fromkeys(("gender",), "sex"),
    **dict.fromkeys(("af", "afib", "vhf"), "atrial_fibrillation"),
    **dict.fromkeys(("htn",), "hypertension"),
    **dict.fromkeys(("dm",), "diabetes"),
    **dict.fromkeys(("sbp",), "systolic_bp"),
    **dict.fromkeys(("dbp",), "diastolic_bp"),
    **dict.fromkeys(("admission_nihss", "nihss_admission", "nihss_baseline", "baseline_nihss"), "nihss"),
}
"""Fields that common headers may mean, for a message: the user names the column, and nothing is guessed."""
MOST_WORDS = 8
"""A column with more words than this is no category, so the template lists none of them."""
SPREADSHEET_ERRORS = ("#N/A", "#REF!", "#DIV/0!", "#VALUE!", "#NAME?", "#NUM!", "#NULL!")


class _Document(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ColumnRule(_Document):
    """Rule of one column of the table: its field ("" to ignore it), its codes of a missing value, and its words."""

    field: str
    missing: tuple[str, ...] = ()
    values: Mapping[str, str] = {}


class ColumnRules(_Document):
    """Content of ``columns.toml``; ``columns`` is keyed by the header in the table."""

    sheet: str = ""
    date_format: str = ""
    decimal: Literal["", ".", ","] = ""
    missing: tuple[str, ...] = ()
    columns: Mapping[str, ColumnRule] = {}


@dataclass(frozen=True)
class MappedTable:
    """Rows whose cells are named by the columns of a cohort.

    Attributes:
        fields: Field of each header of the table; "" for an ignored column.
        rows: Row number, and text by field.
        types: Python type of every clinical column, the own ones included.
        mapped: Fields whose words are declared, so that no other short word is accepted.
    """

    fields: Mapping[str, str]
    rows: tuple[tuple[int, dict[str, str]], ...]
    types: Mapping[str, type]
    mapped: frozenset[str] = frozenset()

    def cells(self, field: str) -> list[str]:
        """Cells of one column that are not missing."""
        return [cells[field] for _, cells in self.rows if cells.get(field)]


def read_rules(path: Path) -> ColumnRules:
    """Read ``columns.toml``; the default rules if there is no such file.

    Raises:
        CohortFault: The file is no such document.
    """
    try:
        return ColumnRules.model_validate(tomllib.loads(path.read_text(encoding="utf-8-sig")))
    except FileNotFoundError:
        return ColumnRules()
    except (OSError, ValueError, RecursionError) as error:
        if not isinstance(error, ValidationError):
            raise CohortFault([f"{path.name} is no TOML: {error}"]) from error
        faults = [f"{path.name}, {'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors()]
        raise CohortFault([f"{fault}; `rlvo table check` writes a template" for fault in faults]) from error


def find_rules(path: Path | None, folder: Path) -> ColumnRules:
    """Read the rules of a table in ``folder``; ``path``: the file, or None for ``columns.toml`` of the folder.

    Raises:
        CohortFault: There is no file ``path``, or it is no such document.
    """
    if path is not None and not path.is_file():
        raise CohortFault([f"there is no file {path.name}; `rlvo table check` writes a template"])
    return read_rules(path or folder / FILE)


@cache
def column_types() -> Mapping[str, type]:
    """Python type of every clinical column; sections have dotted names."""

    def leaves(model: type[BaseModel], prefix: str) -> dict[str, type]:
        types: dict[str, type] = {}
        for name, info in model.model_fields.items():
            if not prefix and f"{name}." == OWN:
                continue
            kind = next(a for a in (*get_args(info.annotation), info.annotation) if a is not type(None))
            kind = next((a for a in get_args(kind) if isinstance(a, type)), kind)
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                types |= leaves(kind, f"{name}.")
            else:
                types[prefix + name] = kind
        return types

    return leaves(ClinicalRecord, "")


def types_with(own: Sequence[ClinicalVariable]) -> Mapping[str, type]:
    """Python type of every clinical column and own variable by its name; the type of a category has its values."""
    kinds: dict[VariableKind, type] = {VariableKind.NUMBER: float, VariableKind.FLAG: bool}
    types = {variable.name: kinds.get(variable.kind) or _category_type(variable) for variable in own}
    return {**column_types(), **types}


def _category_type(variable: ClinicalVariable) -> type:
    members = [(f"word_{place}", word) for place, word in enumerate(variable.categories)]  # a word can be reserved: mro
    create: Any = StrEnum  # the type checker knows only enums whose members are written in the code
    made: type = create("OwnCategory", members)
    return made


def known_fields() -> tuple[str, ...]:
    """Every column that a cohort can have without own variables."""
    return (*STUDY_COLUMNS, *COMPONENTS, REPERFUSION, *(field.value for field in Input), *column_types())


def normalised(header: str) -> str:
    """Header in lower case, with underscores for spaces and hyphens."""
    return re.sub(r"[\s_-]+", "_", header.strip().casefold())


def match(header: str, own: Sequence[ClinicalVariable] = ()) -> str:
    """Field of a header by its name alone, among the columns of a cohort and ``own``; "" if there is none."""
    return _own_name(header, own) or (
        header if header in known_fields() else {normalised(f): f for f in known_fields()}.get(normalised(header), "")
    )


def _own_name(header: str, own: Sequence[ClinicalVariable]) -> str:
    """Name of the own variable of a header, which may lack its section; "" if there is none."""
    names = (variable.name for variable in own)
    return next((name for name in names if normalised(header) in (name, name.removeprefix(OWN))), "")


def map_columns(
    table: RawTable, rules: ColumnRules, faults: FaultList, own: Sequence[ClinicalVariable] = ()
) -> MappedTable:
    """Name the cells by the columns of a cohort, apply value maps, and empty cells with a code of a missing value."""
    fields: dict[str, str] = {}
    names = {variable.name for variable in own}
    for header in rules.columns:
        if header not in table.header:
            faults.add(f"{FILE} names it, and the table does not have it; correct the name", column=header)
    for header in table.header:
        rule = rules.columns.get(header)
        field = match(header, own) if rule is None else _own_name(rule.field, own) or rule.field
        if rule is not None and field and field not in {*known_fields(), *names}:
            faults.add(f"{FILE} gives it the unknown field {field}; {_advice(field)}", column=header)
        elif rule is None and not field:
            faults.add(_refusal(header), column=header)
        elif field and field in fields.values():
            other = next(name for name, given in fields.items() if given == field)
            faults.add(f"it is {field}, and so is column {other}; remove one of them", column=header)
        fields[header] = field
    readers = [
        (place, fields[name], rules.columns.get(name)) for place, name in enumerate(table.header) if fields[name]
    ]
    rows = []
    for number, cells in table.rows:
        named = {}
        for place, field, rule in readers:
            text = declared_value(cells[place], rules, rule)
            if text in SPREADSHEET_ERRORS:
                faults.add("an error value of the spreadsheet; correct the formula", row=number, column=field)
                text = ""
            named[field] = composed(text) if field in NAMES else text
        rows.append((number, named))
    mapped = frozenset(field for _, field, rule in readers if rule and rule.values)
    return MappedTable(fields, tuple(rows), types_with(own), mapped)


def template(table: RawTable, rules: ColumnRules, own: Sequence[ClinicalVariable] = ()) -> str:
    """``columns.toml`` for a table: one section for each column, with the words of its categories.

    The template changes no reading: a section of an unknown column is a comment. With an empty field it is ignored.
    """
    lines = [
        "# Written by `rlvo table check`. Correct it, and run the command again.",
        '# To ignore a column, give it the field "".',
        f"sheet = {_toml(rules.sheet)}  # sheet of a spreadsheet; empty: the first",
        f'date_format = {_toml(rules.date_format)}  # as "dd/mm/yyyy", or "excel"; empty: YYYY-MM-DD',
        f'decimal = {_toml(rules.decimal)}  # "," or "."; empty: as the columns show',
        f'missing = {_toml(list(rules.missing))}  # codes of a missing value in every column, as ["NA", "-"]',
    ]
    types = types_with(own)
    for place, header in enumerate(table.header):
        field = match(header, own)
        kind = types.get(field)
        section = [f"[columns.{_toml(header)}]", f"field = {_toml(field)}", 'missing = []  # as ["999"]']
        words = sorted({cells[place] for _, cells in table.rows if cells[place]})
        if len(words) <= MOST_WORDS and kind not in (int, float) and (kind or not field):
            found = ", ".join(map(_toml, words))
            section.append(f'values = {{}}  # as {{ V = "male", M = "female" }}; the table has {found}')
        if not field:  # stays refused until it is declared
            section = [f"# unknown; {_advice(header)}", *(f"# {line}" for line in section)]
        lines += ["", *section]
    return "\n".join(lines) + "\n"


def _toml(value: str | list[str]) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_toml, value))}]"
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in escaped) + '"'


def declared_value(text: str, rules: ColumnRules, rule: ColumnRule | None) -> str:
    """Text of a cell after the declared codes of a missing value and the declared words of its column."""
    codes = (*rules.missing, *(rule.missing if rule else ()))
    if text and any(_same(text, code) for code in codes):
        return ""
    for word, value in rule.values.items() if rule else ():
        if _same(text, word):
            return value
    return text


def _same(text: str, code: str) -> bool:
    """Whether a cell is a code: the same text without regard to case, or the same number."""
    if text.casefold() == code.strip().casefold():
        return True
    numbers = POINT_NUMBER.fullmatch(text) and POINT_NUMBER.fullmatch(code.strip())
    return bool(numbers) and float(text) == float(code)


def _refusal(header: str) -> str:
    name = normalised(header)
    for words, column in OUTCOME_NAMES.items():
        if re.search(f"(?:^|_)(?:{words})(?:_|$)", name):
            return f"if it is the outcome, name it {column}; it cannot be an input"
    if is_listed(name):
        return "it is known only after the puncture and cannot be an input; remove it"
    return f"unknown; {_advice(header)}"


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def _advice(header: str) -> str:
    """What to do with an unknown name: the nearest field, or the way to declare it."""
    plain = normalised(re.sub(r"[(\[].*?(?:[)\]]|$)", "", header)).strip("_")  # without a unit: "Glucose (mg/dL)"
    if plain in MMOL and "mmol" in header.casefold():
        return f"if it is {MMOL[plain]}, name it so"
    if plain in SYNONYMS:
        return f"if it is {SYNONYMS[plain]}, name it so"
    names: Sequence[str] = difflib.get_close_matches(plain, known_fields(), 1, 0.75)
    if not names:
        ends: dict[str, Any] = {_last(field): field for field in column_types()}
        names = [ends[end] for end in difflib.get_close_matches(plain, ends, 1, 0.85)]
    if names:
        return f"if it is {names[0]}, name it so"
    return (
        f"remove it, use a name of the clinical schema, declare it in {FILE} (`rlvo table check`), or declare it as a "
        "variable of your own in variables.toml"
    )
