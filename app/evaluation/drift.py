"""Whether predicted probabilities still fit the outcomes that come in one after the other, and what can be said yet.

Design notes:
- The test may be looked at after every outcome. It is a mixture of likelihood ratios: under calibrated probabilities
  its expectation is 1 at every time, so it reaches 1 / ALPHA in at most ALPHA of all sequences (Ville's inequality;
  Wald 1945; Ramdas et al., Stat Sci 2023;38:576).
- The alternatives multiply all odds by the same factor (Steiner et al., Biostatistics 2000;1:441).
- A quiet test says little with few events. So the smallest change that the outcomes would probably show is told, too.
- Several studies of a patient share a part of their outcome, so the test takes the first one of each. Control limits
  allow for full dependence: the SDs of the studies of a patient are added.
- Control limits of one window are those of a chart of risk-adjusted proportions, three standard deviations.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import exp, log, sqrt

import numpy as np
from scipy.special import expit, logit

from app.evaluation.clusters import Clusters, totals
from app.evaluation.metrics import Array, Labels

ALPHA = 0.05
FACTORS = (1 / 3, 1 / 2, 1 / 1.5, 1.5, 2.0, 3.0)
"""Changes of the odds that the test looks for, all with the same weight."""
RELEVANT = 1.5
"""Ratio of observed to expected outcomes (or of expected to observed) that a monitor must be able to see."""
LIMIT_SD = 3.0
LARGEST_SHOWN = 10_000
"""Evidence above which only this bound is shown."""
_QUANTILES = 1.959964 + 0.841621  # two-sided level of 5 %, power of 80 %


@dataclass(frozen=True)
class Drift:
    """What the outcomes of n patients say about the calibration.

    Attributes:
        patients, events, expected: Patients with a known outcome, events among them, and the sum of the probabilities.
        evidence: Largest value that the test has reached; at 20 (1 / ``ALPHA``) or more the calibration has changed.
        crossed: Number of the patient (from 1) at whom it was reached; None if never.
        detectable: Ratio of observed to expected events, above 1, that is seen with a power of 80 %; inf: none.
        needed: Expected events with which a ratio of 1.5 (``RELEVANT``) would be seen with that power.
    """

    patients: int
    events: int
    expected: float
    evidence: float
    crossed: int | None
    detectable: float
    needed: float

    @property
    def changed(self) -> bool:
        """Whether the calibration has changed."""
        return self.crossed is not None

    @property
    def silent(self) -> bool:
        """Whether nothing can be said: no change was found, and a relevant one would probably not have been."""
        return not self.changed and self.detectable > RELEVANT

    @property
    def text(self) -> str:
        """The finding in words."""
        counted = f"{self.events} event{'' if self.events == 1 else 's'} ({self.expected:.1f} expected)"
        if self.changed:
            return (
                f"{counted} in {self.patients} patients: the calibration has changed "
                f"(evidence {_evidence_text(self.evidence)}, limit {1 / ALPHA:.0f}, reached at patient {self.crossed})"
            )
        if self.silent:
            seen = "no change" if np.isinf(self.detectable) else f"only a ratio of {self.detectable:.1f} or more"
            return (
                f"{counted}: nothing can be said yet; {seen} would be seen, and about {self.needed:.0f} expected "
                f"events are needed to see a ratio of {RELEVANT:g}"
            )
        return (
            f"{counted} in {self.patients} patients: no change; a ratio of {self.detectable:.2f} would have been seen"
        )


def _evidence_text(value: float) -> str:
    """Evidence as text; it grows without limit, and a number of a hundred digits says no more than a bound."""
    return f"over {LARGEST_SHOWN:,}" if value > LARGEST_SHOWN else f"{value:.0f}"


def drift(labels: Labels, probabilities: Array, clusters: Clusters = None) -> Drift:
    """Judge outcomes and probabilities, (n,) each, in the order in which the patients came.

    ``clusters`` (n,) number the patients if some have several studies: the first study of each counts.
    """
    if clusters is not None:
        first = np.sort(np.unique(clusters, return_index=True)[1])
        labels, probabilities = labels[first], probabilities[first]
    expected, variance = float(probabilities.sum()), float((probabilities * (1 - probabilities)).sum())
    # Of a log ratio of observed to expected events, by the delta method.
    rest = variance / expected if expected else 1.0
    detectable = exp(_QUANTILES * sqrt(rest / expected)) if expected else np.inf
    path = evidence(labels, probabilities)
    reached = np.flatnonzero(path >= 1 / ALPHA)
    return Drift(
        patients=len(labels),
        events=int(labels.sum()),
        expected=expected,
        evidence=float(path.max(initial=1.0)),
        crossed=int(reached[0]) + 1 if len(reached) else None,
        detectable=float(detectable),
        needed=rest * (_QUANTILES / log(RELEVANT)) ** 2,
    )


def evidence(labels: Labels, probabilities: Array) -> Array:
    """Evidence (n,) against calibrated probabilities (n,) after each outcome (n,)."""
    if not len(labels):
        return np.ones(0)
    bounded = np.clip(probabilities, 1e-12, 1 - 1e-12)
    changed = expit(logit(bounded) + np.log(FACTORS)[:, None])
    ratios = np.where(labels, np.log(changed / bounded), np.log1p(-changed) - np.log1p(-bounded))
    sums = np.cumsum(ratios, axis=1)
    largest = sums.max(axis=0)
    logs = largest + np.log(np.exp(sums - largest).mean(axis=0))
    return np.asarray(np.exp(np.minimum(logs, 600.0)))


def control_limits(probabilities: Array, clusters: Clusters = None) -> tuple[float, float]:
    """Limits of the observed share among studies with these probabilities (n,), if they are calibrated.

    ``clusters`` (n,) number the patients if some have several studies.
    """
    mean = float(probabilities.mean())
    deviations = np.sqrt(probabilities * (1 - probabilities))
    of_patients = deviations if clusters is None else totals(deviations, clusters)
    error = sqrt(float((of_patients**2).sum())) / len(probabilities)
    return max(mean - LIMIT_SD * error, 0.0), min(mean + LIMIT_SD * error, 1.0)
