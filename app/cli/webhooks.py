"""`rlvo webhooks`: addresses that receive a message when a prediction has finished."""

from __future__ import annotations

from typing import Annotated

import typer

from app.cli.common import day, exit_unknown_id, open_database, open_eraser, remark_unknown_tenant, settings, table

webhooks = typer.Typer(help="Webhooks: messages about finished predictions.", no_args_is_help=True)


@webhooks.command("add")
def add(
    url: Annotated[str, typer.Argument(help="Address of the receiver; RLVO_WEBHOOK_HOSTS must list its host")],
    tenant: Annotated[str, typer.Option(help="Tenant of the predictions, as `rlvo keys list` shows it")],
) -> None:
    """Add a webhook; print the secret that signs its messages (Standard Webhooks).

    rlvo webhooks add https://pacs.clinic.example/rlvo --tenant pacs
    """
    from app.core.egress import EgressClient, EgressRefused
    from app.database import audit
    from app.database import webhooks as rows
    from app.sdk.errors import InvalidRequest

    config = settings()
    try:
        EgressClient(config.webhook_hosts).check(url)
    except (EgressRefused, ValueError) as refusal:
        raise InvalidRequest(str(refusal)) from None
    database = open_database()
    with database.session() as session:
        webhook = rows.create(session, tenant, url)
        audit.append(session, "operator", "webhook.add", webhook.id, {"tenant": tenant})
    typer.echo(webhook.secret)
    typer.echo(f"Webhook {webhook.id} was added. `rlvo webhooks test {webhook.id}` sends a message.", err=True)
    remark_unknown_tenant(database, config, tenant)


@webhooks.command("list")
def list_webhooks() -> None:
    """List all webhooks, including removed ones, without their secrets.

    rlvo webhooks list
    """
    from app.database import webhooks as rows

    with open_database().reading() as session:
        records = rows.listed(session)
    lines = [[each.id, each.tenant, each.url, day(each.created), day(each.ended)] for each in records]
    table(["id", "tenant", "url", "created", "ended"], lines)


@webhooks.command("remove")
def remove(webhook_id: Annotated[str, typer.Argument(help="The id that `rlvo webhooks list` shows")]) -> None:
    """Remove a webhook permanently; its queued messages are not sent.

    rlvo webhooks remove 3f9a1c04
    """
    from app.storage.erasure_ledger import EntryKind

    if not open_eraser().end(EntryKind.WEBHOOK, webhook_id, actor="operator"):
        exit_unknown_id("webhook", "webhooks")
    typer.echo("removed")


@webhooks.command("test")
def test(webhook_id: Annotated[str, typer.Argument(help="The id that `rlvo webhooks list` shows")]) -> None:
    """Send one signed message of the type `webhook.test`; exit with 1 if the answer is not 2xx.

    rlvo webhooks test 3f9a1c04
    """
    from app.core.egress import EgressClient
    from app.database import webhooks as rows
    from app.worker.webhooks import send, test_message

    config = settings()
    with open_database().reading() as session:
        webhook = rows.find(session, webhook_id)
    if webhook is None:
        exit_unknown_id("webhook", "webhooks")
    status, reason = send(EgressClient(config.webhook_hosts), webhook, *test_message(webhook))
    typer.echo(f"answered {status}" if status else f"not delivered: {reason}")
    if not 200 <= status < 300:
        raise typer.Exit(1)
