"""Subgroups and sites: scores of groups of patients, and their random-effects means."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from app.core.display_names import NOT_RECORDED
from app.evaluation import centres, pooling, validation
from app.evaluation.centres import Centres
from app.evaluation.pooling import FEWEST_SITES, Pooled
from app.evaluation.validation import POOLED_EVENTS, Scores
from rlvo.evaluation import _inputs
from rlvo.evaluation._inputs import Values
from rlvo.evaluation._results import PooledSites, Subgroups


def subgroups(
    outcome: Values,
    probability: Values,
    by: Values | Sequence[str] | Mapping[str, Values],
    *,
    data: pd.DataFrame | None = None,
) -> Subgroups:
    """AUC, O/E and calibration slope in subgroups.

    A subgroup with fewer than five patients of either outcome has no scores, because they would be noise. Patients
    without a level are the subgroup "not recorded".

    Args:
        outcome: (n,) 0/1, or the name of its column.
        probability: (n,) predicted, 0 to 1, or the name of its column.
        by: Level (n,) of each patient; or the name of a column, a list of names, or levels by name. A number with many
            values is divided first, for example by ``pandas.cut``.
        data: Table of the columns that are named.

    Returns:
        One row for each level of each variable.

    Raises:
        ValueError: As for ``discrimination``, or a variable has other patients or is an undivided number.
    """
    labels, own = _inputs.labels_and_probabilities(outcome, probability, data)
    rows: list[Scores] = []
    for name, values in _variables(by, data).items():
        levels, order = _inputs.levels(
            values, name or "by", data, outcome, probability, most_numbers=_inputs.MOST_LEVELS
        )
        rows += validation.scores_by_level(levels, order, labels, own, prefix=f"{name}: " if name else "")
    return Subgroups(tuple(rows))


def _variables(by: Values | Sequence[str] | Mapping[str, Values], data: pd.DataFrame | None) -> Mapping[str, Values]:
    """Values of each variable by its name; "" for levels without a name."""
    if isinstance(by, Mapping):
        return by
    if isinstance(by, str):
        return {by: by}
    if isinstance(by, pd.Series):
        return {str(by.name or ""): by}
    names = [name for name in by if isinstance(name, str)] if isinstance(by, list | tuple) else []
    if data is not None and len(names) == len(np.atleast_1d(by)) and set(names) <= set(data.columns):
        return {name: name for name in names}
    return {"": by}


def pool_sites(outcome: Values, probability: Values, site: Values, *, data: pd.DataFrame | None = None) -> PooledSites:
    """Pool AUC, O/E and calibration slope over sites by random effects (Debray et al., BMJ 2017;356:i6460).

    The variance between sites is the REML estimate, the interval of the mean that of Hartung and Knapp (Stat Med
    2001;20:3875). A site takes part from ten patients of either outcome on.

    Args:
        outcome: (n,) 0/1, or the name of its column.
        probability: (n,) predicted, 0 to 1, or the name of its column.
        site: (n,) site of each patient, or the name of its column.
        data: Table of the columns that are named.

    Returns:
        Scores of each site, and the pooled measures with the prediction interval of a new site.

    Raises:
        ValueError: As for ``discrimination``, or fewer than three sites can be pooled.
    """
    labels, own = _inputs.labels_and_probabilities(outcome, probability, data)
    levels, order = _inputs.levels(site, "site", data, outcome, probability)
    found = validation.scores_by_level(levels, order, labels, own)
    named = [one for one in found if one.name != NOT_RECORDED]
    pooled = validation.pooled_over(named)
    if not pooled:
        usable = sum(min(one.events, one.patients - one.events) >= POOLED_EVENTS for one in named)
        raise ValueError(
            f"site: {usable} of {len(named)} sites have {POOLED_EVENTS} patients of either outcome; pooling needs "
            f"{FEWEST_SITES}"
        )
    return PooledSites(tuple(found), pooled)


def pool_estimates(values: npt.ArrayLike | pd.Series[Any], errors: npt.ArrayLike | pd.Series[Any]) -> Pooled:
    """Pool estimates of k sites by random effects, as ``pool_sites`` does; for published results, for example.

    Args:
        values: (k,) on a scale on which they are about normal: the log-odds of an AUC, the logarithm of an O/E.
        errors: (k,) standard errors on that scale.

    Returns:
        The mean with its 95 % interval, the 95 % prediction interval of a new site, tau, I squared, Q and its p value.

    Raises:
        ValueError: There are fewer than three sites, a value is missing, an error is not positive, or lengths differ.
    """
    estimates, spread = _inputs.same_rows(None, ("values", values), ("errors", errors))
    y, s = _inputs.numbers(estimates, "values"), _inputs.numbers(spread, "errors")
    if (s <= 0).any():
        raise ValueError("errors: expected standard errors above 0")
    found = pooling.pool(y.tolist(), s.tolist())
    if found is None:
        raise ValueError(f"values: {len(y)} sites; pooling needs {FEWEST_SITES}")
    return found


def pool_aggregates(files: Iterable[str | Path], *, trust: Sequence[str] = ()) -> Centres:
    """Pool the files of ``rlvo validate --export-aggregate``: sums of several sites, without a patient.

    It is what ``rlvo pool`` prints: random effects, each site against the others (internal-external cross-validation;
    Steyerberg & Harrell, J Clin Epidemiol 2016;69:245), and the recalibration over all sites.

    Args:
        files: One file for each site.
        trust: Public keys (base64), of which one must have signed each file; empty: any signature or none.

    Returns:
        Sites, pooled measures, each site left out, and the common recalibration.

    Raises:
        rlvo errors: ``InvalidRequest`` for a file that is no aggregate, or whose signature is wrong.
        ValueError: Two files are of one site, or of different predictors, or ``files`` is one path.
    """
    from app.evaluation.aggregate import Aggregate
    from app.operations import federation
    from app.registry import signed_json

    if isinstance(files, str | Path):
        raise ValueError("files: expected a list of paths, one for each site")
    read = []
    for path in map(Path, files):
        document = signed_json.read(path, trust)
        read.append(federation.parsed(document.content, Aggregate, path.name))
    if not read:
        raise ValueError("files: there is no file")
    return centres.pool(read)
