"""Several studies of one patient: variances and resamples that draw patients and not studies.

Design notes:
- Clusters are numbers (n,) of the patients, or None if each study is of another patient. With None every number is that
  of independent patients.
- The AUC has the variance of Obuchowski (Biometrics 1997;53:567), which is DeLong's with one study of each patient.
- Means and regressions have the sandwich variance of sums over patients (Liang & Zeger, Biometrika 1986;73:13), times
  k / (k - 1) for k patients.
- A share has Wilson's interval with n over the design effect (Rao & Scott, Biometrics 1992;48:577).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Array = NDArray[np.float64]
Labels = NDArray[np.int64]
Clusters: TypeAlias = "Labels | None"


def of_patients(patients: NDArray[np.str_] | Labels | None) -> Clusters:
    """Clusters (n,) by the patients (n,), "" if unknown; None if no patient has several studies."""
    if patients is None or not len(patients):
        return None
    _, numbers, sizes = np.unique(patients, return_inverse=True, return_counts=True)
    clusters = np.asarray(numbers, np.int64)
    if patients.dtype.kind == "U":
        unknown = np.asarray(patients == "")  # each of them may be another patient
        clusters = np.where(unknown, len(sizes) + np.arange(len(clusters)), clusters)
    clusters = np.unique(clusters, return_inverse=True)[1].astype(np.int64)
    return clusters if int(clusters.max()) + 1 < len(clusters) else None


def chosen(clusters: Clusters, rows: NDArray[np.bool_] | Labels) -> Clusters:
    """Clusters of some rows; None if each of these is of another patient."""
    return None if clusters is None else of_patients(clusters[rows])


def count(clusters: Clusters, studies: int) -> int:
    """Number of patients of these studies."""
    return studies if clusters is None else len(np.unique(clusters))


def totals(values: Array, clusters: Labels) -> Array:
    """Sum of the values (n, ...) over each cluster: (k, ...)."""
    places = np.unique(clusters, return_inverse=True)[1]
    sums = np.zeros((int(places.max()) + 1, *values.shape[1:]))
    np.add.at(sums, places, values)
    return sums


class Resampler:
    """Draws the rows of bootstrap samples of the patients: all studies of each drawn patient."""

    def __init__(self, studies: int, clusters: Clusters, rng: np.random.Generator) -> None:
        self._studies, self._rng = studies, rng
        self._members: list[Labels] | None = None
        if clusters is not None:
            order = np.argsort(clusters, kind="stable")
            self._members = np.split(order, np.flatnonzero(np.diff(clusters[order])) + 1)

    def rows(self) -> Labels:
        """Rows of one sample."""
        if self._members is None:
            return self._rng.integers(0, self._studies, self._studies)
        drawn = self._rng.integers(0, len(self._members), len(self._members))
        return np.concatenate([self._members[place] for place in drawn])


def error_of_mean(influence: Array, clusters: Clusters) -> float:
    """Standard error of the mean of an influence function (n,)."""
    if clusters is None:
        return float(influence.std(ddof=1) / np.sqrt(len(influence)))
    sums = totals(influence - influence.mean(), clusters)
    if len(sums) < 2:
        return float("nan")
    return float(np.sqrt(len(sums) / (len(sums) - 1) * (sums**2).sum()) / len(influence))


def sandwich(covariance: Array, scores: Array, clusters: Clusters) -> Array:
    """Covariance (p, p) of the coefficients of a regression from its model-based one and its scores (n, p)."""
    if clusters is None:
        return covariance
    sums = totals(scores, clusters)
    factor = len(sums) / (len(sums) - 1) if len(sums) > 1 else np.nan
    return np.asarray(factor * covariance @ (sums.T @ sums) @ covariance)


def design_effect(values: Array, clusters: Clusters) -> float:
    """Variance of the mean of values (n,) over that of n independent patients, at least 1.

    Without any variance between the values it is the mean number of studies of a patient.
    """
    if clusters is None:
        return 1.0
    patients = count(clusters, len(values))
    variance = float(values.var(ddof=1)) / len(values) if len(values) > 1 else 0.0
    if variance <= 0 or patients < 2:
        return len(values) / patients
    return max(error_of_mean(values, clusters) ** 2 / variance, 1.0)


def placements(labels: Labels, scores: Array) -> tuple[Array, Array]:
    """Share of negatives below each positive, and share of positives above each negative."""
    positives, negatives = labels == 1, labels == 0
    ranks = stats.rankdata(scores)
    by_positive = (ranks[positives] - stats.rankdata(scores[positives])) / int(negatives.sum())
    by_negative = 1 - (ranks[negatives] - stats.rankdata(scores[negatives])) / int(positives.sum())
    return np.asarray(by_positive), np.asarray(by_negative)


def by_outcome(labels: Labels, clusters: Clusters) -> tuple[int, int]:
    """Patients with a positive study, and patients with a negative one."""
    return (
        count(chosen(clusters, labels == 1), int((labels == 1).sum())),
        count(chosen(clusters, labels == 0), int((labels == 0).sum())),
    )


def rarer_outcome(labels: Labels, clusters: Clusters) -> int:
    """Patients with a study of the rarer outcome; several studies of one patient are no more events than one."""
    return min(by_outcome(labels, clusters))


def auc_covariance(labels: Labels, models: Sequence[Array], clusters: Clusters) -> tuple[Array, Array, Array]:
    """Covariance of the AUCs of several models on the same studies (Obuchowski 1997, equation 3).

    Args:
        labels: (n,) 0/1, at least two of each.
        models: Scores (n,) of each of m models.
        clusters: (n,) patients.

    Returns:
        Part (m, m) of the positive studies, part of the negative ones, and twice the part of patients with both, which
        is 0 with one study of each patient.
    """
    parts = zip(*(placements(labels, scores) for scores in models), strict=True)
    (positive, negative), counts = (np.array(part) for part in parts), [int((labels == v).sum()) for v in (1, 0)]
    if clusters is None:
        zero = np.zeros((len(models), len(models)))
        of_positives, of_negatives = np.atleast_2d(np.cov(positive)), np.atleast_2d(np.cov(negative))
        return of_positives / counts[0], of_negatives / counts[1], zero
    sums = []
    for value, placed, size in ((1, positive, counts[0]), (0, negative, counts[1])):
        centred = np.zeros((len(labels), len(models)))
        centred[labels == value] = (placed - placed.mean(axis=1, keepdims=True)).T / size
        sums.append(totals(centred, clusters))
    patients, every = by_outcome(labels, clusters), count(clusters, len(labels))
    scales = [size / (size - 1) if size > 1 else np.nan for size in (*patients, every)]
    crossed = sums[0].T @ sums[1]
    return (scales[0] * sums[0].T @ sums[0], scales[1] * sums[1].T @ sums[1], scales[2] * (crossed + crossed.T))
