"""`rlvo dicom export | resend | destinations`: results as DICOM objects, and where they are sent."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from app.cli.common import (
    day,
    exit_unknown_id,
    naming_folders,
    open_database,
    open_eraser,
    remark_unknown_tenant,
    settings,
    table,
)

if TYPE_CHECKING:
    from app.core.config import Settings
    from app.core.egress import EgressClient

__all__ = ["add_to"]

destinations = typer.Typer(help="DICOM destinations: archives that receive the results.", no_args_is_help=True)


def add_to(group: typer.Typer) -> None:
    """Add the commands of this module to `rlvo dicom`."""
    group.command("export")(export)
    group.command("resend")(resend)
    group.command("pull")(pull)
    group.add_typer(destinations, name="destinations")


def export(
    prediction_id: Annotated[str, typer.Argument(help="Id of a prediction that succeeded")],
    to: Annotated[Path | None, typer.Option(help="ZIP archive to write; default: ID-dicom.zip here")] = None,
) -> None:
    """Write the result of a prediction as DICOM objects, which name the patient.

    rlvo dicom export 0192f3a4-7c1e-7b7e-9d0a-3f5a1c2b4d6e --to result.zip

    The study must have been sent as DICOM while RLVO_DICOM_RETURN_KEY was set. The command needs the same key.
    """
    from app.dicom.objects.stored import ResultObjects
    from app.sdk.errors import FiguresNotReady
    from app.storage.factory import storage_of
    from app.worker.queue import Queue

    config, database = settings(), open_database(must_exist=True)
    objects = ResultObjects.of(config, database, storage_of(config))
    target = to or Path(f"{prediction_id}-dicom.zip")
    try:
        with naming_folders(config), objects.archive(prediction_id, None) as archive:
            target.touch(mode=0o600)
            target.chmod(0o600)
            shutil.copyfile(archive, target)
    except FiguresNotReady:
        with naming_folders(config), database.session() as session:
            Queue(database).draw_on_demand(session, prediction_id)
        raise
    typer.echo(str(target))


def resend(prediction_id: Annotated[str, typer.Argument(help="Id of a prediction that succeeded")]) -> None:
    """Queue the result of a prediction again for all destinations of its tenant; the archive keeps one copy.

    rlvo dicom resend 0192f3a4-7c1e-7b7e-9d0a-3f5a1c2b4d6e
    """
    from app.database import audit, predictions
    from app.worker.queue import Queue

    config, database = settings(), open_database(must_exist=True)
    with naming_folders(config), database.session() as session:
        predictions.find(session, prediction_id, None)
        count = Queue(database).queue_deliveries(session, prediction_id, again=True)
        audit.append(session, "operator", "dicom.resend", prediction_id, {"destinations": count})
    if not count:
        needed = "a destination of its tenant, and a return address: a DICOM study sent with RLVO_DICOM_RETURN_KEY"
        typer.echo(f"Nothing is sent. A prediction that succeeded needs {needed}.", err=True)
        raise typer.Exit(1)
    typer.echo(f"queued for {count} destinations")


def pull(
    study: Annotated[str | None, typer.Option(help="Study Instance UID")] = None,
    accession: Annotated[str | None, typer.Option(help="Accession number, in place of the UID")] = None,
    source: Annotated[
        str | None, typer.Option(help="Name or id of the archive, as `rlvo dicom destinations list` shows it")
    ] = None,
) -> None:
    """Fetch a study from an archive now, by QIDO-RS and WADO-RS, or by C-FIND and C-MOVE.

    rlvo dicom pull --study 1.2.840.113619.2.55.3
    rlvo dicom pull --accession A4711 --source PACS

    The archive is one of the destinations. C-MOVE sends to the listener of the service, which must run. A service with
    the same data folder makes predictions of what arrives.
    """
    from app.database import audit, pulls, studies
    from app.database import destinations as rows
    from app.dicom.errors import ArchiveFailed
    from app.dicom.retrieval import StudyQuery
    from app.sdk.studies import PullState
    from app.storage.factory import storage_of
    from app.worker.dicom_pull import DicomPull

    if bool(study) == bool(accession):
        _exit("Name the study with --study or --accession.")
    config, database = settings(), open_database()
    pulling = DicomPull.of(config, database, storage_of(config))
    with database.reading() as session:
        archive = rows.source(session, None, source)
    try:
        found = pulling.find(archive, StudyQuery(study or "", accession or ""))
    except ArchiveFailed as failure:
        typer.echo(f"no answer: {failure}", err=True)
        raise typer.Exit(1) from None
    failed = not found
    if not found:
        typer.echo("The archive has no such study.", err=True)
    for each in found:
        with database.session() as session:
            study_id, run = pulls.begin(session, archive, each.uid)
            audit.append(session, "operator", "study.pull", study_id)
        pulling.pull(study_id, run)
        with database.reading() as session:
            state = studies.find(session, archive.tenant, each.uid)
        assert state.pull is not None
        typer.echo(f"{each.uid}: {state.pull.state}{f' ({state.pull.reason})' if state.pull.reason else ''}")
        failed = failed or state.pull.state is not PullState.DONE
    if failed:
        raise typer.Exit(1)


@destinations.command("add")
def add(
    address: Annotated[str, typer.Argument(help="URL of the studies service (STOW-RS), or HOST:PORT (C-STORE)")],
    tenant: Annotated[str, typer.Option(help="Tenant of the predictions, as `rlvo keys list` shows it")],
    name: Annotated[str, typer.Option(help="Name for the page and the API")],
    called: Annotated[str, typer.Option(help="AE title of the archive (C-STORE)")] = "",
    calling: Annotated[str, typer.Option(help="AE title of rlvo (C-STORE)")] = "RLVO",
    results: Annotated[
        bool, typer.Option("--results/--no-results", help="Send results to it; without, studies are only fetched")
    ] = True,
    tls: Annotated[bool, typer.Option("--tls", help="Use TLS (C-STORE); a URL says it itself")] = False,
    credentials: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="File with a token, or with USER:PASSWORD (STOW-RS)"),
    ] = None,
) -> None:
    """Add an archive that results are sent to and studies are fetched from; RLVO_DICOM_HOSTS must list its host.

    rlvo dicom destinations add https://pacs.clinic.example/dicom-web/studies --name PACS --tenant stroke \
