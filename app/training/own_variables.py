"""Reads ``variables.toml``: the own variables of a cohort, which are no fields of the record.

    [variables.ddimer]
    label = "D-dimer"
    kind = "number"          # number, boolean or category
    unit = "ng/mL"           # of a number
    range = [0, 100000]      # of a number; a value outside it is refused
    log = true               # of a number with a long tail: the model sees log(1 + x)
    group = "laboratory"     # part of the page's form

A category has ``values = ["none", "mild", "severe"]`` instead of unit and range.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from app.inference import own_variables
from app.inference.post_procedure import is_near
from app.registry.manifest import ClinicalVariable, VariableKind
from app.registry.own_variable import LARGEST, OWN, OwnGroup, OwnVariable
from app.sdk.clinical import LONGEST_OWN, MOST_OWN, OWN_WORD
from app.training.errors import CohortFault

FILE = "variables.toml"
LARGEST_FILE = 64 * 1024
MOST_VALUES = 12
LONGEST_LABEL, LONGEST_UNIT = 60, 20
KINDS = {"number": VariableKind.NUMBER, "boolean": VariableKind.FLAG, "category": VariableKind.CATEGORY}
MEMBERS = {
    "number": ("label", "kind", "group", "unit", "range", "log"),
    "boolean": ("label", "kind", "group"),
    "category": ("label", "kind", "group", "values"),
}
"""Members of a variable of each kind."""

Entry = Mapping[str, Any]


@dataclass(frozen=True)
class OwnColumns:
    """Where the own variables come from: ``path`` of ``variables.toml``, and those that versions declare by their name.

    Without a path, the file in the folder of the table is read, if there is one.
    """

    path: Path | None = None
    declared: Mapping[str, Sequence[ClinicalVariable]] = field(default_factory=dict)

    def find(self, folder: Path) -> tuple[ClinicalVariable, ...]:
        """The own variables of a table in ``folder``.

        Raises:
            CohortFault: See ``find`` and ``merged``, or there are more variables than a record has.
        """
        found = find(self.path, folder)
        for version, others in self.declared.items():
            found = merged(found, [_without_statistics(variable) for variable in others], version)
        if len(found) > MOST_OWN:
            fault = f"the versions declare {len(found)} own variables together; a record has at most {MOST_OWN}"
            raise CohortFault([f"{fault}; give fewer versions at a time"])
        return found


def find(path: Path | None, folder: Path) -> tuple[ClinicalVariable, ...]:
    """Read the own variables of a table in ``folder``; ``path``: the file; None: the folder's one.

    Raises:
        CohortFault: There is no file ``path``, or it is no such document. Each fault names the file, the variable, and
            what to do.
    """
    if path is None and not (folder / FILE).is_file():
        return ()
    return read(path or folder / FILE)


def read(path: Path) -> tuple[ClinicalVariable, ...]:
    """Read one file. Raises CohortFault, see ``find``."""
    try:
        content = path.read_bytes()
    except OSError:
        raise CohortFault([f"there is no file {path.name} that can be read; correct --own-variables"]) from None
    if len(content) > LARGEST_FILE:
        raise CohortFault([f"{path.name} is larger than {LARGEST_FILE // 1024} KiB; it declares variables only"])
    try:
        document = tomllib.loads(content.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise CohortFault([f"{path.name} is no TOML: {error}"]) from None
    entries = document.get("variables")
    if set(document) != {"variables"} or not isinstance(entries, dict) or not entries:
        raise CohortFault([f"{path.name}: expected one section [variables.NAME] for each variable, and nothing else"])
    if len(entries) > MOST_OWN:
        raise CohortFault([f"{path.name}: {len(entries)} variables are too many; declare at most {MOST_OWN}"])
    faults = [
        f"{path.name}, {_shown(name)}: {fault}" for name, entry in entries.items() for fault in _faults(name, entry)
    ]
    if faults:
        raise CohortFault(faults)
    return tuple(_variable(name, entry) for name, entry in entries.items())


def merged(
    declared: Sequence[ClinicalVariable], others: Sequence[ClinicalVariable], source: str
) -> tuple[ClinicalVariable, ...]:
    """The variables of ``declared``, and those of ``others`` (from ``source``) that it does not have.

    Raises:
        CohortFault: One name has two declarations, so that its column could be read in two ways.
    """
    names = {variable.name: variable for variable in declared}
    different = [
        variable.name.removeprefix(OWN)
        for variable in others
        if variable.name in names and _declaration(names[variable.name]) != _declaration(variable)
    ]
    if different:
        fault = f"{source} declares {', '.join(different)} in another way (kind, unit, range or values)"
        raise CohortFault([f"{fault}; correct {FILE}, or give --own-variables with the declaration of the version"])
    return (*declared, *(variable for variable in others if variable.name not in names))


def _without_statistics(variable: ClinicalVariable) -> ClinicalVariable:
    """The variable as ``variables.toml`` declares it, so that a table has the same digest with and without the file."""
    means = (0.0,) * len(variable.categories)
    return variable.model_copy(update={"imputed": 0.0, "mean": 0.0, "std": 1.0, "category_means": means})


def _declaration(variable: ClinicalVariable) -> tuple[object, ...]:
    """What decides how a cell is read."""
    assert variable.own is not None
    return variable.kind, variable.unit, variable.own.low, variable.own.high, frozenset(variable.categories)


def _shown(name: str) -> str:
    """The name, unless it is so odd that it may be a text."""
    return name if re.fullmatch(r"[A-Za-z0-9_.-]{1,60}", name) else "(a variable)"


def _faults(name: str, entry: object) -> Iterator[str]:
    if fault := own_variables.name_fault(name):
        yield fault
    if not isinstance(entry, dict):
        yield f"expected a section [variables.{_shown(name)}] with label and kind"
        return
    kind = entry.get("kind")
    if not isinstance(kind, str) or kind not in MEMBERS:
        yield f"kind: expected {', '.join(MEMBERS)}"
        return
    unknown = sorted(set(entry) - set(MEMBERS[kind]))
    if unknown:
        yield f"{', '.join(map(_shown, unknown))}: not a member of a {kind}; it has {', '.join(MEMBERS[kind])}"
    yield from _texts(entry)
    if kind == "number":
        yield from _number(entry)
    elif kind == "category":
        yield from _category(entry)


def _texts(entry: Entry) -> Iterator[str]:
    label = entry.get("label")
    if not _is_text(label, LONGEST_LABEL):
        yield f'label: expected a name for readers of 1 to {LONGEST_LABEL} characters, as label = "D-dimer"'
    elif is_near(str(label)):
        yield "label: it names what is known only after the puncture, which can never be an input; remove the variable"
    if "group" in entry and entry["group"] not in list(OwnGroup):
        yield f"group: expected one of {', '.join(OwnGroup)}; it is the part of the form that shows the variable"


def _number(entry: Entry) -> Iterator[str]:
    if not _is_text(entry.get("unit"), LONGEST_UNIT):
        yield f'unit: expected 1 to {LONGEST_UNIT} characters, as unit = "ng/mL"; unit = "1" for a number without one'
    bounds = entry.get("range")
    if not isinstance(bounds, list) or len(bounds) != 2 or not all(map(_is_number, bounds)) or bounds[0] >= bounds[1]:
        yield "range: expected the lowest and the highest possible value, as range = [0, 100000]"
    elif entry.get("log") is True and bounds[0] < 0:
        yield "log: a range below 0 has no logarithm; remove log, or correct range"
    if not isinstance(entry.get("log", False), bool):
        yield "log: expected true or false"


def _category(entry: Entry) -> Iterator[str]:
    values = entry.get("values")
    example = 'as values = ["none", "mild", "severe"]'
    if not isinstance(values, list) or not 2 <= len(values) <= MOST_VALUES or len(set(map(str, values))) < len(values):
        yield f"values: expected 2 to {MOST_VALUES} different words, {example}"
    elif not all(isinstance(v, str) and len(v) <= LONGEST_OWN and re.fullmatch(OWN_WORD, v) for v in values):
        yield f"values: expected small letters, digits and hyphens, at most {LONGEST_OWN} characters each, {example}"


def _is_text(value: object, longest: int) -> bool:
    return isinstance(value, str) and 0 < len(value.strip()) == len(value) <= longest and value.isprintable()


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and -LARGEST <= value <= LARGEST


def _variable(name: str, entry: Entry) -> ClinicalVariable:
    low, high = entry.get("range", (0, 0))
    values = tuple(entry.get("values", ()))
    return ClinicalVariable(
        name=f"{OWN}{name}",
        kind=KINDS[entry["kind"]],
        unit=entry.get("unit", "1"),
        log=entry.get("log", False),
        categories=values,
        category_means=(0.0,) * len(values),
        own=OwnVariable(label=entry["label"], group=OwnGroup(entry.get("group", "other")), low=low, high=high),
    )
