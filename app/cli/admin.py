"""Operator commands for API keys, database, audit trail, settings, replay, storage check and OpenAPI description."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_args

import typer

from app.cli.common import (
    day,
    exit_unknown_id,
    naming_folders,
    open_database,
    open_eraser,
    open_model_store,
    settings,
    table,
)

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

keys = typer.Typer(help="API keys: create, list and revoke them.", no_args_is_help=True)
db = typer.Typer(help="The database.", no_args_is_help=True)
audit = typer.Typer(help="The audit trail.", no_args_is_help=True)


@keys.command("create")
def create_key(
    name: Annotated[str, typer.Argument(help="Name of the caller, as it appears in the audit trail")],
    scope: Annotated[
        list[str] | None,
        typer.Option(help="predict, read, erase, models:admin or audit; may be repeated; default: predict and read"),
    ] = None,
    tenant: Annotated[str | None, typer.Option(help="Tenant of the key; default: the name")] = None,
    expires: Annotated[datetime | None, typer.Option(help="Time of expiry, in UTC")] = None,
    per_minute: Annotated[int | None, typer.Option(min=1, help="Maximum number of requests per minute")] = None,
    max_body: Annotated[int | None, typer.Option(min=1, help="Maximum size of one request, in bytes")] = None,
) -> None:
    """Create an API key and print its secret, once.

    rlvo keys create pacs
    rlvo keys create dashboard --scope read --tenant pacs --expires 2030-01-01
    rlvo keys create privacy-office --scope read --scope erase --tenant pacs
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
    typer.echo("The key is shown only once. Send it as `Authorization: Bearer <key>`.", err=True)


@keys.command("list")
def list_keys() -> None:
    """List all keys, including revoked ones. Secrets are not stored and cannot be shown.

    rlvo keys list
    """
    from app.database import api_keys as rows

    with open_database().reading() as session:
        records = rows.listed(session)
    table(
        ["id", "name", "tenant", "scopes", "created", "expires", "revoked"],
        [
            [key.id, key.name, key.tenant, ", ".join(key.scopes), *map(day, (key.created, key.expires, key.revoked))]
            for key in records
        ],
    )


@keys.command("revoke")
def revoke_key(key_id: Annotated[str, typer.Argument(help="Id of the key, as `rlvo keys list` shows it")]) -> None:
    """Revoke a key permanently.

    rlvo keys revoke 3f9a1c04
    """
    from app.storage.erasure_ledger import EntryKind

    if not open_eraser().end(EntryKind.KEY, key_id, actor="operator"):
        exit_unknown_id("key", "keys")
    typer.echo("revoked")


@db.command()
def upgrade() -> None:
    """Migrate the database to the schema of this release. `rlvo serve` does this when it starts.

    rlvo db upgrade
    RLVO_DATABASE_URL=postgresql://... rlvo db upgrade
    """
    from app.worker.queue import Queue

    Queue(open_database()).upgrade()
    typer.echo("the database is up to date")


@audit.command("verify")
def verify_audit() -> None:
    """Verify the hash chain of the audit trail, and that no erasure is undone; exit with 1 if not.

    rlvo audit verify

    A database that was restored from a backup lacks the entries of later erasures; the ledger of erasures has them.
    """
    from app.database.audit import verify

    eraser = open_eraser()
    with eraser.database.reading() as session:
        verdict = verify(session)
    if not verdict.intact:
        typer.echo(f"broken at entry {verdict.broken_at}; the {verdict.entries} entries before it are intact", err=True)
        raise typer.Exit(1)
    typer.echo(f"{verdict.entries} entries, intact; head {verdict.head}")
    compared = eraser.compare()
    for line in compared.lines():
        typer.echo(line, err=True)
    if compared.undone:
        raise typer.Exit(1)


def list_settings(
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the defaults as a Markdown table")] = False,
) -> None:
    """List every setting with its current value. Settings are environment variables.

    rlvo settings
    RLVO_PORT=80 rlvo settings
    """
    import os

    from app.core.config import Settings
    from app.core.unknown_settings import remarks

    if markdown:
        typer.echo("| variable | default | what it sets |\n|---|---|---|")
        for name, field in Settings.model_fields.items():
            typer.echo(f"| `RLVO_{name.upper()}` | {_default(field.default)} | {_purpose(field)} |")
    else:
        config, fields = settings(), Settings.model_fields.items()
        rows = [
            [f"RLVO_{name.upper()}", _shown(getattr(config, name), secret=not field.repr), _purpose(field)]
            for name, field in fields
        ]
        table(["variable", "value", ""], rows)
        for remark in remarks(os.environ):
            typer.echo(remark, err=True)


