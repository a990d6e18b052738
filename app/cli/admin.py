"""The operator's commands beside `rlvo models`: keys, database, audit, storage and the API's description."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from app.cli.common import none_in_use, settings, table

if TYPE_CHECKING:
    from app.database.session import Database

keys = typer.Typer(help="API keys: who may call, as which tenant, for what.", no_args_is_help=True)
db = typer.Typer(help="The database.", no_args_is_help=True)
audit = typer.Typer(help="The audit trail.", no_args_is_help=True)

SAME = 1e-6  # of a probability; another device or library may round the last digits differently


@keys.command("create")
def create_key(
    name: Annotated[str, typer.Argument(help="Who will use it; stands in the audit")],
    scope: Annotated[
        list[str] | None, typer.Option(help="predict, read, models:admin or audit; may be repeated")
    ] = None,
    tenant: Annotated[str | None, typer.Option(help="Whose predictions it makes and sees; the name if none")] = None,
    expires: Annotated[datetime | None, typer.Option(help="When it ends, in UTC")] = None,
    per_minute: Annotated[int | None, typer.Option(min=1, help="Most requests a minute")] = None,
    max_body: Annotated[int | None, typer.Option(min=1, help="Most bytes of one request")] = None,
) -> None:
    """Makes an API key and prints its secret, once.

    rlvo keys create pacs
    rlvo keys create dashboard --scope read --tenant pacs --expires 2030-01-01
    """
    from datetime import UTC

    from app.database import api_keys as rows

    with open_database().session() as session:
        secret = rows.create(
            session,
            name,
            scope or (rows.Scope.PREDICT, rows.Scope.READ),
            tenant=tenant,
            expires=expires and expires.replace(tzinfo=UTC),
            per_minute=per_minute,
            max_body=max_body,
        )
    typer.echo(secret)
    typer.echo("This is shown once. Send it as `Authorization: Bearer <key>`.", err=True)


@keys.command("list")
def list_keys() -> None:
    """Lists every key ever made; none of their secrets, which are not kept.

    rlvo keys list
    """
    from app.database import api_keys as rows

    with open_database().reading() as session:
        found = rows.listed(session)
    table(
        ["id", "name", "tenant", "scopes", "created", "expires", "revoked"],
        [
            [key.id, key.name, key.tenant, ", ".join(key.scopes), *map(_day, (key.created, key.expires, key.revoked))]
            for key in found
        ],
    )


@keys.command("revoke")
def revoke_key(key_id: Annotated[str, typer.Argument(help="The id that `rlvo keys list` shows")]) -> None:
    """Ends a key for good.

    rlvo keys revoke 3f9a1c04
    """
    from app.database import api_keys as rows

    with open_database().session() as session:
        ended = rows.revoke(session, key_id)
    if not ended:
        none_in_use("key", "keys")
    typer.echo("revoked")


@db.command()
def upgrade() -> None:
    """Brings the tables to this release's shape; `rlvo serve` does so at its start.

    rlvo db upgrade
    RLVO_DATABASE_URL=postgresql://... rlvo db upgrade
    """
    from app.worker.queue import Queue

    Queue(open_database()).upgrade()
    typer.echo("the database is up to date")


@audit.command("verify")
def verify_audit() -> None:
    """Recomputes the chain of the audit trail; exits with 1 where it does not hold.

    rlvo audit verify
    """
    from app.database.audit import verify

    with open_database().reading() as session:
        verdict = verify(session)
    if not verdict.intact:
        typer.echo(f"broken at entry {verdict.broken_at}; the {verdict.entries} before it hold", err=True)
        raise typer.Exit(1)
    typer.echo(f"{verdict.entries} entries, intact; head {verdict.head}")


def list_settings(
    markdown: Annotated[bool, typer.Option("--markdown", help="All defaults, as the README's table")] = False,
) -> None:
    """Lists every setting with the value in force here. Settings are environment variables.

    rlvo settings
    RLVO_PORT=80 rlvo settings
    """
    from app.core.config import Settings

    if markdown:
        typer.echo("| variable | default | what it sets |\n|---|---|---|")
        for name, one in Settings.model_fields.items():
            typer.echo(f"| `RLVO_{name.upper()}` | {_default(one.default)} | {one.description} |")
    else:
        here = settings()
        fields = Settings.model_fields.items()
        table(
            ["variable", "value", ""],
            [[f"RLVO_{name.upper()}", _shown(getattr(here, name)), one.description or ""] for name, one in fields],
        )


def openapi(
    path: Annotated[Path, typer.Argument(help="Where the description lies")] = Path("openapi/openapi.json"),
    check: Annotated[bool, typer.Option("--check", help="Change nothing; exit with 1 where it is out of date")] = False,
) -> None:
    """Writes the API's description (OpenAPI 3.1), or checks the one that is there.

    rlvo openapi
    rlvo openapi --check
    """
    import json

    from app.main import openapi_document

    wanted = json.dumps(openapi_document(), indent=2, ensure_ascii=False) + "\n"
    if not check:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(wanted)
        typer.echo(f"wrote {path}")
    elif not path.is_file() or path.read_text() != wanted:
        typer.echo(f"{path} is not what the code describes; run `rlvo openapi` and commit it", err=True)
        raise typer.Exit(1)


def replay(prediction_id: Annotated[str, typer.Argument(help="A finished prediction")]) -> None:
    """Computes a stored prediction again and says whether the number is the same; exits with 1 where it is not.

    rlvo replay 0192f3a4-7c1e-7b7e-9d0a-3f5a1c2b4d6e

    The stored volumes and record go through the same model version once more. Nothing is written.
    """
    from app.database import job_state, predictions
    from app.imaging.io.limits import Limits
    from app.storage.factory import storage_of
    from app.worker.pipeline import PredictionPipeline
    from app.worker.process import create_model_cache
    from app.worker.queue import Queue

    here, database = settings(), open_database()
    with database.reading() as session:
        then = predictions.find(session, prediction_id, None).probability
        study = job_state.recorded(session, prediction_id)
    if then is None:
        typer.echo("This prediction has no answer to compare with.", err=True)
        raise typer.Exit(2)
    predictor = create_model_cache(here)
    limits = Limits(max_voxels=here.max_voxels, max_bytes=here.max_volume_bytes)
    now = PredictionPipeline(database, storage_of(here), Queue(database), predictor, limits).replay(study).probability
    typer.echo(f"then {then:.9f}, now {now:.9f}, {study.model.name} {study.model.version}")
    if abs(now - then) > SAME:
        typer.echo("The number is not the same.", err=True)
        raise typer.Exit(1)
    typer.echo("the same number")


def fsck(
    deep: Annotated[bool, typer.Option("--deep", help="Also recompute every digest; reads all that is stored")] = False,
    mend: Annotated[bool, typer.Option("--mend", help="Put damage aside, delete orphans, end what is stuck")] = False,
) -> None:
    """Checks that rows and stored files agree; exits with 1 where something is lost.

    rlvo fsck
    rlvo fsck --deep --mend

    It may run beside a working service. Without --mend it changes nothing.
    """
    from app.operations.fsck import fsck

    report = fsck(settings(), deep=deep, mend=mend)
    for line in report.lines():
        typer.echo(line)
    if not report.sound:
        raise typer.Exit(1)


def open_database() -> Database:
    """The database of the settings in force, its tables brought to this release's shape."""
    from app.database.session import Database

    database = Database(settings().database)
    database.upgrade()
    return database


def _shown(value: object) -> str:
    """A setting's value, without the password that a URL may hold."""
    import re

    return re.sub(r"(?<=:)[^:@/]+(?=@)", "***", str(value))


def _default(value: object) -> str:
    return "" if value == "" else f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _day(when: datetime | None) -> str:
    return f"{when:%Y-%m-%d}" if when else ""
