"""`rlvo demo`: predict a synthetic patient with a temporary service, and one NCCT file if it is given."""

from __future__ import annotations

import json
import math
import threading
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from app.cli.common import settings, temporary_service
from app.cli.predict import progress, show

if TYPE_CHECKING:
    from rich.console import Console

    from app.sdk.client import Client, Study

EXACT = 1e-4  # largest accepted difference between the sum of the contributions and the log-odds of the answer


def demo(
    study: Annotated[Path | None, typer.Option(exists=True, dir_okay=False, help="NCCT volume to send too")] = None,
    once: Annotated[bool, typer.Option("--once", help="Exit at the end; do not keep the page open")] = False,
    dicom: Annotated[bool, typer.Option("--dicom", help="Send the patient as DICOM through an Orthanc")] = False,
) -> None:
    """Start a service, predict a synthetic patient, print the answer and keep the page open.

    rlvo demo
    rlvo demo --once --study head.nii.gz
    rlvo demo --dicom     (needs Orthanc: apt-get install orthanc orthanc-dicomweb)
    """
    from rich.console import Console

    console = Console()
    if dicom:
        from app.cli.demo_dicom import run

        run(console, once=once)
        return
    config = settings()
    folder = config.data_dir
    with temporary_service() as client:
        page = f"http://127.0.0.1:{config.port}" if once else client.url  # with --once, that of `make serve`
        with console.status("Making a synthetic patient"):
            synthetic = _synthetic_study(folder / "demo")
        console.print(f"The volumes and the record of the synthetic patient are in {folder / 'demo' / 'study'}.")
        console.rule("A synthetic patient")
        _predict(client, synthetic, folder / "demo", console, page)
        if study:
            console.rule("Your file, as NCCT, without clinical data")
            _predict(client, {"ncct": study, "clinical": {}}, folder / "demo", console, page)
        console.print(f"\nThe predictions are stored in {folder}; `make serve` shows the same pages.")
        if not once:
            console.print(f"The page is open at [bold]{client.url}[/bold]. Press Ctrl-C to stop.")
            with suppress(KeyboardInterrupt):
                threading.Event().wait()


def _synthetic_study(folder: Path) -> Study:
    """Write the synthetic patient of seed 1 to ``folder``; return the study to send."""
    from app.phantoms.cohort import write_patient

    paths: dict[str, Path] = write_patient(folder / "study", seed=1)
    clinical = json.loads(paths.pop("clinical").read_text())
    return cast("Study", {**paths, "clinical": clinical, "subject": "demo"})


def _predict(client: Client, study: Study, folder: Path, console: Console, page: str) -> None:
    """Predict a study, print the answer, and check that the contributions and the maps fit; exit with 1 if not.

    ``page`` is the address of the service that the printed link of the prediction names.
    """
    with progress(console) as on_progress:
        prediction = client.predict(on_progress=on_progress, **study)
    show(prediction, console)
    if prediction.sealed is not None:
        return
    attribution, probability = prediction.attribution, prediction.probability
    assert attribution is not None
    assert probability is not None
    total = sum(part.contribution for part in attribution.clinical)
    total += sum(part.contribution for part in attribution.imaging)
    log_odds = math.log(probability / (1 - probability))
    console.print(
        f"The base {attribution.base:+.4f} plus the contributions {total:+.4f} is {attribution.base + total:+.4f}. "
        f"The log-odds of the answer are {log_odds:+.4f}."
    )
    maps = folder / "maps" / prediction.id
    maps.mkdir(parents=True, exist_ok=True)
    for name in attribution.maps:
        client.map(prediction.id, name, to=maps)
    console.print(f"{len(attribution.maps)} maps are in {maps}", soft_wrap=True)
    for name in sorted({"ncct", "cta"} & set(study)):
        shape = _shared_grid(maps / f"attribution-{name}.nii.gz", Path(str(study[name])))  # type: ignore[literal-required]
        console.print(f"attribution-{name} has the shape {shape} and the affine of the {name} volume.")
    console.print(f"Page: {page}/predictions/{prediction.id}", soft_wrap=True)
    if abs(attribution.base + total - log_odds) > EXACT:
        console.print("[red]The contributions do not add up to the answer.[/red]")
        raise typer.Exit(1)


def _shared_grid(map_volume: Path, sent: Path) -> tuple[int, ...]:
    """Return the voxel shape that a map shares with the sent volume; exit with 1 if shape or affine differ."""
    import nibabel
    import numpy as np

    image, reference = cast("Any", nibabel.load(map_volume)), cast("Any", nibabel.load(sent))
    if image.shape != reference.shape or not np.allclose(image.affine, reference.affine, atol=1e-4):
        typer.echo(f"{map_volume.name} is not on the voxel grid of {sent.name}.", err=True)
        raise typer.Exit(1)
    return tuple(image.shape)