--credentials token.txt
    rlvo dicom destinations add 10.0.0.7:104 --name PACS --tenant stroke --called ARCHIVE
    """
    import re

    from app.core.ae_title import AE_TITLE
    from app.core.sealing import seal_text
    from app.database import audit
    from app.database import destinations as rows
    from app.dicom.return_address import key_of

    config = settings()
    key = key_of(config.dicom_return_key)
    if key is None:
        _exit("Results are sent back only with a key: set RLVO_DICOM_RETURN_KEY as for the service.")
    kind = rows.DestinationKind.STOW if "://" in address else rows.DestinationKind.C_STORE
    if kind is rows.DestinationKind.C_STORE:
        if not re.fullmatch(r"[^/:@ ]+:[0-9]{1,5}", address):
            _exit("The address must be a URL, or HOST:PORT.")
        if not all(re.fullmatch(AE_TITLE, title) for title in (called, calling)):
            _exit("An AE title must have 1 to 16 characters; the option --called is required.")
    _check_host(config, address)
    secret = None if credentials is None else seal_text(_authorization(credentials), key)
    database = open_database()
    with database.session() as session:
        made = rows.create(
            session,
            tenant,
            name,
            kind,
            address,
            called=called,
            calling=calling,
            tls=tls,
            results=results,
            secret=secret,
        )
        audit.append(session, "operator", "dicom.destination.add", made.id, {"tenant": tenant, "kind": kind})
    typer.echo(made.id)
    typer.echo(f"`rlvo dicom destinations test {made.id}` asks it for an answer.", err=True)
    remark_unknown_tenant(database, config, tenant)


@destinations.command("list")
def list_destinations() -> None:
    """List all destinations, also removed ones, without their credentials.

    rlvo dicom destinations list
    """
    from app.database import destinations as rows

    with open_database().reading() as session:
        records = rows.listed(session)
    lines = [[each.id, each.tenant, each.name, each.kind, each.address, day(each.ended)] for each in records]
    table(["id", "tenant", "name", "kind", "address", "removed"], lines)


@destinations.command("remove")
def remove(destination_id: Annotated[str, typer.Argument(help="The id that the list shows")]) -> None:
    """Remove a destination permanently; open deliveries to it are given up.

    rlvo dicom destinations remove 3f9a1c04
    """
    from app.storage.erasure_ledger import EntryKind

    if not open_eraser().end(EntryKind.DESTINATION, destination_id, actor="operator"):
        exit_unknown_id("destination", "dicom destinations")
    typer.echo("removed")


@destinations.command("test")
def test(destination_id: Annotated[str, typer.Argument(help="The id that the list shows")]) -> None:
    """Ask a destination for an answer (C-ECHO, or a search for one study); exit with 1 if it does not answer.

    rlvo dicom destinations test 3f9a1c04
    """
    from app.core.sealing import open_text
    from app.database import destinations as rows
    from app.dicom.errors import ArchiveFailed
    from app.dicom.objects.sending import Sender
    from app.dicom.return_address import key_of

    config = settings()
    with open_database().reading() as session:
        destination = rows.find(session, destination_id)
    if destination is None:
        exit_unknown_id("destination", "dicom destinations")
    key = key_of(config.dicom_return_key)
    authorization = open_text(destination.secret, key) if destination.secret and key else None
    try:
        Sender(_egress(config)).check(destination, authorization)
    except ArchiveFailed as failure:
        typer.echo(f"no answer: {failure}")
        raise typer.Exit(1) from None
    typer.echo("answers")


def _egress(config: Settings) -> EgressClient:
    from app.core.egress import EgressClient

    return EgressClient(config.dicom_hosts, setting="RLVO_DICOM_HOSTS")


def _check_host(config: Settings, address: str) -> None:
    """Raise InvalidRequest if the operator has not listed the host."""
    from app.core.egress import EgressRefused
    from app.sdk.errors import InvalidRequest

    try:
        if "://" in address:
            _egress(config).check(address)
        else:
            host, _, port = address.rpartition(":")
            _egress(config).check_host(host, int(port))
    except (EgressRefused, ValueError) as refusal:
        raise InvalidRequest(str(refusal)) from None


def _authorization(file: Path) -> str:
    import base64

    text = file.read_text().strip()
    return f"Basic {base64.b64encode(text.encode()).decode()}" if ":" in text else f"Bearer {text}"


def _exit(message: str) -> NoReturn:
    typer.echo(message, err=True)
    raise typer.Exit(2)
