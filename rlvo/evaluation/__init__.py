"""Public Python interface for notebooks: evaluate, predict and plot on arrays and data frames. Research use only.

``import rlvo.evaluation`` needs the package of the service (``pip install .``). docs/python-api.md lists everything.

Design notes:
- Every function takes values (n,) or names of columns of ``data``. A missing value, an unequal length or index, or a
  value out of range is an error; nothing is dropped silently.
- The numbers are those of ``app.evaluation``, so they equal those of the command line.
- The folder ``rlvo`` has no ``__init__.py``: the client (``pip install ./app/sdk``) has it (docs/decisions/0095).
"""

from __future__ import annotations

from app.evaluation.centres import Centres
from app.evaluation.drift import Drift
from app.evaluation.metrics import Comparison, Estimate
from app.evaluation.pooling import Pooled
from app.evaluation.recalibration import Recalibration
from app.evaluation.validation import Validation
from rlvo.evaluation._performance import brier_score, calibration, compare_auc, decisions, discrimination, net_benefit
from rlvo.evaluation._plots import plot_calibration, plot_forest, plot_net_benefit, plot_roc
from rlvo.evaluation._report import validate, write_report
from rlvo.evaluation._results import (
    BrierScore,
    Calibration,
    Decisions,
    Discrimination,
    NetBenefit,
    PooledSites,
    SampleSize,
    Subgroups,
)
from rlvo.evaluation._sites import pool_aggregates, pool_estimates, pool_sites, subgroups
from rlvo.evaluation._updates import drift, recalibrate, recalibrated, study_size
from rlvo.evaluation._versions import Version, load_version, predict_cohort

__all__ = [
    "BrierScore",
    "Calibration",
    "Centres",
    "Comparison",
    "Decisions",
    "Discrimination",
    "Drift",
    "Estimate",
    "NetBenefit",
    "Pooled",
    "PooledSites",
    "Recalibration",
    "SampleSize",
    "Subgroups",
    "Validation",
    "Version",
    "brier_score",
    "calibration",
    "compare_auc",
    "decisions",
    "discrimination",
    "drift",
    "load_version",
    "net_benefit",
    "plot_calibration",
    "plot_forest",
    "plot_net_benefit",
    "plot_roc",
    "pool_aggregates",
    "pool_estimates",
    "pool_sites",
    "predict_cohort",
    "recalibrate",
    "recalibrated",
    "study_size",
    "subgroups",
    "validate",
    "write_report",
]
