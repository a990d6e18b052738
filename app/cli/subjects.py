"""`rlvo subjects`: what is kept of one patient, given out or erased."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from app.cli.common import settings

subjects = typer.Typer(help="One subject: all that is kept of it, given out or erased.", no_args_is_help=True)

Subject = Annotated[str, typer.Argument(help="The site's pseudonym, as it was sent with the studies")]
Tenant = Annotated[str, typer.Option(help="Whose subject it is, as `rlvo keys list` shows it; `local` without keys")]


@subjects.command("export")
def export(
    subject: Subject,
    to: Annotated[Path, typer.Option(help="The ZIP file to write")],
    tenant: Tenant = "local",
    with_volumes: Annotated[
        bool, typer.Option("--with-volumes", help="Also the images: a face can be drawn from them")
    ] = False,
) -> None:
    """Writes all that is kept of a subject into one ZIP file. No image volume is in it unless asked for.

    rlvo subjects export S-001 --to S-001.zip
    rlvo subjects export S-001 --tenant pacs --to S-001.zip --with-volumes
    """
    from app.cli.admin import open_database
    from app.database import audit
    from app.operations.subject_export import export as write
    from app.storage.factory import storage_of

    if to.exists():
        typer.echo("There is a file of that name already.", err=True)
        raise typer.Exit(2)
    database = open_database()
    report = write(database, storage_of(settings()), tenant, subject, to, volumes=with_volumes)
    with database.session() as session:
        audit.append(session, "operator", "subject.export", tenant, {"predictions": report.predictions})
    typer.echo(f"{report.predictions} predictions, {report.files} files; {len(report.left_out)} volumes left out")
    if report.missing:
        typer.echo(f"{len(report.missing)} files are missing or damaged; `rlvo fsck` tells more", err=True)
        raise typer.Exit(1)


@subjects.command("erase")
def erase(
    subject: Subject,
    tenant: Tenant = "local",
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask first; this cannot be taken back")] = False,
) -> None:
    """Erases all that is kept of a subject and prints one certificate a prediction, as JSON lines.

    rlvo subjects erase S-001
    rlvo subjects erase S-001 --tenant pacs --yes > certificates.jsonl
    """
    from app.cli.admin import open_database
    from app.database import erasures
    from app.sdk.errors import NotFound
    from app.storage.factory import storage_of

    database, storage = open_database(), storage_of(settings())
    with database.reading() as session:
        ids = erasures.of_subject(session, tenant, subject)
    if not ids:
        raise NotFound("Nothing is kept of this subject of this tenant")
    if not yes:
        typer.confirm(f"Erase {len(ids)} predictions for good?", abort=True, err=True)
    for prediction_id in ids:
        with database.session() as session:
            orphans = erasures.erase(session, prediction_id, tenant, actor="operator", why="subject")
        for digest in orphans:
            storage.delete(digest)
        certify(prediction_id)


@subjects.command("certificate")
def certify(prediction_id: Annotated[str, typer.Argument(help="An erased prediction")]) -> None:
    """Prints the certificate of an erased prediction: what was erased, when, by whom, and whether all of it is gone.

    rlvo subjects certificate 0192f3a4-7c1e-7b7e-9d0a-3f5a1c2b4d6e
    """
    from app.cli.admin import open_database
    from app.database import erasures
    from app.storage.factory import storage_of

    storage = storage_of(settings())
    with open_database().reading() as session:
        found = erasures.certificate(session, prediction_id, None, storage.exists)
    typer.echo(found.model_dump_json())
