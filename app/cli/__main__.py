"""The `rlvo` command.

Notable choices:
- A command imports what it needs when it runs, so that `rlvo --help` answers at once and only the commands that need
  torch load it. The training room's commands are handed over by name.
- Exit status: 0 done, 1 something failed, 2 the command or the input was wrong.
- Errors are one line on standard error; nothing that a traceback might hold of a patient is printed.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any

import typer

from app.cli import admin, demo, models, monitor, predict, serve, subjects, webhooks

app = typer.Typer(
    help="Predicts refractory large vessel occlusion from CT volumes and clinical data. Research use only.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    epilog="Start with `rlvo demo`. Settings are environment variables, RLVO_*; the README lists them.",
)

RUN, OPERATE, TRAIN = "Run", "Operate", "Train"

app.command(rich_help_panel=RUN)(serve.serve)
app.command(rich_help_panel=RUN)(serve.worker)
app.command(rich_help_panel=RUN)(predict.predict)
app.command(rich_help_panel=RUN)(demo.demo)
app.add_typer(models.models, name="models", rich_help_panel=OPERATE)
app.add_typer(admin.keys, name="keys", rich_help_panel=OPERATE)
app.add_typer(subjects.subjects, name="subjects", rich_help_panel=OPERATE)
app.add_typer(webhooks.webhooks, name="webhooks", rich_help_panel=OPERATE)
app.add_typer(admin.db, name="db", rich_help_panel=OPERATE)
app.add_typer(admin.audit, name="audit", rich_help_panel=OPERATE)
app.command(rich_help_panel=OPERATE)(monitor.monitor)
app.command(rich_help_panel=OPERATE)(admin.replay)
app.command(rich_help_panel=OPERATE)(admin.fsck)
app.command("settings", rich_help_panel=OPERATE)(admin.list_settings)
app.command(rich_help_panel=OPERATE)(admin.openapi)


def _hand_over(name: str, summary: str) -> None:
    """Registers a command of the training room, which is entered only when the command is called, its help included."""

    @app.command(
        name,
        help=summary,
        rich_help_panel=TRAIN,
        add_help_option=False,
        context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    )
    def call(context: typer.Context) -> None:
        import_module("app.cli.training").commands([name, *context.args], prog_name="rlvo", obj=_spread)


def _spread(*studies: Any) -> None:
    """What `--workers queue` of the training room asks for: it knows no queue itself."""
    import_module("app.cli.queue_preprocessing").by_queue(*studies)


_hand_over("synthesize", "Makes a cohort of synthetic patients, with the truth beside it.")
_hand_over("train", "Trains a model version on a cohort, by the published protocol.")
_hand_over("evaluate", "Scores model versions on a cohort, and compares them.")
_hand_over("import", "Writes the table of a published data set (isles24).")


def main() -> None:
    """The entry point: runs the command, and turns our own errors into a few lines and a status."""
    try:
        app()
    except Exception as error:
        from app.sdk.errors import RlvoError  # here, since the types that come with it cost a tenth of a second

        if not isinstance(error, RlvoError):
            raise
        typer.echo(f"{error.title}: {error.detail}" if error.detail != error.title else error.title, err=True)
        for fault in error.errors:
            typer.echo(f"  {fault.field}: {fault.detail}", err=True)
        for note in getattr(error, "__notes__", ()):
            typer.echo(f"  ({note})", err=True)
        sys.exit(2 if 400 <= error.status < 500 else 1)


if __name__ == "__main__":
    main()
