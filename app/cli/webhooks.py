"""`rlvo webhooks`: where tenants are told that a prediction has finished."""

from __future__ import annotations

from typing import Annotated

import typer

from app.cli.common import none_in_use, settings, table

webhooks = typer.Typer(help="Webhooks: who is told that a prediction has finished.", no_args_is_help=True)


@webhooks.command("add")
def add(
    url: Annotated[str, typer.Argument(help="Where to send; RLVO_WEBHOOK_HOSTS must list its host")],
    tenant: Annotated[str, typer.Option(help="Whose predictions it is told of, as `rlvo keys list` shows it")],
) -> None:
    """Adds a webhook and prints the secret that its messages are signed with (Standard Webhooks).

    rlvo webhooks add https://pacs.clinic.example/rlvo --tenant pacs
    """
    from app.cli.admin import open_database
    from app.core.egress import EgressClient, EgressRefused
    from app.database import audit
    from app.database import webhooks as rows
    from app.sdk.errors import InvalidRequest

    try:
        EgressClient(settings().webhook_hosts).check(url)
    except (EgressRefused, ValueError) as refusal:
        raise InvalidRequest(str(refusal)) from None
    with open_database().session() as session:
        webhook = rows.create(session, tenant, url)
        audit.append(session, "operator", "webhook.add", webhook.id, {"tenant": tenant})
    typer.echo(webhook.secret)
    typer.echo(f"This is webhook {webhook.id}; `rlvo webhooks test {webhook.id}` sends it a message.", err=True)


@webhooks.command("list")
def list_webhooks() -> None:
    """Lists every webhook ever made; none of their secrets.

    rlvo webhooks list
    """
    from app.cli.admin import open_database
    from app.database import webhooks as rows

    with open_database().reading() as session:
        found = rows.listed(session)
    table(
        ["id", "tenant", "url", "created", "ended"],
        [
            [each.id, each.tenant, each.url, f"{each.created:%Y-%m-%d}", f"{each.ended:%Y-%m-%d}" if each.ended else ""]
            for each in found
        ],
    )


@webhooks.command("remove")
def remove(webhook_id: Annotated[str, typer.Argument(help="The id that `rlvo webhooks list` shows")]) -> None:
    """Ends a webhook for good; what is queued for it is not sent any more.

    rlvo webhooks remove 3f9a1c04
    """
    from app.cli.admin import open_database
    from app.database import audit
    from app.database import webhooks as rows

    with open_database().session() as session:
        ended = rows.end(session, webhook_id)
        if ended:
            audit.append(session, "operator", "webhook.remove", webhook_id)
    if not ended:
        none_in_use("webhook", "webhooks")
    typer.echo("removed")


@webhooks.command("test")
def test(webhook_id: Annotated[str, typer.Argument(help="The id that `rlvo webhooks list` shows")]) -> None:
    """Sends one signed message of the type `webhook.test`, once; exits with 1 where it is not answered 2xx.

    rlvo webhooks test 3f9a1c04
    """
    from app.cli.admin import open_database
    from app.core.egress import EgressClient
    from app.database import webhooks as rows
    from app.worker.webhooks import send, test_message

    here = settings()
    with open_database().reading() as session:
        webhook = rows.find(session, webhook_id)
    if webhook is None:
        none_in_use("webhook", "webhooks")
    status, why = send(EgressClient(here.webhook_hosts), webhook, *test_message(webhook))
    typer.echo(f"answered {status}" if status else f"not delivered: {why}")
    if not 200 <= status < 300:
        raise typer.Exit(1)
