"""Checks of the prepared images of a cohort before they are trained or scored on: flags, and repeated images.

Design notes:
- A flag of severity ``warning`` says that an image probably does not show what its column claims. Such a flag, or an
  image of two patients, stops the run, unless the user accepts it.
- Every flag is counted and listed by row in the report, whether it stops the run or not.
- An image is known by the digest of its file, or of its prepared voxels. A compressed copy is therefore found too.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

from app.sdk.flags import FLAGS, Severity
from app.training.cohort import Cohort, CohortRow
from app.training.dataset import Dataset
from app.training.errors import CohortFault
from app.training.provenance import CONSTANT

DOUBTFUL = tuple(sorted(code for code, kind in FLAGS.items() if kind.severity is Severity.WARNING))
"""Codes of flags that stop a run: all warnings."""

NOT_IDENTIFYING = ("vessels", "vessels file")  # masks of two patients can be equal


def check(cohort: Cohort, data: Dataset, *, accept: bool, accept_repeats: bool = False) -> str:
    """Check the images of a cohort; returns a section of the report, as Markdown.

    Raises:
        CohortFault: With the rows of doubtful or repeated images, unless ``accept`` is set; repeated images alone are
            also accepted by ``accept_repeats`` (``--accept same-image``).
    """
    doubts, repeats = [*_doubts(cohort.studies, data)], [*_repeated(cohort.studies, data)]
    refused = [] if accept else [*doubts, *([] if accept_repeats else repeats)]
    if refused:
        raise CohortFault([*refused, "correct the table or the files, or accept all of this with --accept-flags"])
    table = _table(cohort.studies, data)
    accepted = [f"- {fault}" for fault in (*doubts, *repeats)]
    option = "--accept-flags" if accept else "--accept same-image"
    parts = [table, *([f"Accepted with `{option}`:", "\n".join(accepted)] if accepted else [])]
    return "\n\n".join(["## Flags of the preparation", *parts])


def row_ranges(rows: Sequence[int]) -> str:
    """Row numbers as text, with ranges: ``2-4, 7``."""
    spans: list[list[int]] = []
    for row in sorted(set(rows)):
        if spans and row == spans[-1][1] + 1:
            spans[-1][1] = row
        else:
            spans.append([row, row])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in spans)


def _doubts(studies: Sequence[CohortRow], data: Dataset) -> Iterator[str]:
    """One line for each kind of doubtful flag, with its rows."""
    rows = defaultdict(list)
    for study, flags in zip(studies, data.flags, strict=True):
        for flag in flags or ():
            if flag.code in DOUBTFUL:
                rows[flag.code, flag.detail].append(study.row)
    for (code, detail), where in sorted(rows.items()):
        yield f"{_rows(where)}: {code}: {detail}"


def _repeated(studies: Sequence[CohortRow], data: Dataset) -> Iterator[str]:
    """One line for each group of rows with the same images under several patients, or in several columns."""
    owners: dict[str, set[int]] = defaultdict(set)
    for index, digests in enumerate(data.digests):
        columns: dict[str, list[str]] = defaultdict(list)
        for name, digest in digests.items():
            if name not in NOT_IDENTIFYING and not digest.startswith(CONSTANT):
                owners[digest].add(index)
                columns[digest].append(name.removesuffix(" file"))
        for own in columns.values():
            if len(own) > 1:
                yield f"row {studies[index].row}: the columns {' and '.join(sorted(own))} hold the same image"
    shared: dict[frozenset[int], set[str]] = defaultdict(set)
    for digest, indices in owners.items():
        if len({studies[index].patient for index in indices}) > 1:
            names = {name.removesuffix(" file") for name, own in data.digests[min(indices)].items() if own == digest}
            shared[frozenset(indices)] |= names
    for group, names in sorted(shared.items(), key=lambda item: sorted(item[0])):
        where = _rows([studies[index].row for index in group])
        if all(_images(data, index) == names for index in group):
            yield f"{where}: the same images under several patients; give them one patient, or remove the repetition"
        else:
            yield f"{where}: the same {', '.join(sorted(names))} for several patients; correct the file names"


def _images(data: Dataset, index: int) -> set[str]:
    """Names of the identifying images of a row."""
    return {
        name.removesuffix(" file")
        for name, digest in data.digests[index].items()
        if name not in NOT_IDENTIFYING and not digest.startswith(CONSTANT)
    }


def _table(studies: Sequence[CohortRow], data: Dataset) -> str:
    """All flags by kind, with their rows."""
    rows = defaultdict(list)
    unknown = []
    for study, flags in zip(studies, data.flags, strict=True):
        if flags is None:
            unknown.append(study.row)
        for code in {flag.code for flag in flags or ()}:
            rows[code].append(study.row)
    lines = [f"| {code} | {len(where)} | {row_ranges(where)} |" for code, where in sorted(rows.items())]
    parts = []
    if lines:
        parts.append("\n".join(["| flag | studies | rows of the table |", "|---|---|---|", *lines]))
    if unknown:
        parts.append(f"{len(unknown)} studies came prepared, and their flags are unknown.")
    return "\n\n".join(parts) or "No study has a flag."


def _rows(rows: Sequence[int]) -> str:
    return f"row{'s' if len(set(rows)) > 1 else ''} {row_ranges(rows)}"
