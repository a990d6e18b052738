"""`rlvo pool`: aggregates of several sites, pooled."""

from __future__ import annotations

from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from app.evaluation.centres import Centres

Trust = Annotated[
    list[str] | None, typer.Option(help="Public key; files without a signature of one of them are refused; repeatable")
]


def pool(
    bundles: Annotated[list[Path], typer.Argument(help="Aggregates of `rlvo validate --export-aggregate`")],
    out: Annotated[Path | None, typer.Option(help="Folder for the tables (CSV) and pooled.json")] = None,
    trust: Trust = None,
    show: Annotated[
        bool, typer.Option("--show", help="Print all that the aggregates contain, and pool nothing")
    ] = False,
) -> None:
    """Pool the aggregates of several sites: AUC, O/E and calibration slope with prediction intervals.

    rlvo pool north.json south.json west.json
    rlvo pool *.json --out pooled --trust PUBLIC_KEY

    Random effects (Debray et al. 2017), heterogeneity, and each site against the others (internal-external
    cross-validation). No patient is needed. Exit status 1 says that fewer than three sites can be pooled.
    """
    from app.cli.cohort_options import cohort_faults
    from app.evaluation import aggregate, centres
    from app.evaluation.aggregate import Aggregate
    from app.operations import federation
    from app.registry import signed_json
    from app.sdk.errors import InvalidRequest

    with cohort_faults():
        read, signers = [], {}
        for path in bundles:
            document = signed_json.read(path, trust or ())
            read.append(federation.parsed(document.content, Aggregate, path.name))
            signers[read[-1].site] = ", ".join(document.keys) or "not signed"
        if show:
            shown = (
                f"{one.site} ({signers[one.site]})\n{aggregate.preview(one.model_dump(mode='json'))}" for one in read
            )
            typer.echo("\n\n".join(shown))
            return
        try:
            found = centres.pool(read)
        except ValueError as error:
            raise InvalidRequest(str(error)) from error
    _print(found, signers)
    if out is not None:
        _write(out, found)
        typer.echo(f"The tables are in {out}.")
    if not found.pooled:
        typer.echo(f"{len(read)} sites: nothing is pooled with fewer than three.", err=True)
        raise typer.Exit(1)


def _print(found: Centres, signers: dict[str, str]) -> None:
    from app.cli.common import table
    from app.evaluation.centres import MEASURES
    from app.evaluation.validation_report import POOLED_HEAD, pooled_cells

    table(
        ["site", "patients", "with the outcome", *MEASURES, "signed by"],
        [
            [
                one.site,
                str(one.patients),
                str(one.events),
                *(str(e) if e else "" for e in one.estimates),
                signers[one.site],
            ]
            for one in found.centres
        ],
    )
    table(
        [*POOLED_HEAD, "Q", "p of Q"],
        [[*pooled_cells(one), f"{one.q:.1f}", f"{one.p_equal:.2g}"] for one in found.pooled],
    )
    table(
        ["left out", *(f"{name} expected from the others" for name in MEASURES), "gain of their recalibration"],
        [
            [
                one.site,
                *(
                    ""
                    if ends is None
                    else f"{ends[0]:.3f} to {ends[1]:.3f}{'' if inside is not False else ' (outside)'}"
                    for ends, inside in zip(one.predictions, one.inside, strict=True)
                ),
                "" if isnan(one.gain) else f"{one.gain:+.4f}",
            ]
            for one in found.left_out
        ],
    )
    typer.echo(f"{len(found.centres)} sites, {found.patients} patients, {found.events} with the outcome.")
    if found.recalibration is not None:
        intercept, slope = found.recalibration
        typer.echo(f"Recalibration over all sites: intercept {intercept}, slope {slope}; by rounds: `rlvo federate`.")


def _write(folder: Path, found: Centres) -> None:
    from dataclasses import asdict

    from app.core import csv_text, json_text
    from app.core.csv_text import Cell
    from app.evaluation.centres import MEASURES

    folder.mkdir(parents=True, exist_ok=True)
    ends = ("", "_low", "_high")
    names = [f"{name}{end}" for name in MEASURES for end in ends]
    rows: list[list[Cell]] = [
        [
            one.site,
            one.patients,
            one.events,
            *(v for e in one.estimates for v in ((e.value, e.low, e.high) if e else (None, None, None))),
        ]
        for one in found.centres
    ]
    csv_text.write(folder / "sites.csv", ["site", "patients", "events", *names], rows)
    head = ["measure", "sites", "mean", "low", "high", "prediction_low", "prediction_high", "tau", "i2", "q", "p_equal"]
    pooled: list[list[Cell]] = [
        [
            one.measure,
            one.sites,
            one.mean.value,
            one.mean.low,
            one.mean.high,
            *one.prediction,
            one.tau,
            one.i2,
            one.q,
            one.p_equal,
        ]
        for one in found.pooled
    ]
    csv_text.write(folder / "pooled.csv", head, pooled)
    left: list[list[Cell]] = [
        [
            one.site,
            *(v for ends_ in one.predictions for v in (ends_ or (None, None))),
            *one.inside,
            one.intercept,
            one.slope,
            one.gain,
        ]
        for one in found.left_out
    ]
    pairs = [f"{name}_{end}" for name in MEASURES for end in ("low", "high")]
    inside = [f"{name}_inside" for name in MEASURES]
    csv_text.write(folder / "left-out.csv", ["site", *pairs, *inside, "others_intercept", "others_slope", "gain"], left)
    json_text.write(folder / "pooled.json", asdict(found))
