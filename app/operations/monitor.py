"""`rlvo monitor`: is a version still as good as its card says, and are today's patients still those it was trained on?

Notable choices:
- Patients are put into windows by the day of their prediction, in UTC; each window is judged on its own.
- Calibration needs outcomes: the mean probability of patients whose outcome is known, against the share that was
  refractory, with Wilson's 95 % interval. Agreement needs reviews: of each reviewer's last word.
- Drift needs neither. A variable's shift is the distance of the window's mean from the training mean, in training
  standard deviations, both as the manifest has them; of a category, that of the farthest column. What was imputed is no
  observation and is counted apart.
- A shift is a signal where it is both large (half a standard deviation, a medium effect by Cohen 1988) and no accident
  (three standard errors): in large windows everything is significant, in small ones everything is far away.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from app.database.followup import FollowedUpPrediction
from app.evaluation.metrics import Array, Labels, auc, brier, calibration_line, wilson
from app.inference import clinical_encoder
from app.registry.manifest import Clinical, Manifest, VariableKind
from app.sdk.clinical import ClinicalRecord
from app.sdk.errors import RlvoError

LARGE, SURE = 0.5, 3.0
UNLIKE = "out-of-distribution"


class WindowLength(StrEnum):
    """How long a window is."""

    DAY = "day"
    WEEK = "week"
    MONTH = "month"

    def start(self, moment: datetime) -> datetime:
        """The beginning of the window that holds ``moment``: midnight, Monday or the first of the month, in UTC."""
        day = moment.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
        if self is WindowLength.WEEK:
            return day - timedelta(days=day.weekday())
        return day.replace(day=1) if self is WindowLength.MONTH else day


@dataclass(frozen=True)
class InputShift:
    """How far a variable lies from training, in training standard deviations, over ``known`` patients.

    ``missing``: the share of the window's patients who lack it.
    """

    variable: str
    deviations: float
    known: int
    missing: float

    @property
    def signal(self) -> bool:
        return self.known > 0 and abs(self.deviations) > max(LARGE, SURE / np.sqrt(self.known))


@dataclass(frozen=True)
class ObservedCalibration:
    """Of patients whose outcome is known: ``expected`` is their mean probability, ``observed`` the refractory share."""

    patients: int
    expected: float
    observed: float
    low: float
    high: float
    brier: float
    auc: float | None

    @property
    def signal(self) -> bool:
        return not self.low <= self.expected <= self.high


@dataclass(frozen=True)
class MonitorWindow:
    """One stretch of time. ``agreement`` is None without reviews, ``calibration`` without outcomes."""

    start: datetime
    predictions: int
    probability: float
    reviews: int
    agreement: float | None
    unlike: float
    calibration: ObservedCalibration | None
    shifts: tuple[InputShift, ...]

    @property
    def signals(self) -> list[str]:
        """What should be looked at, in words."""
        found = [f"{shift.variable} {shift.deviations:+.1f} SD" for shift in self.shifts if shift.signal]
        if self.calibration is not None and self.calibration.signal:
            found.append(
                f"calibration: {self.calibration.expected:.0%} expected, {self.calibration.observed:.0%} observed"
            )
        return found


@dataclass(frozen=True)
class MonitorReport:
    """All windows, oldest first, and the calibration of all of them together.

    ``slope`` and ``intercept`` are 1 and 0 for a calibrated version; None where the outcomes are all alike.
    ``labels`` and ``chances`` are those of the patients whose outcome is known.
    """

    windows: list[MonitorWindow]
    overall: ObservedCalibration | None
    slope: float | None
    intercept: float | None
    labels: Labels = field(repr=False)
    chances: Array = field(repr=False)

    @property
    def signals(self) -> dict[datetime, list[str]]:
        """By window; those with nothing to look at are left out."""
        return {window.start: window.signals for window in self.windows if window.signals}


def report(followed: Iterable[FollowedUpPrediction], manifest: Manifest, length: WindowLength) -> MonitorReport:
    """The windows of one version's predictions.

    :param followed: in any order, all answered by the version that ``manifest`` describes
    """
    by_window: dict[datetime, list[FollowedUpPrediction]] = {}
    for one in followed:
        by_window.setdefault(length.start(one.created), []).append(one)
    windows = [_window(start, by_window[start], manifest) for start in sorted(by_window)]
    labels, chances = _judged([one for start in sorted(by_window) for one in by_window[start]])
    slope = intercept = None
    if 0 < labels.sum() < len(labels):
        slope, intercept = calibration_line(labels, chances)
    return MonitorReport(windows, _calibration(labels, chances), slope, intercept, labels, chances)


def _window(start: datetime, patients: Sequence[FollowedUpPrediction], manifest: Manifest) -> MonitorWindow:
    verdicts = [agrees for one in patients for agrees in one.verdicts]
    return MonitorWindow(
        start=start,
        predictions=len(patients),
        probability=float(np.mean([one.probability for one in patients])),
        reviews=len(verdicts),
        agreement=float(np.mean(verdicts)) if verdicts else None,
        unlike=float(np.mean([UNLIKE in one.flags for one in patients])),
        calibration=_calibration(*_judged(patients)),
        shifts=tuple(_shifts(patients, manifest.clinical)),
    )


def _judged(patients: Sequence[FollowedUpPrediction]) -> tuple[Labels, Array]:
    known = [one for one in patients if one.refractory is not None]
    labels = np.asarray([one.refractory for one in known], dtype=np.int64)
    return labels, np.asarray([one.probability for one in known], dtype=np.float64)


def _calibration(labels: Labels, chances: Array) -> ObservedCalibration | None:
    if not len(labels):
        return None
    low, high = wilson(int(labels.sum()), len(labels))
    both = 0 < labels.sum() < len(labels)
    return ObservedCalibration(
        patients=len(labels),
        expected=float(chances.mean()),
        observed=float(labels.mean()),
        low=low,
        high=high,
        brier=brier(labels, chances),
        auc=auc(labels, chances) if both else None,
    )


def _shifts(patients: Sequence[FollowedUpPrediction], described: Clinical) -> Iterator[InputShift]:
    """One a variable, in the manifest's order."""
    encoded = [found for one in patients if (found := _encoded(one, described)) is not None]
    column = 0
    for index, variable in enumerate(described.variables):
        width = clinical_encoder.width(variable)
        known = [one.values[column : column + width] for one in encoded if not one.missing[index]]
        column += width
        deviations = 0.0
        if known:
            apart = np.mean(known, axis=0) - _mean(variable.kind, variable.category_means, width)
            scaled = apart / _spread(variable.kind, variable.category_means, width)
            deviations = float(scaled[np.abs(scaled).argmax()])
        missing = 1 - len(known) / len(encoded) if encoded else 1.0
        yield InputShift(clinical_name(variable.name), deviations, len(known), missing)


