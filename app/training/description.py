"""Description of a cohort for a report: table 1, missing values, and the flow of the studies (TRIPOD+AI, items 20a-c).

The report stays in the hospital and shows every count. The model card travels and shows no count from 1 to 4.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from app.core import csv_text
from app.core.display_names import label
from app.evaluation import baseline_table
from app.evaluation.baseline_table import Characteristic, TableRow, Value
from app.inference import defaults
from app.inference.clinical_encoder import PERFUSION
from app.sdk.clinical import SECOND_UNITS
from app.sdk.types import Channel
from app.training import variables
from app.training.cohort import Cohort, CohortRow
from app.training.columns import types_with
from app.training.dataset import Dataset
from app.training.splits import Split

NOT_DESCRIBED = (*SECOND_UNITS, "perfusion.software")
"""Fields without a line: a variable is described in one unit."""

IMAGES = {
    "NCCT": (Channel.NCCT,),
    "CTA": (Channel.CTA,),
    "vessel mask": (Channel.VESSELS,),
    "perfusion maps": (Channel.TMAX, Channel.RCBF),
}
"""Channels whose presence is described."""

WITH, WITHOUT = "with the outcome", "without"
PARTS = ("development", "test")


@dataclass(frozen=True)
class FlowStep:
    """Studies of one step: all, by site, and for analysed ones the patients and the studies with the outcome."""

    name: str
    studies: int
    sites: Mapping[str, int]
    patients: int | None = None
    events: int | None = None


@dataclass(frozen=True)
class Description:
    """Table 1, missing values and flow of a cohort.

    Attributes:
        groups: Studies (n,) of each column of table 1.
        pairs: Columns that are compared.
        lines: Lines of table 1.
        by_site: Lines by site, for the missing values.
        flow: Steps from the table to the analysed studies.
    """

    groups: Mapping[str, NDArray[np.bool_]]
    pairs: tuple[tuple[str, str], ...]
    lines: tuple[TableRow, ...]
    by_site: tuple[TableRow, ...]
    flow: tuple[FlowStep, ...]

    def sections(self, *, least: int = 0) -> list[str]:
        """Markdown of all tables; with ``least``, small counts are suppressed."""
        groups, pairs = self._shown(least)
        lines = [_only(line, groups, self.pairs, pairs) for line in self.lines]
        note = f"Counts from 1 to {least - 1} are not shown." if least else ""
        parts = [
            "## Flow of the studies",
            baseline_table.markdown(*self._flow(least)),
            "## Table 1",
            baseline_table.markdown(baseline_table.heads(groups, pairs), baseline_table.cells_of(lines, least=least)),
            "## Missing values",
            baseline_table.markdown(*self._missing(least)),
            note,
        ]
        return [part for part in parts if part]

    def write(self, folder: Path) -> None:
        """Write ``table1.csv``, ``missing.csv`` and ``flow.csv`` into ``folder``."""
        heads = baseline_table.heads(self.groups, self.pairs)
        csv_text.write(folder / "table1.csv", heads, baseline_table.cells_of(self.lines))
        for name, (head, cells) in (("missing", self._missing(0)), ("flow", self._flow(0))):
            csv_text.write(folder / f"{name}.csv", head, cells)

    def document(self) -> dict[str, object]:
        """All numbers for ``report.json``."""
        return {
            "flow": [vars(step) | {"sites": dict(step.sites)} for step in self.flow],
            "table1": [
                {
                    "characteristic": line.variable,
                    "level": line.level,
                    "statistic": line.statistic,
                    "groups": {
                        name: {"patients": cell.patients, "known": cell.known, "numbers": list(cell.numbers)}
                        for name, cell in line.cells.items()
                    },
                    "standardised_differences": {
                        f"{a} - {b}": value for (a, b), value in zip(self.pairs, line.differences, strict=True)
                    },
                }
                for line in self.lines
            ],
        }

    def _shown(self, least: int) -> tuple[Mapping[str, NDArray[np.bool_]], tuple[tuple[str, str], ...]]:
        """Columns of table 1; the card has those by outcome only, so that no small count can be computed from them."""
        if not least:
            return self.groups, self.pairs
        return {name: self.groups[name] for name in (WITH, WITHOUT)}, ((WITH, WITHOUT),)

    def _missing(self, least: int) -> tuple[list[str], list[list[str]]]:
        groups, _ = self._shown(least)
        lines = [_only(line, groups, (), ()) for line in self.lines]
        cells = baseline_table.missing_cells(lines, least=least)
        if least:
            return ["characteristic", *groups], cells
        sites = baseline_table.missing_cells(self.by_site)
        names = list(self.by_site[0].cells) if self.by_site else []
        joined = [[*row, *own[1:]] for row, own in zip(cells, sites, strict=True)]
        return ["characteristic", *groups, *(f"site {name}" for name in names)], joined

    def _flow(self, least: int) -> tuple[list[str], list[list[str]]]:
        # Without sites in the card: a small count would follow from the others.
        sites = [] if least else sorted({site for step in self.flow for site in step.sites})

        def text(count: int | None) -> str:
            return "" if count is None else f"<{least}" if 0 < count < least else str(count)

        # Development and test part add up to the analysed studies, so one small count hides both.
        parts = [step for step in self.flow if step.name in PARTS]
        hidden = any(0 < (step.events or 0) < least for step in parts)
        head = ["step", "studies", "patients", WITH, *(f"site {site}" for site in sites)]
        rows = [
            [
                step.name,
                *map(text, (step.studies, step.patients)),
                "not shown" if hidden and step in parts else text(step.events),
                *(text(step.sites.get(s, 0)) for s in sites),
            ]
            for step in self.flow
        ]
        return head, rows


def describe(
    data: Dataset, read: Cohort, stages: Sequence[tuple[str, Sequence[CohortRow]]] = (), split: Split | None = None
) -> Description:
    """Describe the n studies of ``data``.

    Args:
        data: The analysed studies.
        read: The cohort as it was read, with the counts of its table.
        stages: Reason, and the studies that are left, of each selection after the reading, in their order.
        split: Development and test part of a run; None for an evaluation or for many splits.
    """
    labels = data.labels == 1
    groups = {"all": np.ones(len(data), bool), WITH: labels, WITHOUT: ~labels}
    pairs = [(WITH, WITHOUT)]
    if split is not None:
        for name, rows in zip(PARTS, (split.develop, split.test), strict=True):
            groups[name] = np.isin(np.arange(len(data)), rows)
        pairs.append(PARTS)
    own = list(characteristics(data))
    sites = {str(site): data.sites == site for site in np.unique(data.sites)}
    parts = {name: mask for name, mask in groups.items() if name in PARTS}
    return Description(
        groups=groups,
        pairs=tuple(pairs),
        lines=tuple(baseline_table.rows(own, groups, pairs)),
        by_site=tuple(baseline_table.rows(own, sites, ())),
        flow=tuple(_flow_steps(data, read, stages, parts)),
    )


def characteristics(data: Dataset) -> Iterator[Characteristic]:
    """Clinical fields and images of the studies; a perfusion number of the maps fills a gap of the record."""
    known = variables.available_with(data.own)
    for name, kind in types_with(data.own).items():
        if name in NOT_DESCRIBED:
            continue
        values: list[Value] = []
        for record, perfusion in zip(data.records, data.perfusion, strict=True):
            value: Value = record.value(name)
            if value is None and perfusion is not None and name.startswith(PERFUSION):
                value = getattr(perfusion, name.removeprefix(PERFUSION), None)
            values.append(
                value if value is None or kind is bool else str(value) if isinstance(value, str) else float(value)
            )
        unit = known[name].unit if name in known else "1"
        shown = known[name].label if name in known else label(name)
        yield Characteristic(shown + (f", {unit}" if unit != "1" else ""), values)
    channels = [channel.name for channel in defaults.CHANNELS]
    for image, names in IMAGES.items():
        columns = [channels.index(name) for name in names]
        present = np.asarray(data.presence[:, columns].any(axis=1))
        yield Characteristic(f"image: {image}", [bool(flag) for flag in present])


def _flow_steps(
    data: Dataset,
    read: Cohort,
    stages: Sequence[tuple[str, Sequence[CohortRow]]],
    parts: Mapping[str, NDArray[np.bool_]],
) -> Iterator[FlowStep]:
    usable = Counter(study.site for study in read.studies)
    before = usable
    if read.counts is not None:
        before = Counter({site: sum(own.values()) for site, own in read.counts.sites.items()})
    yield FlowStep("studies in the table", before.total(), before)
    unknown = before - usable
    if unknown:
        yield FlowStep("left out: unknown outcome (--drop-unknown)", unknown.total(), unknown)
    for reason, studies in stages:
        left = Counter(study.site for study in studies)
        gone, usable = usable - left, left
        yield FlowStep(f"left out: {reason}", gone.total(), gone)
    for name, mask in {"analysed": np.ones(len(data), bool), **parts}.items():
        sites = Counter(map(str, data.sites[mask]))
        patients = len(set(data.groups[mask].tolist()))
        yield FlowStep(name, int(mask.sum()), sites, patients, int(data.labels[mask].sum()))


def _only(
    line: TableRow,
    groups: Mapping[str, NDArray[np.bool_]],
    all_pairs: Sequence[tuple[str, str]],
    pairs: Sequence[tuple[str, str]],
) -> TableRow:
    """The line with only these groups and pairs."""
    differences = tuple(line.differences[all_pairs.index(pair)] for pair in pairs)
    cells = {name: line.cells[name] for name in groups}
    return replace(line, cells=cells, differences=differences)