def openapi(
    path: Annotated[Path, typer.Argument(help="File of the description")] = Path("openapi/openapi.json"),
    check: Annotated[bool, typer.Option("--check", help="Only check; exit with 1 if out of date")] = False,
) -> None:
    """Write the OpenAPI 3.1 description of the API to a file, or check the file.

    rlvo openapi
    rlvo openapi --check
    """
    import json

    from app.main import openapi_document

    wanted = (json.dumps(openapi_document(), indent=2, ensure_ascii=False) + "\n").encode()
    if not check:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(wanted)
        typer.echo(f"wrote {path}")
    elif not path.is_file() or path.read_bytes() != wanted:
        typer.echo(f"{path} does not match the code. Run `rlvo openapi` and commit the file.", err=True)
        raise typer.Exit(1)


def replay(prediction_id: Annotated[str, typer.Argument(help="Id of a finished prediction")]) -> None:
    """Recompute a stored prediction and compare the probability; exit with 1 if it differs.

    rlvo replay 0192f3a4-7c1e-7b7e-9d0a-3f5a1c2b4d6e

    The command uses the stored volumes, the stored record and the same model version. It writes nothing. The allowed
    difference is 1e-6, or that of the golden cases if a GPU or bfloat16 computed one of the two. Data folder
    and model store are those of the settings, so they must be set as for the service.
    """
    from app.database import job_state, predictions
    from app.sdk.errors import sealed_by

    config, database = settings(), open_database(must_exist=True)
    open_model_store(config)
    with naming_folders(config), database.reading() as session:
        prediction = predictions.find(session, prediction_id, None)
        stored = prediction.probability
        study = job_state.recorded(session, prediction_id)
    if prediction.sealed is not None:
        raise sealed_by(prediction.sealed)
    if stored is None:
        typer.echo("This prediction has no stored probability to compare with.", err=True)
        raise typer.Exit(2)

    # Here: they import torch, which takes seconds, and a prediction without a probability needs none of it.
    from app.imaging.io.limits import Limits
    from app.storage.factory import storage_of
    from app.worker.pipeline import PredictionPipeline
    from app.worker.process import create_model_cache
    from app.worker.queue import Queue

    models = create_model_cache(config)
    limits = Limits(max_voxels=config.max_voxels, max_bytes=config.max_volume_bytes)
    pipeline = PredictionPipeline(database, storage_of(config), Queue(database), models, limits)
    with naming_folders(config):
        answer, tolerance = pipeline.replay(study)
    recomputed = answer.probability
    typer.echo(f"stored {stored:.9f}, recomputed {recomputed:.9f}, {study.model.name} {study.model.version}")
    if abs(recomputed - stored) > tolerance:
        typer.echo(f"The probabilities differ by more than {tolerance:g}.", err=True)
        raise typer.Exit(1)
    typer.echo("the probabilities agree")


def fsck(
    deep: Annotated[bool, typer.Option("--deep", help="Also recompute the digest of every file")] = False,
    mend: Annotated[
        bool,
        typer.Option(
            "--mend", help="Quarantine damage, delete orphans, fail stuck jobs, erase again, close permissions"
        ),
    ] = False,
) -> None:
    """Check that the database and the stored files agree; exit with 1 if data is lost.

    rlvo fsck
    rlvo fsck --deep --mend

    The service may run at the same time. Without --mend the command changes nothing.
    """
    from app.operations.fsck import fsck

    report = fsck(settings(), deep=deep, mend=mend)
    for line in report.lines():
        typer.echo(line)
    if not report.sound:
        raise typer.Exit(1)
    typer.echo("no data is lost" + ("" if deep else "; with --deep, the content of every file is checked too"))


def _purpose(field: FieldInfo) -> str:
    """What a setting sets, and its possible values if the text does not name them all."""
    text = field.description or ""
    values = [f"`{value}`" for value in get_args(field.annotation) if isinstance(value, str)]
    return text if all(value in text for value in values) else f"{text}; one of {', '.join(values)}"


def _shown(value: object, *, secret: bool) -> str:
    """Value of a setting, without a secret and without the password of a URL."""
    import re

    if secret and value:
        return "***"
    shown = re.sub(r"(?<=//)([^:@/]*):.*(?=@)", r"\1:***", str(value))
    return re.sub(r"(?<=[?&]password=)[^&]*", "***", shown)


def _default(value: object) -> str:
    return "" if value == "" else f"`{str(value).lower() if isinstance(value, bool) else value}`"
