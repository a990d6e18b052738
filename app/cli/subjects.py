"""`rlvo subjects`: export or erase all stored data of one subject (patient pseudonym)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from app.cli.common import open_database, open_eraser, settings

subjects = typer.Typer(help="Stored data of one subject: export it or erase it.", no_args_is_help=True)

Subject = Annotated[str, typer.Argument(help="Pseudonym of the patient, as it was sent with the studies")]
Tenant = Annotated[str, typer.Option(help="Tenant of the subject, as `rlvo keys list` shows it; `local` without keys")]


@subjects.command("export")
def export(
    subject: Subject,
    to: Annotated[Path, typer.Option(help="The ZIP file to write")],
    tenant: Tenant = "local",
    with_volumes: Annotated[
        bool, typer.Option("--with-volumes", help="Include the image volumes; a face can be reconstructed from them")
    ] = False,
) -> None:
    """Write all stored data of a subject to one ZIP file, by default without image volumes.

    rlvo subjects export S-001 --to S-001.zip
    rlvo subjects export S-001 --tenant pacs --to S-001.zip --with-volumes
    """
    from app.database import audit
    from app.operations.subject_export import export as write
    from app.storage.factory import storage_of

    if to.exists():
        typer.echo(f"{to} exists already. Choose another file name.", err=True)
        raise typer.Exit(2)
    database = open_database(must_exist=True)
    report = write(database, storage_of(settings()), tenant, subject, to, volumes=with_volumes)
    with database.session() as session:
        audit.append(session, "operator", "subject.export", tenant, {"predictions": report.predictions})
    typer.echo(f"{report.predictions} predictions, {report.files} files; {len(report.left_out)} volumes left out")
    if report.missing:
        typer.echo(f"{len(report.missing)} files are missing or damaged. Run `rlvo fsck` for details.", err=True)
        raise typer.Exit(1)


@subjects.command("erase")
def erase(
    subject: Subject,
    tenant: Tenant = "local",
    yes: Annotated[bool, typer.Option("--yes", help="Erase without confirmation; this cannot be undone")] = False,
) -> None:
    """Erase all stored data of a subject; print one certificate per prediction, as JSON lines.

    rlvo subjects erase S-001
    rlvo subjects erase S-001 --tenant pacs --yes > certificates.jsonl
    """
    from app.database import erasures
    from app.sdk.errors import NotFound

    eraser = open_eraser()
    with eraser.database.reading() as session:
        ids = erasures.of_subject(session, tenant, subject)
    if not ids:
        raise NotFound("This tenant has no stored data of this subject")
    if not yes:
        typer.confirm(f"Erase {len(ids)} predictions permanently?", abort=True, err=True)
    for prediction_id in ids:
        eraser.erase(prediction_id, tenant, actor="operator", why="subject")
        certify(prediction_id)


@subjects.command("certificate")
def certify(prediction_id: Annotated[str, typer.Argument(help="Id of an erased prediction")]) -> None:
    """Print the certificate of an erased prediction: data, time, actor, and whether all files are deleted.

    rlvo subjects certificate 0192f3a4-7c1e-7b7e-9d0a-3f5a1c2b4d6e
    """
    from app.database import erasures
    from app.storage.factory import storage_of

    storage = storage_of(settings())
    with open_database(must_exist=True).reading() as session:
        certificate = erasures.certificate(session, prediction_id, None, storage.exists)
    typer.echo(certificate.model_dump_json())
