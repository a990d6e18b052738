"""Aggregate of a validation that a site may send to others: counts, sums and estimates, and no patient.

Design notes:
- No sum is over fewer than ``LEAST_PATIENTS``, and no cell has fewer than ``SMALL`` patients with, or without, the
  outcome. Cells are merged with their neighbours until they are large; nothing is left blank that a difference of other
  cells would give back. Few cells also limit what all sums together say of one patient (``bench.membership``).
- Counts of missing values and of unknown outcomes below ``SMALL`` are null, also 0. A number of missing values is null
  too if it would show, beside the cells of the same variable, a cell that was merged.
- The derivatives are the answer of the first round of a federated recalibration (``app.evaluation.federated``).
- Two aggregates of nearly the same patients differ by those that they do not share. This module cannot see that: a site
  exports a set of patients once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from app.core.display_names import NOT_RECORDED
from app.core.schema import FrozenModel
from app.evaluation import federated, logistic, metrics
from app.evaluation.clusters import Clusters, chosen
from app.evaluation.curves import NORMAL
from app.evaluation.metrics import Array, Labels
from app.evaluation.validation import PredictionTable, Texts

SMALL = 5
"""Smallest published number of patients with, and of patients without, the outcome."""
LEAST_PATIENTS = 50
LEAST_EVENTS = 10
"""Patients of either outcome, and of both, without which nothing is exported."""
EDGES = (0.0, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
"""Limits of the cells of the predicted probability; the last cell contains 1."""
MANY = 10**7
SITE_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
OTHER = "other levels"

Number = Annotated[float, Field(ge=-1e9, le=1e9)]
Share = Annotated[float, Field(ge=0, le=1)]
Text = Annotated[str, Field(max_length=200)]


class Measured(FrozenModel):
    """An estimate and its standard error on the scale on which it is pooled."""

    value: Number
    error: Annotated[float, Field(gt=0, le=1e6)]


class Cell(FrozenModel):
    """Patients of one group: how many, with the outcome, and the mean predicted probability."""

    name: Text
    patients: int = Field(ge=LEAST_PATIENTS, le=MANY)
    events: int = Field(ge=SMALL, le=MANY)
    mean_predicted: Share

    @model_validator(mode="after")
    def _is_large(self) -> Self:
        if self.patients - self.events < SMALL:
            raise ValueError(f"a cell has fewer than {SMALL} patients without the outcome")
        return self


class Derivatives(FrozenModel):
    """Log-likelihood of outcome = intercept + slope * predicted log-odds at the predictions as they are (0 and 1).

    ``gradient`` is by intercept and slope; ``information`` is that of the intercept, of both, and of the slope.
    """

    log_likelihood: Number
    gradient: tuple[Number, Number]
    information: tuple[Number, Number, Number]


class Aggregate(FrozenModel):
    """What a site publishes of a validation; see the module.

    Attributes:
        predictor: Version as NAME@VERSION, or the name that the site gives to another predictor.
        predictor_digest: Digest of the version; "" for another predictor.
        outcome_unknown: Patients without an outcome; null: under 5.
        years: First and last year of the patients; null: no dates.
        auc: AUC, with the error of its log-odds.
        observed_expected: O/E, with the error of its logarithm.
        slope: Calibration slope; null: not estimable.
        derivatives: Sums from which sites fit a recalibration together.
        calibration: Cells of the predicted probability, in its order.
        subgroups: Cells of each variable.
        missing: Missing values of each variable; null: under 5, or their number would show a small cell.
    """

    schema_version: Literal[1] = 1
    kind: Literal["aggregate"] = "aggregate"
    site: Annotated[str, Field(pattern=SITE_PATTERN)]
    predictor: Text
    predictor_digest: Text = ""
    patients: int = Field(ge=LEAST_PATIENTS, le=MANY)
    events: int = Field(ge=LEAST_EVENTS, le=MANY)
    outcome_unknown: Annotated[int, Field(ge=SMALL, le=MANY)] | None
    years: tuple[int, int] | None
    mean_predicted: Share
    auc: Measured
    observed_expected: Measured
    slope: Measured | None
    derivatives: Derivatives
    calibration: tuple[Cell, ...] = Field(max_length=len(EDGES))
    subgroups: dict[Text, tuple[Cell, ...]] = Field(max_length=100)
    missing: dict[Text, Annotated[int, Field(ge=SMALL, le=MANY)] | None] = Field(max_length=100)

    @model_validator(mode="after")
    def _counts_agree(self) -> Self:
        if self.patients - self.events < LEAST_EVENTS:
            raise ValueError(f"fewer than {LEAST_EVENTS} patients are without the outcome")
        for name, cells in {"calibration": self.calibration, **self.subgroups}.items():
            totals = sum(cell.patients for cell in cells), sum(cell.events for cell in cells)
            if cells and totals != (self.patients, self.events):
                raise ValueError(f"the cells of {name} do not sum up to the patients")
        return self


def of(
    table: PredictionTable, site: str, predictor: str, digest: str = "", *, with_subgroups: bool = False
) -> Aggregate:
    """Aggregate of the patients of a table whose outcome is known.

    Args:
        table: Predictions and outcomes.
        site: Name under which the site takes part.
        predictor: Version as NAME@VERSION, or another name.
        digest: Digest of the version.
        with_subgroups: Whether the cells of the subgroups are in it; without, it says less of each patient.

    Raises:
        ValueError: The site has too few patients, or too few of one outcome; the message says how many are needed.
    """
    known = table.known
    labels, own = table.outcomes[known].astype(np.int64), table.probabilities[known]
    check_size(labels)
    subgroups = {
        name: cells
        for name, group in table.groups.items()
        if with_subgroups and len(cells := _merged_levels(group.levels[known], group.order, labels, own)) > 1
    }
    clusters = chosen(table.clusters, known)
    error = metrics.auc_log_odds_error(labels, own, clusters)
    if not np.isfinite(error) or error == 0:
        raise ValueError("the probabilities separate the outcomes, so that the AUC has no standard error")
    return Aggregate(
        site=site,
        predictor=predictor,
        predictor_digest=digest,
        patients=len(labels),
        events=int(labels.sum()),
        outcome_unknown=_count(int((~known).sum())),
        years=_years(table.dates, known),
        mean_predicted=float(own.mean()),
        auc=Measured(value=metrics.auc(labels, own), error=error),
        observed_expected=Measured(
            value=float(labels.mean() / own.mean()), error=metrics.observed_expected_error(labels, own, clusters)
        ),
        slope=_slope(labels, own, clusters),
        derivatives=_derivatives(labels, own),
        calibration=calibration_cells(labels, own),
        subgroups=subgroups,
        missing=_missing(table, subgroups),
    )


def check_size(labels: Labels, needed: int = LEAST_PATIENTS, purpose: str = "to leave the site") -> None:
    """Check that the patients are enough to publish sums of them.

    Args:
        labels: Known outcomes (n,), 0 or 1.
        needed: Patients that are needed.
        purpose: For the message, what they are needed for.

    Raises:
        ValueError: They are not; the message says how many are needed.
    """
    rarer = int(min(labels.sum(), len(labels) - labels.sum()))
    if len(labels) < needed or rarer < LEAST_EVENTS:
        raise ValueError(
            f"too few patients with a known outcome {purpose}: needed are {needed}, and {LEAST_EVENTS} of each outcome"
        )


def calibration_cells(labels: Labels, probabilities: Array) -> tuple[Cell, ...]:
    """Cells of the predicted probability (n,) with enough patients of each outcome, in its order."""
    places = np.clip(np.searchsorted(EDGES, probabilities, side="right") - 1, 0, len(EDGES) - 2)
    groups = [[place] for place in range(len(EDGES) - 1)]
    merged: list[list[int]] = []
    for group in groups:
        if merged and not _is_large(np.isin(places, merged[-1]), labels):
            merged[-1] += group
        else:
            merged.append(group)
    if len(merged) > 1 and not _is_large(np.isin(places, merged[-1]), labels):
        last = merged.pop()
        merged[-1] += last
    names = [f"{EDGES[group[0]]:g} to {EDGES[group[-1] + 1]:g}" for group in merged]
    masks = [np.isin(places, group) for group in merged]
    return tuple(_cell(name, mask, labels, probabilities) for name, mask in zip(names, masks, strict=True))


def preview(document: Mapping[str, Any]) -> str:
    """Every member of a document as text, in its order: what a person reads before it leaves the site."""
    lines: list[str] = []
    for name, value in document.items():
        lines += _lines(name, value)
    return "\n".join(lines)


def _lines(name: str, value: Any) -> list[str]:
    if isinstance(value, Mapping):
        return [line for part, inner in value.items() for line in _lines(f"{name}, {part}", inner)] or [f"{name}: none"]
    if isinstance(value, list | tuple) and value and isinstance(value[0], Mapping):
        return [f"{name}:", *("  " + ", ".join(f"{k} {_plain(v)}" for k, v in row.items()) for row in value)]
    if isinstance(value, list | tuple):
        return [f"{name}: {', '.join(map(_plain, value)) or 'none'}"]
    return [f"{name}: {_plain(value)}"]


def _plain(value: Any) -> str:
    if value is None:
        return "not given, or under 5"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _slope(labels: Labels, own: Array, clusters: Clusters) -> Measured | None:
    found = metrics.calibration_slope(labels, own, clusters=clusters)
    if not np.isfinite([found.value, found.low]).all():
        return None
    return Measured(value=found.value, error=(found.high - found.low) / (2 * NORMAL))


def _derivatives(labels: Labels, own: Array) -> Derivatives:
    x = logistic.log_odds(own)
    design = np.column_stack([np.ones_like(x), x])
    found = federated.contribution(design, labels, np.zeros_like(x), np.array([0.0, 1.0]))
    (a, ab), (_, b) = found.information.tolist()
    gradient = (float(found.gradient[0]), float(found.gradient[1]))
    return Derivatives(log_likelihood=found.log_likelihood, gradient=gradient, information=(a, ab, b))


def _count(count: int) -> int | None:
    return count if count >= SMALL else None


def _missing(table: PredictionTable, subgroups: Mapping[str, Sequence[Cell]]) -> dict[str, int | None]:
    """Missing values of each variable among the patients with an outcome."""
    alone = {_name(name): {cell.name: cell.patients for cell in cells} for name, cells in subgroups.items()}
    result: dict[str, int | None] = {}
    for name, values in table.characteristics.items():
        missing = np.array([value is None for value in values])[table.known]
        if _name(name) in alone:
            result[name] = alone[_name(name)].get(NOT_RECORDED)
        else:
            result[name] = _count(int(missing.sum())) if (~missing).sum() >= SMALL else None
    return result


def _name(name: str) -> str:
    return name.replace("_", " ").casefold()


def _years(dates: Texts | None, known: NDArray[np.bool_]) -> tuple[int, int] | None:
    years = [] if dates is None else sorted({int(date[:4]) for date in dates[known] if date})
    return (years[0], years[-1]) if years else None


def _is_large(mask: NDArray[np.bool_], labels: Labels) -> bool:
    events = int(labels[mask].sum())
    return int(mask.sum()) >= LEAST_PATIENTS and min(events, int(mask.sum()) - events) >= SMALL


def _cell(name: str, mask: NDArray[np.bool_], labels: Labels, own: Array) -> Cell:
    events = int(labels[mask].sum())
    return Cell(name=name, patients=int(mask.sum()), events=events, mean_predicted=float(own[mask].mean()))


def _merged_levels(levels: Texts, order: Sequence[str], labels: Labels, own: Array) -> tuple[Cell, ...]:
    """Cells of the levels; small levels are merged, if need be with the smallest large one."""
    masks = {level: levels == level for level in order if (levels == level).any()}
    small = [level for level, mask in masks.items() if not _is_large(mask, labels)]
    large = sorted((level for level in masks if level not in small), key=lambda level: int(masks[level].sum()))
    rest = np.isin(levels, small)
    while small and large and not _is_large(rest, labels):
        small.append(large.pop(0))
        rest = np.isin(levels, small)
    cells = [_cell(level or NOT_RECORDED, mask, labels, own) for level, mask in masks.items() if level in large]
    return (*cells, _cell(OTHER, rest, labels, own)) if small and _is_large(rest, labels) else tuple(cells)
