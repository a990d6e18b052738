"""`rlvo demo`: one synthetic patient through the whole house, and one real file if there is one to send."""

from __future__ import annotations

import json
import math
import threading
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from app.cli.common import own_service, settings
from app.cli.predict import progress, show

if TYPE_CHECKING:
    from rich.console import Console

    from app.sdk.client import Client, Study

EXACT = 1e-4
"""How closely base and reasons must make the log-odds of the answer."""


def demo(
    study: Annotated[Path | None, typer.Option(exists=True, dir_okay=False, help="Also send this NCCT")] = None,
    once: Annotated[bool, typer.Option("--once", help="End when done, instead of leaving the page open")] = False,
) -> None:
    """Starts a service, sends a synthetic study through it, prints the answer and leaves the page open.

    rlvo demo
    rlvo demo --once --study head.nii.gz
    """
    from rich.console import Console

    console = Console()
    kept = settings().data_dir
    with own_service() as client:
        with console.status("Drawing a synthetic patient"):
            synthetic = _synthetic_study(kept / "demo")
        console.rule("A synthetic patient")
        _send(client, synthetic, kept / "demo", console)
        if study:
            console.rule("The file you gave, as NCCT, with nothing else known")
            _send(client, {"ncct": study, "clinical": {}}, kept / "demo", console)
        console.print(f"\nAll of it is on record in {kept}; `make serve` answers for the same ids.")
        if not once:
            console.print(f"The page is open at [bold]{client.url}[/bold]. Ctrl-C ends it.")
            with suppress(KeyboardInterrupt):
                threading.Event().wait()


def _synthetic_study(folder: Path) -> Study:
    """One synthetic patient on disk, always the same."""
    from app.phantoms.cohort import write_patient

    paths: dict[str, Path] = write_patient(folder / "study", seed=1)
    clinical = json.loads(paths.pop("clinical").read_text())
    return cast("Study", {**paths, "clinical": clinical, "subject": "demo"})


def _send(client: Client, study: Study, folder: Path, console: Console) -> None:
    """Sends a study, prints its answer, and checks what an answer promises. Exits with 1 where it does not hold."""
    with progress(console) as on_progress:
        prediction = client.predict(on_progress=on_progress, **study)
    show(prediction, console)
    reasons, probability = prediction.attribution, prediction.probability
    assert reasons is not None
    assert probability is not None
    parts = sum(part.contribution for part in reasons.clinical) + sum(part.contribution for part in reasons.imaging)
    log_odds = math.log(probability / (1 - probability))
    console.print(
        f"The base {reasons.base:+.4f} and the reasons {parts:+.4f} make {reasons.base + parts:+.4f}: "
        f"the log-odds of the answer are {log_odds:+.4f}."
    )
    maps = folder / "maps" / prediction.id
    maps.mkdir(parents=True, exist_ok=True)
    for name in reasons.maps:
        client.map(prediction.id, name, to=maps)
    console.print(f"{len(reasons.maps)} maps lie in {maps}", soft_wrap=True)
    for name in sorted({"ncct", "cta"} & set(study)):
        shape = _shared_grid(maps / f"attribution-{name}.nii.gz", Path(str(study[name])))  # type: ignore[literal-required]
        console.print(f"attribution-{name} has the shape {shape} and the affine of the {name} that was sent.")
    console.print(f"Its page: {client.url}/predictions/{prediction.id}", soft_wrap=True)
    if abs(reasons.base + parts - log_odds) > EXACT:
        console.print("[red]The reasons do not add up to the answer.[/red]")
        raise typer.Exit(1)


def _shared_grid(map_volume: Path, sent: Path) -> tuple[int, ...]:
    """The shape of a map that lies voxel for voxel on the volume that was sent; exits with 1 where it does not."""
    import nibabel
    import numpy as np

    ours, theirs = cast("Any", nibabel.load(map_volume)), cast("Any", nibabel.load(sent))
    if ours.shape != theirs.shape or not np.allclose(ours.affine, theirs.affine, atol=1e-4):
        typer.echo(f"{map_volume.name} does not lie on the grid of the volume that was sent", err=True)
        raise typer.Exit(1)
    return tuple(ours.shape)
