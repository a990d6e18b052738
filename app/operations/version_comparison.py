"""`rlvo compare`: two versions on patients whose outcome is on record.

Design notes:
- A patient is one subject on one UTC day, or one prediction without a subject. The last score of each version counts.
- A subject of several days is one cluster: intervals and p values draw subjects.
- A version's score is its stored answer, or its stored score as a shadow of the version that answered.
- An outcome that is on record for either prediction is the patient's. Contradicting outcomes leave the patient out.
- With fewer than ``LEAST_EVENTS`` patients of the rarer outcome nothing is estimated.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, date

import numpy as np

from app.core.csv_text import Cell
from app.database.followup import LiveScore
from app.evaluation.clusters import Clusters, of_patients
from app.evaluation.metrics import (
    Array,
    Comparison,
    Estimate,
    Labels,
    auc_estimate,
    brier_estimate,
    calibration_in_the_large,
    calibration_slope,
    delong,
)
from app.registry.manifest import Manifest
from app.sdk.errors import InvalidRequest
from app.training.options import Target

LEAST_EVENTS = 10
"""Fewest patients of the rarer outcome for an estimate: as for naming the best model of a training run."""

Patient = tuple[str, str, date | None]


@dataclass(frozen=True)
class VersionScores:
    """Scores of one version on some patients; the estimates are None if one outcome is too rare."""

    version: str
    patients: int
    events: int
    auc: Estimate | None = None
    brier: Estimate | None = None
    in_the_large: Estimate | None = None
    slope: Estimate | None = None


@dataclass(frozen=True)
class VersionComparison:
    """Comparison of two versions.

    Attributes:
        own: Each version on all of its patients with an outcome.
        shared: Both versions on the same patients.
        difference: AUC of the first minus that of the second on the same patients; None if one outcome is too rare.
        contradicting: Patients with contradicting outcomes, which are left out.
        labels: Outcomes (n,) of the same patients.
        probabilities: Probabilities (n,) of both versions for the same patients.
    """

    own: tuple[VersionScores, VersionScores]
    shared: tuple[VersionScores, VersionScores]
    difference: Comparison | None
    contradicting: int
    labels: Labels = field(repr=False)
    probabilities: tuple[Array, Array] = field(repr=False)


def check_targets(manifests: Iterable[Manifest]) -> None:
    """Check that the outcomes on record are the target of every version.

    Raises:
        InvalidRequest: A version predicts another outcome.
    """
    for manifest in manifests:
        if manifest.training.target != Target.RLVO.outcome:
            other = f"{manifest.name}@{manifest.version} predicts {manifest.training.target}"
            raise InvalidRequest(f"{other}, and the outcomes on record are those of {Target.RLVO.outcome}")


def compare(names: tuple[str, str], first: Sequence[LiveScore], second: Sequence[LiveScore]) -> VersionComparison:
    """Compare two versions of these ``names`` by their live scores, oldest first."""
    outcomes: dict[Patient, set[bool]] = {}
    scores: list[dict[Patient, float]] = [{}, {}]
    for own, given in zip(scores, (first, second), strict=True):
        for one in given:
            patient = _patient(one)
            own[patient] = one.probability
            outcomes.setdefault(patient, set()).update(set() if one.refractory is None else {one.refractory})
    known = {patient: min(found) for patient, found in outcomes.items() if len(found) == 1}
    shared = [patient for patient in scores[0] if patient in scores[1] and patient in known]
    labels = np.array([known[patient] for patient in shared], np.int64)
    pair = [np.array([own[patient] for patient in shared], np.float64) for own in scores]
    clusters = _clusters(shared)
    by_version = []
    for name, own in zip(names, scores, strict=True):
        patients = [patient for patient in own if patient in known]
        truth = np.array([known[patient] for patient in patients], np.int64)
        probabilities = np.array([own[patient] for patient in patients], np.float64)
        by_version.append(_scores(name, truth, probabilities, _clusters(patients)))
    return VersionComparison(
        own=(by_version[0], by_version[1]),
        shared=(_scores(names[0], labels, pair[0], clusters), _scores(names[1], labels, pair[1], clusters)),
        difference=delong(labels, pair[0], pair[1], clusters=clusters) if _enough(labels) else None,
        contradicting=sum(len(found) > 1 for found in outcomes.values()),
        labels=labels,
        probabilities=(pair[0], pair[1]),
    )


def table(result: VersionComparison) -> tuple[list[str], list[list[str]]]:
    """Return heads and rows: each version on its own patients, then both on the same patients."""
    heads = ["patients", "version", "n", "with the outcome", "AUC (95 %)", "Brier (95 %)"]
    heads += ["in the large, ideal 0", "slope, ideal 1"]
    groups = (("own", result.own), ("same", result.shared))
    return heads, [[name, *_cells(one)] for name, pair in groups for one in pair]


def document(result: VersionComparison) -> dict[str, object]:
    """All numbers of the comparison, for JSON."""
    return {
        "own": [asdict(one) for one in result.own],
        "same": [asdict(one) for one in result.shared],
        "auc_difference": None if result.difference is None else asdict(result.difference),
        "contradicting": result.contradicting,
    }


def csv_rows(result: VersionComparison) -> tuple[list[str], list[list[Cell]]]:
    """Head and rows of the comparison as numbers, for CSV."""
    names = ("auc", "brier", "in_the_large", "slope")
    heads = ["patients", "version", "n", "events", *(f"{n}{end}" for n in names for end in ("", "_low", "_high"))]
    rows: list[list[Cell]] = []
    for group, pair in (("own", result.own), ("same", result.shared)):
        for one in pair:
            row: list[Cell] = [group, one.version, one.patients, one.events]
            for estimate in (one.auc, one.brier, one.in_the_large, one.slope):
                row += [None] * 3 if estimate is None else [estimate.value, estimate.low, estimate.high]
            rows.append(row)
    return heads, rows


def notes(result: VersionComparison) -> Iterator[str]:
    """Yield the difference on the same patients, or why there is none, and what was left out."""
    one, other = result.shared
    if result.difference is not None:
        yield f"AUC of {one.version} minus {other.version} on the same patients: {result.difference} (DeLong)"
    else:
        rarer = min(one.events, one.patients - one.events)
        yield (
            f"Not compared: the same patients have {rarer} of the rarer outcome; {LEAST_EVENTS} are needed. "
            "Record outcomes with `rlvo outcomes import`, or wait for more patients."
        )
    if result.contradicting:
        yield f"{result.contradicting} patients with contradicting outcomes are left out."


def _patient(one: LiveScore) -> Patient:
    if one.subject is None:
        return one.caller, one.prediction_id, None
    return one.caller, one.subject, one.created.astimezone(UTC).date()


def _clusters(patients: Sequence[Patient]) -> Clusters:
    return of_patients(np.array([f"{caller}\n{subject}" for caller, subject, _ in patients]))


def _enough(labels: Labels) -> bool:
    return int(min(labels.sum(), len(labels) - labels.sum())) >= LEAST_EVENTS


def _scores(version: str, labels: Labels, probabilities: Array, clusters: Clusters) -> VersionScores:
    counts = VersionScores(version, len(labels), int(labels.sum()))
    if not _enough(labels):
        return counts
    # A shadow's probability is a sum of two stored numbers, so rounding can leave the range.
    clipped = np.clip(probabilities, 0.0, 1.0)
    return VersionScores(
        version,
        counts.patients,
        counts.events,
        auc=auc_estimate(labels, clipped, clusters=clusters),
        brier=brier_estimate(labels, clipped, clusters=clusters),
        in_the_large=calibration_in_the_large(labels, clipped, clusters=clusters),
        slope=calibration_slope(labels, clipped, clusters=clusters),
    )


def _cells(one: VersionScores) -> list[str]:
    estimates = (one.auc, one.brier, one.in_the_large, one.slope)
    return [one.version, str(one.patients), str(one.events), *("" if e is None else str(e) for e in estimates)]
