"""`rlvo monitor`: calibration, reviewer agreement and input drift of one version, over time windows.

Design notes:
- Windows are formed by the UTC day of the prediction and evaluated separately.
- Calibration compares the mean probability with the refractory share; it needs outcomes. A window has Wilson's 95 %
  interval of the share, and a signal if the share is outside of the control limits: with the interval, one in twenty
  windows of a calibrated version would have one.
- Several predictions about one subject of a caller are one cluster, in intervals and control limits. Drift takes
  the first one whose outcome is known.
- Over all windows, ``evaluation.drift`` says whether the calibration has changed, or what would have been seen.
- Agreement uses the last review of each reviewer.
- The shift of a variable is the window mean minus the training mean, in training standard deviations. A category has
  the shift of its farthest column. Imputed values are not observations and are counted separately.
- A shift is a signal if it is large (0.5 SD, a medium effect by Cohen 1988) and significant (3 standard errors):
  in large windows each small shift is significant, in small windows large shifts occur by chance.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from app.database.followup import FollowedUpPrediction
from app.evaluation.clusters import Clusters, of_patients
from app.evaluation.drift import Drift, control_limits, drift
from app.evaluation.metrics import (
    Array,
    Estimate,
    Labels,
    auc,
    brier,
    calibration_in_the_large,
    calibration_slope,
    wilson_of,
)
from app.evaluation.recalibration import FEWEST_EVENTS
from app.inference import clinical_encoder
from app.registry.manifest import Clinical, Manifest, VariableKind
from app.sdk.clinical import ClinicalRecord
from app.sdk.errors import RlvoError

LARGE_SHIFT, STANDARD_ERRORS = 0.5, 3.0
OUT_OF_DISTRIBUTION = "out-of-distribution"


class WindowLength(StrEnum):
    """Length of a window."""

    DAY = "day"
    WEEK = "week"
    MONTH = "month"

    def start(self, time: datetime) -> datetime:
        """Return the start of the window that contains ``time``: midnight, Monday or first of the month, in UTC."""
        day = time.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
        if self is WindowLength.WEEK:
            return day - timedelta(days=day.weekday())
        return day.replace(day=1) if self is WindowLength.MONTH else day


@dataclass(frozen=True)
class InputShift:
    """Window mean minus training mean of one variable, in training standard deviations, over ``known`` patients.

    ``missing`` is the share of patients without a value.
    """

    variable: str
    deviations: float
    known: int
    missing: float

    @property
    def signal(self) -> bool:
        """Whether the shift is large and significant."""
        return self.known > 0 and abs(self.deviations) > max(LARGE_SHIFT, STANDARD_ERRORS / np.sqrt(self.known))


@dataclass(frozen=True)
class ObservedCalibration:
    """Calibration over patients with a known outcome.

    ``expected`` is the mean probability, ``observed`` the refractory share, ``low`` to ``high`` its 95 % interval;
    ``limits`` are the control limits of the share.
    """

    patients: int
    expected: float
    observed: float
    low: float
    high: float
    limits: tuple[float, float]
    brier: float
    auc: float | None

    @property
    def signal(self) -> bool:
        """Whether the refractory share is outside of its control limits."""
        return not self.limits[0] <= self.observed <= self.limits[1]


@dataclass(frozen=True)
class MonitorWindow:
    """Results of one window; ``agreement`` is None without reviews, ``calibration`` without outcomes."""

    start: datetime
    predictions: int
    probability: float
    reviews: int
    agreement: float | None
    out_of_distribution: float
    calibration: ObservedCalibration | None
    shifts: tuple[InputShift, ...]

    @property
    def signals(self) -> list[str]:
        """Texts of all signals of the window."""
        signals = [f"{shift.variable} {shift.deviations:+.1f} SD" for shift in self.shifts if shift.signal]
        if self.calibration is not None and self.calibration.signal:
            signals.append(
                f"calibration: {self.calibration.expected:.0%} expected, {self.calibration.observed:.0%} observed"
            )
        return signals


@dataclass(frozen=True)
class MonitorReport:
    """All windows, oldest first, and the calibration over all of them.

    ``slope`` and ``in_the_large`` are 1 and 0 for a calibrated version, and None if all outcomes are equal.
    ``labels`` and ``probabilities`` are those of the patients with a known outcome, shape (patients,).
    """

    windows: list[MonitorWindow]
    overall: ObservedCalibration | None
    slope: Estimate | None
    in_the_large: Estimate | None
    drift: Drift
    labels: Labels = field(repr=False)
    probabilities: Array = field(repr=False)

    @property
    def signals(self) -> dict[datetime, list[str]]:
        """Signals by the start of their window; windows without signals are omitted."""
        return {window.start: window.signals for window in self.windows if window.signals}


def report(followed: Iterable[FollowedUpPrediction], manifest: Manifest, length: WindowLength) -> MonitorReport:
    """Evaluate the predictions of one version, oldest first, in windows of the given length.

    Only the predictions of one window are in memory at once.
    """
    windows: list[MonitorWindow] = []
    known: list[tuple[Labels, Array]] = []
    subjects: list[str] = []
    for start, of_window in groupby(followed, lambda one: length.start(one.created)):
        patients = list(of_window)
        windows.append(_window(start, patients, manifest))
        known.append(_outcomes(patients))
        subjects += _subjects(patients)
    labels, probabilities = (np.concatenate(parts) for parts in zip(*known, strict=True)) if known else _outcomes([])
    clusters = of_patients(np.array(subjects))
    slope = in_the_large = None
    if 0 < labels.sum() < len(labels):
        slope = calibration_slope(labels, probabilities, clusters=clusters)
        in_the_large = calibration_in_the_large(labels, probabilities, clusters=clusters)
    return MonitorReport(
        windows,
        _calibration(labels, probabilities, clusters),
        slope,
        in_the_large,
        drift(labels, probabilities, clusters),
        labels,
        probabilities,
    )


def _window(start: datetime, patients: Sequence[FollowedUpPrediction], manifest: Manifest) -> MonitorWindow:
    verdicts = [agrees for one in patients for agrees in one.verdicts]
    return MonitorWindow(
        start=start,
        predictions=len(patients),
        probability=float(np.mean([one.probability for one in patients])),
        reviews=len(verdicts),
        agreement=float(np.mean(verdicts)) if verdicts else None,
        out_of_distribution=float(np.mean([OUT_OF_DISTRIBUTION in one.flags for one in patients])),
        calibration=_calibration(*_outcomes(patients), of_patients(np.array(_subjects(patients)))),
        shifts=tuple(_shifts(patients, manifest.clinical)),
    )


def _outcomes(patients: Sequence[FollowedUpPrediction]) -> tuple[Labels, Array]:
    known = [one for one in patients if one.refractory is not None]
    labels = np.asarray([one.refractory for one in known], dtype=np.int64)
    return labels, np.asarray([one.probability for one in known], dtype=np.float64)


def _subjects(patients: Sequence[FollowedUpPrediction]) -> list[str]:
    """Subject of each prediction with a known outcome, "" if unknown; callers may number their subjects alike."""
    return [f"{one.caller}\n{one.subject}" if one.subject else "" for one in patients if one.refractory is not None]


def _calibration(labels: Labels, probabilities: Array, clusters: Clusters) -> ObservedCalibration | None:
    if not len(labels):
        return None
    low, high = wilson_of(labels == 1, clusters)
    both = 0 < labels.sum() < len(labels)
    return ObservedCalibration(
        patients=len(labels),
        expected=float(probabilities.mean()),
        observed=float(labels.mean()),
        low=low,
        high=high,
        limits=control_limits(probabilities, clusters),
        brier=brier(labels, probabilities),
        auc=auc(labels, probabilities) if both else None,
    )


def _shifts(patients: Sequence[FollowedUpPrediction], described: Clinical) -> Iterator[InputShift]:
    """Yield the shift of each variable, in the order of the manifest."""
    encoded = [record for one in patients if (record := _encoded(one, described)) is not None]
    column = 0
    for index, variable in enumerate(described.variables):
        width = variable.width
        known = [one.values[column : column + width] for one in encoded if not one.missing[index]]
        column += width
        deviations = 0.0
        if known:
            difference = np.mean(known, axis=0) - _mean(variable.kind, variable.category_means, width)
            scaled = difference / _standard_deviation(variable.kind, variable.category_means, width)
            deviations = float(scaled[np.abs(scaled).argmax()])
        missing = 1 - len(known) / len(encoded) if encoded else 1.0
        yield InputShift(clinical_name(variable.name), deviations, len(known), missing)


def _encoded(one: FollowedUpPrediction, described: Clinical) -> clinical_encoder.EncodedRecord | None:
    """Encode the record as the network input; None if the manifest cannot encode it."""
    try:
        return clinical_encoder.encode(ClinicalRecord.model_validate(dict(one.clinical)), described, one.perfusion)
    except (RlvoError, ValueError):
        return None


def _mean(kind: VariableKind, frequencies: Sequence[float], width: int) -> NDArray[np.float64]:
    """Training mean of an encoded variable: numbers and flags are standardised, categories are 0 or 1."""
    return np.asarray(frequencies) if kind is VariableKind.CATEGORY else np.zeros(width)


def _standard_deviation(kind: VariableKind, frequencies: Sequence[float], width: int) -> NDArray[np.float64]:
    """Training standard deviation of an encoded variable; category frequencies are limited to 1 to 99 %."""
    if kind is not VariableKind.CATEGORY:
        return np.ones(width)
    share = np.clip(np.asarray(frequencies), 0.01, 0.99)
    return np.asarray(np.sqrt(share * (1 - share)))


def clinical_name(name: str) -> str:
    """Return a name without its section: ``perfusion.core_ml`` gives ``core_ml``."""
    return name.rpartition(".")[2]


def proposal(result: MonitorReport, name: str) -> str:
    """What to do about the calibration of the version ``name``, as NAME@VERSION; "" if there is nothing to do."""
    found = result.drift
    if not found.changed:
        return ""
    validate = f"rlvo validate {name} --from-outcomes"
    if min(found.events, found.patients - found.events) < FEWEST_EVENTS:
        return f"Look at it with `{validate}`; there are too few outcomes to recalibrate."
    return (
        f"Look at it with `{validate}`, and if the patients are those that the version is meant for, recalibrate it on "
        f"a cohort of these patients with `rlvo recalibrate {name}`."
    )


def table(result: MonitorReport) -> tuple[list[str], list[list[str]]]:
    """Return heads and rows: one row per window, then one for all windows; ``!`` marks a signal."""
    heads = ["from", "patients", "probability", "outcomes", "expected", "observed (95 %)", "limits", "Brier", "AUC"]
    heads += ["agreement", "unlike training", "largest shift"]
    rows = [
        [
            f"{window.start:%Y-%m-%d}",
            str(window.predictions),
            f"{window.probability:.0%}",
            *_calibration_cells(window.calibration),
            _share(window.agreement, window.reviews),
            f"{window.out_of_distribution:.0%}",
            _largest(window.shifts),
        ]
        for window in result.windows
    ]
    patients = sum(window.predictions for window in result.windows)
    if len(result.windows) > 1:
        rows.append(["all", str(patients), "", *_calibration_cells(result.overall), "", "", ""])
    return heads, rows


def document(result: MonitorReport) -> dict[str, object]:
    """All numbers of the windows and of their signals, for JSON."""
    return {
        "windows": [
            asdict(window) | {"start": window.start.isoformat(), "signals": window.signals} for window in result.windows
        ],
        "overall": None if result.overall is None else asdict(result.overall),
        "slope": None if result.slope is None else asdict(result.slope),
        "in_the_large": None if result.in_the_large is None else asdict(result.in_the_large),
        "drift": asdict(result.drift)
        | {"detectable": result.drift.detectable if np.isfinite(result.drift.detectable) else None}
        | {"changed": result.drift.changed, "silent": result.drift.silent, "text": result.drift.text},
    }


def _calibration_cells(calibration: ObservedCalibration | None) -> list[str]:
    if calibration is None:
        return ["0", "", "", "", "", ""]
    mark = " !" if calibration.signal else ""
    return [
        str(calibration.patients),
        f"{calibration.expected:.0%}",
        f"{calibration.observed:.0%} ({calibration.low:.0%}-{calibration.high:.0%}){mark}",
        f"{calibration.limits[0]:.0%}-{calibration.limits[1]:.0%}",
        f"{calibration.brier:.3f}",
        "" if calibration.auc is None else f"{calibration.auc:.2f}",
    ]


def _share(share: float | None, count: int) -> str:
    return "" if share is None else f"{share:.0%} of {count}"


def _largest(shifts: Sequence[InputShift]) -> str:
    """Largest shift as text; a signal has priority over a larger shift that is not significant."""
    if not shifts:
        return ""
    largest = max(shifts, key=lambda shift: (shift.signal, abs(shift.deviations)))
    return f"{largest.variable} {largest.deviations:+.1f} SD{' !' if largest.signal else ''}"


def by_variable(result: MonitorReport) -> Mapping[str, list[InputShift]]:
    """Return the shifts of each variable, in the order of the windows."""
    grouped: dict[str, list[InputShift]] = {}
    for window in result.windows:
        for shift in window.shifts:
            grouped.setdefault(shift.variable, []).append(shift)
    return grouped
