"""Recalibration at a site, drift over time, and the size of a study."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from app.evaluation import drift as drift_test
from app.evaluation import recalibration, sample_size
from app.evaluation.drift import Drift
from app.evaluation.recalibration import Recalibration
from app.evaluation.sample_size import Predictions
from rlvo.evaluation import _inputs
from rlvo.evaluation._inputs import Values
from rlvo.evaluation._results import SampleSize


def recalibrate(
    outcome: Values,
    probability: Values,
    *,
    patient: Values | None = None,
    data: pd.DataFrame | None = None,
    seed: int = 0,
) -> Recalibration:
    """Choose and fit an update of the probabilities: none, a new intercept, or a new intercept and slope.

    The choice is a closed test (Vergouwe et al., Stat Med 2017;36:4529), and the update is shrunk. It changes numbers
    only; ``rlvo recalibrate`` writes the same update as a new model version.

    Args:
        outcome: (n,) 0/1, or the name of its column.
        probability: (n,) predicted, 0 to 1, or the name of its column.
        patient: (n,) patients, or the name of their column, if some have several studies; a missing one is another
            patient.
        data: Table of the columns that are named.
        seed: Seed of the outcomes that the test draws if events are few.

    Returns:
        The update; ``recalibrated`` applies it.

    Raises:
        ValueError: As for ``discrimination``.
    """
    labels, own = _inputs.labels_and_probabilities(outcome, probability, data)
    clusters = _inputs.clusters(patient, outcome, data)
    return recalibration.recalibrate(labels, own, seed=seed, clusters=clusters)


def recalibrated(update: Recalibration, probability: Values, *, data: pd.DataFrame | None = None) -> pd.Series[float]:
    """Probabilities after an update.

    Args:
        update: Result of ``recalibrate``.
        probability: (n,) predicted, 0 to 1, or the name of its column.
        data: Table of the column that is named.

    Returns:
        New probabilities (n,), with the index of the given ones.

    Raises:
        ValueError: A probability is missing or not between 0 and 1.
    """
    index = _inputs.column(probability, "probability", data).index
    own = _inputs.shares(probability, "probability", data)
    return pd.Series(np.array(update.apply(own)), index=index, name="recalibrated")


def drift(
    outcome: Values, probability: Values, *, patient: Values | None = None, data: pd.DataFrame | None = None
) -> Drift:
    """Whether the probabilities still fit the outcomes, by a test that may be looked at after every patient.

    The test is a mixture of likelihood ratios; a calibrated model is called changed in at most 5 % of all sequences,
    whenever one looks (Ville's inequality; Ramdas et al., Stat Sci 2023;38:576). ``rlvo monitor`` uses it.

    Args:
        outcome: (n,) 0/1 in the order in which the patients came, or the name of its column. All may be equal.
        probability: (n,) predicted, 0 to 1, or the name of its column.
        patient: (n,) patients, or the name of their column, if some have several studies: the first study of each
            counts. A missing one is another patient.
        data: Table of the columns that are named.

    Returns:
        Events, expected events, evidence, and what could have been seen; ``text`` says it in words.

    Raises:
        ValueError: A value is missing or out of range, or the lengths or indexes differ.
    """
    labels, own = _inputs.labels_and_probabilities(outcome, probability, data, needs_both=False)
    return drift_test.drift(labels, own, _inputs.clusters(patient, outcome, data))


def study_size(
    prevalence: float,
    auc: float,
    *,
    threshold: float | None = None,
    oe_width: float = 0.2,
    slope_width: float = 0.2,
    auc_width: float = 0.1,
    benefit_width: float = 0.2,
) -> SampleSize:
    """Patients that a validation and a recalibration need (Riley et al., Stat Med 2021;40:4230; BMJ 2024;384:e074821).

    ``rlvo plan`` prints the same numbers.

    Args:
        prevalence: Expected share of patients with the outcome, 0.001 to 0.999.
        auc: Expected AUC, 0.51 to 0.99.
        threshold: Threshold probability, for the net benefit; None: without this criterion.
        oe_width: Wanted width of the 95 % interval of O/E.
        slope_width: That of the calibration slope.
        auc_width: That of the AUC.
        benefit_width: That of the standardised net benefit.

    Returns:
        The criteria and the largest number of patients.

    Raises:
        ValueError: A number is out of its range.
    """
    ranges: dict[str, tuple[Any, float, float]] = {
        "prevalence": (prevalence, 0.001, 0.999),
        "auc": (auc, 0.51, 0.99),
        "threshold": (threshold, 0.001, 0.999),
        "oe_width": (oe_width, 0.01, 10),
        "slope_width": (slope_width, 0.01, 10),
        "auc_width": (auc_width, 0.005, 0.5),
        "benefit_width": (benefit_width, 0.01, 10),
    }
    for name, (value, low, high) in ranges.items():
        if value is not None and not low <= value <= high:
            raise ValueError(f"{name}: expected a number between {low:g} and {high:g}")
    predictions = Predictions.of(prevalence, auc)
    criteria = sample_size.validation(
        predictions,
        prevalence,
        auc,
        oe_width=oe_width,
        slope_width=slope_width,
        auc_width=auc_width,
        threshold=threshold,
        benefit_width=benefit_width,
    )
    patients = max(one.patients for one in criteria)
    return SampleSize(
        tuple(criteria), tuple(sample_size.recalibration(predictions)), patients, round(prevalence * patients)
    )
