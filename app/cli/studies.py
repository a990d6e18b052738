"""`rlvo studies`: DICOM studies that a running service has received."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from app.cli.common import ServiceOptions, clinical_document, table
from app.cli.option_groups import expand_option_groups

if TYPE_CHECKING:
    from app.sdk.studies import ReceivedStudy

studies = typer.Typer(help="Received DICOM studies: series, roles, predictions.", no_args_is_help=True)

Uid = Annotated[str, typer.Argument(help="Study Instance UID, as `rlvo studies list` shows it")]


@studies.command("list")
@expand_option_groups
def list_studies(
    accession_number: Annotated[str | None, typer.Option(help="Only studies with this accession number")] = None,
    *,
    service: ServiceOptions,
) -> None:
    """List received studies, newest first.

    rlvo studies list --url http://rlvo.local:8000
    rlvo studies list --accession-number A4711 --url http://rlvo.local:8000
    """
    with service.client() as client:
        received = list(client.studies.list(accession_number=accession_number))
    rows = [
        [each.uid, each.state, str(each.instances), str(len(each.predictions)), f"{each.created:%Y-%m-%d %H:%M}"]
        for each in received
    ]
    table(["study", "state", "instances", "predictions", "created"], rows)


@studies.command("show")
@expand_option_groups
def show(uid: Uid, *, service: ServiceOptions) -> None:
    """Show a study: what each series was taken for and why, and its predictions.

    rlvo studies show 1.2.840.113619.2.55.3 --url http://rlvo.local:8000
    """
    with service.client() as client:
        print_study(client.studies.get(uid))


@studies.command("complete")
@expand_option_groups
def complete(
    uid: Uid,
    instances: Annotated[int | None, typer.Option(help="Number of instances of the study; without it: now")] = None,
    *,
    service: ServiceOptions,
) -> None:
    """Say that nothing more will arrive, so that the study is assembled now, or how many instances there are.

    rlvo studies complete 1.2.840.113619.2.55.3 --url http://rlvo.local:8000
    rlvo studies complete 1.2.840.113619.2.55.3 --instances 320 --url http://rlvo.local:8000
    """
    with service.client() as client:
        print_study(client.studies.complete(uid, instances=instances))


@studies.command("roles")
@expand_option_groups
def roles(
    uid: Uid,
    entries: Annotated[
        list[str] | None, typer.Argument(help="SERIES=ROLE, the series by its UID; none: no stated role")
    ] = None,
    *,
    service: ServiceOptions,
) -> None:
    """State the roles of series, in place of those stated before.

    rlvo studies roles 1.2.840.113619.2.55.3 1.2.840.113619.2.55.3.4=ncct --url http://rlvo.local:8000
    rlvo studies roles 1.2.840.113619.2.55.3 --url http://rlvo.local:8000
    """
    from app.sdk.errors import InvalidRequest

    stated = [entry.partition("=")[::2] for entry in entries or ()]
    if not all(series and role for series, role in stated):
        raise InvalidRequest("Each role must be SERIES=ROLE, such as 1.2.840.113619.2.55.3.4=ncct.")
    with service.client() as client:
        print_study(client.studies.set_roles(uid, dict(stated)))


@studies.command("clinical")
@expand_option_groups
def clinical(
    uid: Uid,
    record: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="Clinical document (JSON)")],
    *,
    service: ServiceOptions,
) -> None:
    """Join the clinical record to a study, before or after its images.

    rlvo studies clinical 1.2.840.113619.2.55.3 clinical.json --url http://rlvo.local:8000
    """
    document = clinical_document(record)
    with service.client() as client:
        print_study(client.studies.set_clinical(uid, document))


@studies.command("clinical-by-accession")
@expand_option_groups
def clinical_by_accession(
    accession_number: Annotated[str, typer.Argument(help="Accession number of the study")],
    record: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="Clinical document (JSON)")],
    *,
    service: ServiceOptions,
) -> None:
    """Join the clinical record to the study with an accession number, or keep it until that study arrives.

    rlvo studies clinical-by-accession A4711 clinical.json --url http://rlvo.local:8000
    """
    document = clinical_document(record)
    with service.client() as client:
        answer = client.studies.set_clinical_by_accession(accession_number, document)
    if answer.study is None:
        typer.echo(f"no study with this number has arrived; the record waits until {answer.kept_until:%Y-%m-%d %H:%M}")
    else:
        print_study(answer.study)


@studies.command("withdraw-clinical")
@expand_option_groups
def withdraw_clinical(
    accession_number: Annotated[str, typer.Argument(help="Accession number that the record was sent with")],
    *,
    service: ServiceOptions,
) -> None:
    """Delete a clinical record that waits for its study.

    rlvo studies withdraw-clinical A4711 --url http://rlvo.local:8000
    """
    with service.client() as client:
        client.studies.withdraw_clinical(accession_number)
    typer.echo("deleted")


@studies.command("cancel")
@expand_option_groups
def cancel(uid: Uid, *, service: ServiceOptions) -> None:
    """Cancel the unfinished predictions of a study, and make no further one until `rlvo studies complete`.

    rlvo studies cancel 1.2.840.113619.2.55.3 --url http://rlvo.local:8000
    """
    with service.client() as client:
        print_study(client.studies.cancel(uid))


@studies.command("erase")
@expand_option_groups
def erase(uid: Uid, *, service: ServiceOptions) -> None:
    """Erase a study with its instances and its predictions permanently.

    rlvo studies erase 1.2.840.113619.2.55.3 --url http://rlvo.local:8000
    """
    with service.client() as client:
        client.studies.erase(uid)
    typer.echo("erased")


def print_study(study: ReceivedStudy) -> None:
    """Print the state of a study, its series with their roles, and its predictions."""
    completed = f" ({study.completed})" if study.completed else ""
    record = "with" if study.clinical else "without"
    typer.echo(f"{study.state}{completed}: {study.instances} instances, {record} a clinical record")
    if study.error is not None:
        typer.echo(f"{study.error.code}: {study.error.detail}")
    if study.pull is not None:
        reason = f" ({study.pull.reason})" if study.pull.reason else ""
        typer.echo(f"fetched from {study.pull.source}: {study.pull.state}{reason}")
    if study.conflicts:
        typer.echo(f"{study.conflicts} instances were refused: their UIDs were known with other bytes")
    columns = ["series", "number", "received", "role", "used", "rule", "reason"]
    rows = [
        [
            each.uid,
            "" if each.number is None else str(each.number),
            str(each.received),
            each.role or "",
            "yes" if each.used else "",
            each.rule,
            each.reason,
        ]
        for each in study.series
    ]
    table(columns, rows)
    if study.predictions:
        made = [[str(each.revision), each.id, each.why, f"{each.created:%Y-%m-%d %H:%M}"] for each in study.predictions]
        table(["revision", "prediction", "why", "created"], made)
