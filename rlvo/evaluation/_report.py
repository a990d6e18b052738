"""Complete validation of a data frame of predictions, and its report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from app.evaluation import validation, validation_report
from app.evaluation.validation import Validation
from app.training import prediction_table, report_folder, table_reader
from app.training.prediction_table import TableColumns
from rlvo.evaluation import _inputs


def validate(
    data: pd.DataFrame,
    *,
    outcome: str = "outcome",
    probability: str = "probability",
    site: str = "",
    date: str = "",
    subgroups: Sequence[str] = (),
    conformal: str = "",
    threshold: float | None = None,
    level: float | None = None,
    rounds: int = 1000,
    seed: int = 0,
) -> Validation:
    """Everything that ``rlvo validate`` finds in a table of predictions, from a data frame of n patients.

    A patient without a probability is left out and counted. A patient without an outcome takes part in the flow, in
    table 1 and in the bounds for missing outcomes, and in no other number.

    Args:
        data: One row for each patient.
        outcome: Column of the outcome: 0, 1, or empty if unknown.
        probability: Column of the probability, 0 to 1.
        site: Column of the site; "": the column ``site``, if there is one.
        date: Column of the date; "": the column ``date``, if there is one.
        subgroups: Columns of the subgroups; ``age=60,75`` divides a number there.
        conformal: Column of the conformal set, as ``predict_cohort`` returns it.
        threshold: Probability from which one acts; None: without decisions at a threshold.
        level: Nominal coverage of the conformal sets, for the report.
        rounds: Resamples of each bootstrap.
        seed: Seed of bootstraps and simulations.

    Returns:
        Measures, smooth curve, net benefit, subgroups, sites, pooled measures and bounds.

    Raises:
        rlvo errors: ``CohortFault`` with every fault of the table; its rows are those of a spreadsheet, so the first
            row of the data frame is row 2.
        ValueError: ``threshold`` or ``level`` is not between 0 and 1, or ``rounds`` is below 1.
    """
    for name, value in (("threshold", threshold), ("level", level)):
        if value is not None and not 0 < value < 1:
            raise ValueError(f"{name}: expected a number between 0 and 1, without both")
    columns = TableColumns(
        probability=probability, outcome=outcome, site=site, date=date, conformal=conformal, subgroups=tuple(subgroups)
    )
    table = prediction_table.of_raw(table_reader.from_frame(data), columns)
    return validation.validate(table, threshold=threshold, level=level, rounds=_inputs.rounds_of(rounds), seed=seed)


def write_report(
    found: Validation, folder: str | Path, *, title: str = "Validation", source: str = "data frame"
) -> Path:
    """Write the report of a validation: ``report.html``, ``report.md``, plots and CSV files, with the TRIPOD+AI items.

    Args:
        found: Result of ``validate``.
        folder: New folder, or that of an earlier report, which is replaced.
        title: Title of the report.
        source: Name of the table in the report.

    Returns:
        Path of ``report.html``.

    Raises:
        rlvo errors: ``CohortFault`` if the folder has other files.
    """
    out = Path(folder)
    report_folder.check(out, "folder")
    validation_report.write(out, title, found, source)
    return out / "report.html"
