"""File of one site for federated fits: outcomes, log-odds and features of its patients. It stays in the hospital.

Design notes:
- The file is a NumPy archive without pickled objects; only its owner can read it.
- Beside it, ``<name>.released.json`` counts the numbers that left the site, see ``app.evaluation.federated``.
"""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from app.core.filesystem import private_file
from app.evaluation import logistic, rounds
from app.evaluation.metrics import Array, Labels
from app.evaluation.rounds import Kind, SitePatients
from app.evaluation.validation import PredictionTable
from app.sdk.errors import InvalidRequest


@dataclass(frozen=True)
class SiteData:
    """Patients (n) of one site with a known outcome.

    Attributes:
        predictor: Version as NAME@VERSION, or the name of another predictor.
        digest: Digest of the version; "" for another predictor.
        labels: (n,) 0/1.
        log_odds: (n,) predicted.
        features: (folds, n, c) standardised inputs of the heads; None for another predictor.
        fold_log_odds: (folds, n) calibrated log-odds of each fold; None for another predictor.
    """

    predictor: str
    digest: str
    labels: Labels
    log_odds: Array
    features: Array | None = None
    fold_log_odds: Array | None = None

    @classmethod
    def of_table(cls, table: PredictionTable, predictor: str, digest: str = "") -> SiteData:
        """Patients of a table whose outcome is known, without features."""
        known = table.known
        labels = table.outcomes[known].astype(np.int64)
        return cls(predictor, digest, labels, logistic.log_odds(table.probabilities[known]))

    def patients(self, kind: Kind) -> SitePatients:
        """The patients as the fits of a plan see them.

        Raises:
            InvalidRequest: The file has no features.
        """
        if kind is Kind.RECALIBRATION:
            return rounds.recalibration_patients(self.labels, self.log_odds)
        if self.features is None or self.fold_log_odds is None:
            raise InvalidRequest("The file of the site has no features: make it from a version and a cohort")
        return rounds.head_patients(self.labels, self.features, self.fold_log_odds)

    def save(self, path: Path) -> None:
        """Write the file in one step; only its owner can read it."""
        arrays: dict[str, Any] = {"labels": self.labels, "log_odds": self.log_odds}
        if self.features is not None and self.fold_log_odds is not None:
            arrays |= {"features": self.features, "fold_log_odds": self.fold_log_odds}
        with private_file(path) as file:
            np.savez(file, predictor=np.array(self.predictor), digest=np.array(self.digest), **arrays)

    @classmethod
    def load(cls, path: Path) -> SiteData:
        """Read the file.

        Raises:
            InvalidRequest: It is no such file.
        """
        try:
            with np.load(path, allow_pickle=False) as stored:
                found = cls(
                    predictor=str(stored["predictor"]),
                    digest=str(stored["digest"]),
                    labels=np.asarray(stored["labels"], np.int64),
                    log_odds=np.asarray(stored["log_odds"], np.float64),
                    features=np.asarray(stored["features"], np.float64) if "features" in stored else None,
                    fold_log_odds=np.asarray(stored["fold_log_odds"], np.float64) if "features" in stored else None,
                )
        except (ValueError, KeyError, EOFError, TypeError, AttributeError, zipfile.BadZipFile) as error:
            raise InvalidRequest(f"{path.name} is no file of `rlvo validate --site-file`") from error
        found.check(path.name)
        return found

    def check(self, name: str) -> None:
        """Check shapes and values; ``name`` is that of the file.

        Raises:
            InvalidRequest: They do not fit.
        """
        count = len(self.labels)
        fits = self.labels.ndim == 1 and self.log_odds.shape == (count,) and set(self.labels.tolist()) <= {0, 1}
        arrays = [self.log_odds]
        if self.features is not None and self.fold_log_odds is not None:
            fits = fits and self.features.ndim == 3 and self.features.shape[1] == count
            fits = fits and self.fold_log_odds.shape == self.features.shape[:2]
            arrays += [self.features, self.fold_log_odds]
        if not fits or not all(np.isfinite(array).all() for array in arrays):
            raise InvalidRequest(f"{name} is damaged: shapes or values do not fit; make it again")
