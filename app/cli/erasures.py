"""`rlvo erasures`: the ledger of erasures, which a restore of the database does not change."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from app.cli.common import open_eraser

erasures = typer.Typer(help="The ledger of erasures: repeat them after a restore.", no_args_is_help=True)


@erasures.callback()
def _group() -> None:
    """The ledger of erasures: repeat them after a restore."""


@erasures.command("replay")
def replay(
    copy: Annotated[
        Path | None, typer.Option("--from", exists=True, file_okay=False, help="Copy of the ledger to add first")
    ] = None,
) -> None:
    """Erase again what a restored backup of the database has brought back, and end revoked keys and webhooks again.

    rlvo erasures replay
    rlvo erasures replay --from /mnt/other/erasures

    `rlvo serve` and `rlvo worker` do this at their start, and every worker with its sweep.
    """
    from app.storage.erasure_ledger import FolderLedger

    eraser = open_eraser()
    if copy is not None:
        typer.echo(f"{eraser.merge(FolderLedger(copy))} entries of the copy were added to the ledger")
    found = eraser.replay(actor="operator")
    typer.echo(
        f"{len(found.restored)} predictions erased again, {len(found.valid_again)} keys and webhooks ended again, "
        f"{len(found.unrecorded)} entries added to the ledger; "
        f"{found.unknown} erased predictions are not in this database"
    )
