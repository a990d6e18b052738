"""`rlvo plan`: patients that a validation or a recalibration needs."""

from __future__ import annotations

from typing import Annotated

import typer


def plan(
    prevalence: Annotated[
        float, typer.Option(min=0.001, max=0.999, help="Expected share of patients with the outcome")
    ],
    auc: Annotated[float, typer.Option(min=0.51, max=0.99, help="Expected AUC")],
    mean: Annotated[
        float | None, typer.Option(help="Mean of the predicted log-odds; default: from the two above")
    ] = None,
    sd: Annotated[float | None, typer.Option(min=0.01, help="SD of the predicted log-odds, with --mean")] = None,
    threshold: Annotated[
        float | None, typer.Option(min=0.001, max=0.999, help="Decision threshold, for the net benefit")
    ] = None,
    oe_width: Annotated[float, typer.Option(min=0.01, help="Width of the 95 % interval of O/E")] = 0.2,
    slope_width: Annotated[float, typer.Option(min=0.01, help="Width of that of the calibration slope")] = 0.2,
    auc_width: Annotated[float, typer.Option(min=0.005, max=0.5, help="Width of that of the AUC")] = 0.1,
    benefit_width: Annotated[float, typer.Option(min=0.01, help="Width of that of the standardised net benefit")] = 0.2,
) -> None:
    """Calculate how many patients and events a validation needs, and how many a recalibration.

    rlvo plan --prevalence 0.16 --auc 0.73 --threshold 0.2

    The largest number of the validation's criteria is the size of the study (Riley et al. 2021).
    """
    from app.cli.common import table
    from app.evaluation import sample_size
    from app.evaluation.sample_size import Predictions

    if (mean is None) != (sd is None):
        raise typer.BadParameter("give both or none", param_hint="--mean, --sd")
    own = Predictions.of(prevalence, auc) if mean is None or sd is None else Predictions(mean, sd)
    criteria = sample_size.validation(
        own,
        prevalence,
        auc,
        oe_width=oe_width,
        slope_width=slope_width,
        auc_width=auc_width,
        threshold=threshold,
        benefit_width=benefit_width,
    )
    typer.echo(f"Predicted log-odds: mean {own.mean:.2f}, SD {own.sd:.2f}.")
    rows = [*criteria, *sample_size.recalibration(own)]
    table(
        ["criterion", "width of the 95 % interval", "patients", "events"],
        [[one.name, f"{one.width:g}", str(one.patients), str(round(prevalence * one.patients))] for one in rows],
    )
    size = max(one.patients for one in criteria)
    typer.echo(f"Validation: {size} patients, {round(prevalence * size)} with the outcome.")