def _encoded(one: FollowedUpPrediction, described: Clinical) -> clinical_encoder.EncodedRecord | None:
    """As the network saw the record; None where today's manifest cannot read it."""
    try:
        return clinical_encoder.encode(ClinicalRecord.model_validate(dict(one.clinical)), described, one.perfusion)
    except (RlvoError, ValueError):
        return None


def _mean(kind: VariableKind, frequencies: Sequence[float], width: int) -> NDArray[np.float64]:
    """Of an encoded variable in training: numbers and flags are standardised, categories are 0 or 1."""
    return np.asarray(frequencies) if kind is VariableKind.CATEGORY else np.zeros(width)


def _spread(kind: VariableKind, frequencies: Sequence[float], width: int) -> NDArray[np.float64]:
    """Standard deviations; of a category that training hardly saw, that of one seen in a hundred patients."""
    if kind is not VariableKind.CATEGORY:
        return np.ones(width)
    share = np.clip(np.asarray(frequencies), 0.01, 0.99)
    return np.asarray(np.sqrt(share * (1 - share)))


def clinical_name(name: str) -> str:
    """Without the section: ``perfusion.core_ml`` is ``core_ml``."""
    return name.rpartition(".")[2]


def table(found: MonitorReport) -> tuple[list[str], list[list[str]]]:
    """Heads and rows: a window each, then all of them together. An exclamation mark stands at each signal."""
    heads = [
        "from",
        "patients",
        "probability",
        "outcomes",
        "expected",
        "observed (95 %)",
        "Brier",
        "AUC",
        "agreement",
        "unlike training",
        "largest shift",
    ]
    rows = [
        [
            f"{window.start:%Y-%m-%d}",
            str(window.predictions),
            f"{window.probability:.0%}",
            *_judgement(window.calibration),
            _share(window.agreement, window.reviews),
            f"{window.unlike:.0%}",
            _largest(window.shifts),
        ]
        for window in found.windows
    ]
    patients = sum(window.predictions for window in found.windows)
    if len(found.windows) > 1:
        rows.append(["all", str(patients), "", *_judgement(found.overall), "", "", ""])
    return heads, rows


def _judgement(judged: ObservedCalibration | None) -> list[str]:
    if judged is None:
        return ["0", "", "", "", ""]
    mark = " !" if judged.signal else ""
    return [
        str(judged.patients),
        f"{judged.expected:.0%}",
        f"{judged.observed:.0%} ({judged.low:.0%}-{judged.high:.0%}){mark}",
        f"{judged.brier:.3f}",
        "" if judged.auc is None else f"{judged.auc:.2f}",
    ]


def _share(share: float | None, count: int) -> str:
    return "" if share is None else f"{share:.0%} of {count}"


def _largest(shifts: Sequence[InputShift]) -> str:
    """A signal before a larger shift that may be an accident."""
    if not shifts:
        return ""
    most = max(shifts, key=lambda shift: (shift.signal, abs(shift.deviations)))
    return f"{most.variable} {most.deviations:+.1f} SD{' !' if most.signal else ''}"


def by_variable(found: MonitorReport) -> Mapping[str, list[InputShift]]:
    """Each variable's shifts, window after window."""
    grouped: dict[str, list[InputShift]] = {}
    for window in found.windows:
        for shift in window.shifts:
            grouped.setdefault(shift.variable, []).append(shift)
    return grouped
