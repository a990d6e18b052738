"""The `rlvo` command: all command groups in one Typer application.

Design notes:
- Each command imports its modules when it runs, so `rlvo --help` loads no torch, numpy or web framework.
- The exit status is 0 for success, 1 for a failure, 2 for a wrong command or a wrong input, and 3 from
  `rlvo predict` for a withheld decision.
- Every error is printed in a few lines (`app.cli.failures`).
"""

from __future__ import annotations

import sys
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from app.cli import (
    admin,
    compare,
    demo,
    dicom,
    erasures,
    federate,
    models,
    monitor,
    outcomes,
    plan,
    pool,
    predict,
    predict_cohort,
    serve,
    studies,
    subjects,
    table,
    trial,
    webhooks,
)

RUN, OPERATE, TRAIN = "Run", "Operate", "Train"

TRAINING_COMMANDS = {
    "synthesize": "Make a cohort of synthetic patients, and a table of their true values.",
    "train": "Train by the paper's protocol, print the results table, and write a version that the service can load.",
    "train-segmenter": "Train the small U-Net that marks vessels, on phantoms.",
    "evaluate": "Score versions on a cohort (discrimination, calibration, decisions, subgroups) "
    "and compare them in pairs.",
    "validate": "Validate predicted probabilities against outcomes: discrimination, calibration, decisions, "
    "subgroups and sites.",
    "recalibrate": "Recalibrate a version on a cohort of your site, and write the result as a new version of the "
    "model store.",
    "import": "Write the cohort table of a published data set; its volumes are not copied.",
}
"""Name and summary of each command of `app.cli.training`."""


class TrainingCommand(TyperCommand):
    """Training command that imports `app.cli.training` only when it runs or shows its help."""

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        """Return the context of the command of the same name in `app.cli.training`."""
        from app.cli.training import commands

        command = typer.main.get_group(commands).commands[str(self.name)]
        return command.make_context(info_name, args, parent, **extra)


class RlvoGroup(TyperGroup):
    """Root group: the commands that are registered with `app`, and the training commands."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        for name, summary in TRAINING_COMMANDS.items():
            self.add_command(TrainingCommand(name=name, help=summary, rich_help_panel=TRAIN))


app = typer.Typer(
    cls=RlvoGroup,
    help="Predicts refractory large vessel occlusion from CT volumes and clinical data. Research use only.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    epilog="Start with `rlvo demo`. Settings are environment variables, RLVO_*; the README lists them.",
)

app.command(rich_help_panel=RUN)(serve.serve)
app.command(rich_help_panel=RUN)(serve.worker)
app.command(rich_help_panel=RUN, cls=predict.PredictCommand)(predict.predict)
app.command(rich_help_panel=RUN)(predict_cohort.predict_cohort)
app.command(rich_help_panel=RUN)(demo.demo)
app.add_typer(table.table, name="table", rich_help_panel=TRAIN)
app.add_typer(models.models, name="models", rich_help_panel=OPERATE)
app.add_typer(admin.keys, name="keys", rich_help_panel=OPERATE)
app.add_typer(studies.studies, name="studies", rich_help_panel=OPERATE)
app.add_typer(subjects.subjects, name="subjects", rich_help_panel=OPERATE)
app.add_typer(erasures.erasures, name="erasures", rich_help_panel=OPERATE)
app.add_typer(webhooks.webhooks, name="webhooks", rich_help_panel=OPERATE)
app.add_typer(dicom.dicom, name="dicom", rich_help_panel=OPERATE)
app.add_typer(admin.db, name="db", rich_help_panel=OPERATE)
app.add_typer(admin.audit, name="audit", rich_help_panel=OPERATE)
app.add_typer(outcomes.outcomes, name="outcomes", rich_help_panel=OPERATE)
app.add_typer(trial.trial, name="trial", rich_help_panel=OPERATE)
app.command(rich_help_panel=OPERATE)(monitor.monitor)
app.command(rich_help_panel=OPERATE)(compare.compare)
app.command(rich_help_panel=TRAIN)(plan.plan)
app.command(rich_help_panel=TRAIN)(pool.pool)
app.add_typer(federate.federate, name="federate", rich_help_panel=TRAIN)
app.command(rich_help_panel=OPERATE)(admin.replay)
app.command(rich_help_panel=OPERATE)(admin.fsck)
app.command("settings", rich_help_panel=OPERATE)(admin.list_settings)
app.command(rich_help_panel=OPERATE)(admin.openapi)


def main() -> None:
    """Run the command; print an error in a few lines and exit with its status."""
    try:
        app(prog_name="rlvo")
    except Exception as error:  # noqa: BLE001 - every error of a command ends here
        from app.cli.failures import describe

        lines, status = describe(error)
        for line in lines:
            typer.echo(line, err=True)
        sys.exit(status)


if __name__ == "__main__":
    main()
