"""`rlvo models`: the model store, and which version of it serves."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from app.cli.common import settings, table

if TYPE_CHECKING:
    from app.operations.promotion import Promotion
    from app.registry.model_store import ModelStore

models = typer.Typer(
    help="The model store: which versions there are, whether they are intact, and which one serves.",
    no_args_is_help=True,
)

Reference = Annotated[str, typer.Argument(help="name, name@1.2.0 or name@champion")]
Name = Annotated[str, typer.Argument(help="The model's name")]
Alias = Annotated[str, typer.Option(help="champion, challenger, shadow, or one of your own")]


@models.command("list")
def list_models() -> None:
    """Lists every version in the model store.

    rlvo models list
    """
    registry = _registry()
    rows = []
    for name in registry.names():
        aliases = registry.aliases(name)
        for entry in registry.versions(name):
            meant = ", ".join(alias for alias, version in sorted(aliases.items()) if version == entry.version)
            data = "synthetic patients" if entry.manifest.training.synthetic else "real patients"
            rows.append([name, entry.version, meant, data, entry.digest.removeprefix("sha256:")[:12]])
    table(["model", "version", "aliases", "trained on", "digest"], rows)


@models.command("show")
def show_model(reference: Reference) -> None:
    """Shows what one version needs, was trained on and reached.

    rlvo models show rlvo-synthetic
    """
    entry = _registry().resolve(reference)
    manifest = entry.manifest
    rows = [
        ["version", f"{entry.name} {entry.version}"],
        ["digest", entry.digest],
        ["use", manifest.intended_use],
        ["network", f"{manifest.architecture.fusion}, {len(manifest.folds)} folds, grid {manifest.grid.shape}"],
        ["needs", ", ".join(manifest.required_inputs) or "nothing in particular"],
        ["clinical", ", ".join(variable.name for variable in manifest.clinical.variables)],
        ["trained on", f"{manifest.training.patients} patients: {manifest.training.data}"],
        ["threshold", f"{manifest.threshold.value:.3f} ({manifest.threshold.rule})"],
    ]
    for name, metric in manifest.metrics.items():
        spread = (
            f" ({metric.low:.3f} to {metric.high:.3f})" if metric.low is not None and metric.high is not None else ""
        )
        rows.append([name, f"{metric.value:.3f}{spread}"])
    table(["", ""], rows)


@models.command()
def card(reference: Reference) -> None:
    """Prints the model card of one version, as Markdown.

    rlvo models card rlvo-synthetic
    """
    path = _registry().resolve(reference).folder / "card.md"
    if not path.is_file():
        typer.echo("This version was published without a card.", err=True)
        raise typer.Exit(2)
    typer.echo(path.read_text(encoding="utf-8"))


@models.command()
def verify(
    reference: Annotated[str | None, typer.Argument(help="name, name@1.2.0 or name@champion; all if none")] = None,
) -> None:
    """Checks every file of a version, or of all, against its digest.

    rlvo models verify
    rlvo models verify rlvo-synthetic@1.0.0

    Where RLVO_TRUSTED_KEYS is set, the signature too.
    """
    registry = _registry()
    entries = (
        [registry.resolve(reference)]
        if reference
        else [entry for name in registry.names() for entry in registry.versions(name)]
    )
    for entry in entries:
        registry.verify(entry)
        typer.echo(f"{entry.name} {entry.version}: intact")


@models.command()
def add(
    folder: Annotated[
        Path, typer.Argument(exists=True, file_okay=False, help="A version: manifest.json, its folds, its card")
    ],
) -> None:
    """Copies a version into the model store, checked, whole or not at all. Running services see it at once.

    rlvo models add runs/2026-11/version

    No alias moves by that: `rlvo models promote` is the next step.
    """
    entry = _registry().add(folder)
    typer.echo(f"{entry.name} {entry.version} is in the store, intact; `rlvo models promote` puts it to work")


@models.command()
def promote(
    reference: Annotated[str, typer.Argument(help="name@1.2.0")],
    alias: Alias = "champion",
) -> None:
    """Moves an alias to a version, once every worker has loaded it and its golden cases come out right.

    rlvo models promote rlvo-synthetic@1.1.0
    rlvo models promote rlvo-synthetic@1.1.0 --alias shadow

    Where no worker runs, the version is loaded and checked here. Where any refuses, nothing changes.
    """
    entry = _registry().resolve(reference)
    move = _promotion().promote(entry.name, alias, entry.version, by="operator")
    typer.echo(f"{entry.name}@{alias}: {move.previous or 'new'} -> {move.version}")


@models.command()
def rollback(name: Name, alias: Alias = "champion") -> None:
    """Moves an alias back to the version before, in the same way.

    rlvo models rollback rlvo-synthetic
    """
    move = _promotion().rollback(name, alias, by="operator")
    typer.echo(f"{name}@{alias}: {move.previous} -> {move.version}")


@models.command()
def history(name: Name, alias: Alias = "champion") -> None:
    """Lists every move of an alias, oldest first.

    rlvo models history rlvo-synthetic
    """
    moves = _registry().history(name, alias)
    table(["at", "from", "to", "by"], [[move.at[:19], move.previous or "", move.version, move.by] for move in moves])


@models.command()
def shadow(name: Name) -> None:
    """Shows how shadow versions compare with what was answered.

    rlvo models shadow rlvo-synthetic
    """
    from app.database.session import Database
    from app.database.shadow_scores import report

    database = Database(settings().database)
    database.upgrade()
    with database.reading() as session:
        found = report(session, name)
    table(
        ["shadow", "answered by", "scored", "failed", "decide alike", "mean difference", "mean absolute", "largest"],
        [
            [
                each.version,
                each.answered,
                str(each.scored),
                str(each.failed),
                str(each.agreed),
                *map(_number, (each.mean_difference, each.mean_absolute_difference, each.largest_difference)),
            ]
            for each in found
        ],
    )


@models.command()
def keygen(path: Annotated[Path, typer.Argument(help="Where the private key goes; kept from others")]) -> None:
    """Makes an Ed25519 key to sign versions with, and prints its public half.

    rlvo models keygen signing.key

    Services that are to take only what it signed get the public half as RLVO_TRUSTED_KEYS.
    """
    from app.registry.signatures import generate

    try:
        typer.echo(generate(path))
    except FileExistsError:
        typer.echo("There is such a file already; it is left as it is.", err=True)
        raise typer.Exit(2) from None


@models.command()
def sign(
    reference: Annotated[str, typer.Argument(help="name@1.2.0")],
    key: Annotated[Path, typer.Option(exists=True, dir_okay=False, help="The private key's file")],
) -> None:
    """Signs a version, every file of which is checked first.

    rlvo models sign rlvo-synthetic@1.0.0 --key signing.key
    """
    from app.registry.model_store import ModelStore
    from app.registry.signatures import sign as add_signature

    registry = ModelStore(settings().model_store)  # what is to be signed is not signed yet
    entry = registry.resolve(reference)
    registry.verify(entry)
    typer.echo(f"{entry.name} {entry.version} is signed; its public key is {add_signature(entry.folder, key)}")


@models.command()
def export(
    reference: Reference,
    form: Annotated[str, typer.Option("--format", help="onnx, openvino or torchscript")] = "onnx",
    to: Annotated[Path, typer.Option(file_okay=False, help="Folder to write into")] = Path(),
) -> None:
    """Writes a version as one graph for another runtime, checked there against the version's golden cases.

    rlvo models export rlvo-synthetic --format openvino --to exported

    Prepared tensors in, the calibrated probability out; preparing and explaining stay here.
    """
    if form not in ("onnx", "openvino", "torchscript"):
        raise typer.BadParameter("It is onnx, openvino or torchscript.", param_hint="--format")
    from app.inference.export import GraphFormat
    from app.inference.export import export as write
    from app.inference.model_version import ModelVersion

    registry = _registry()
    entry = registry.resolve(reference)
    registry.verify(entry)
    written = write(ModelVersion.load(entry.folder, entry.manifest, "cpu"), entry.folder, GraphFormat(form), to)
    typer.echo(
        f"{written.path}: {written.cases} cases answered alike, within {written.difference:.1e} of a probability"
    )


def _registry() -> ModelStore:
    from app.registry.model_store import ModelStore

    here = settings()
    return ModelStore(here.model_store, here.trusted)


def _promotion() -> Promotion:
    from app.database.session import Database
    from app.operations.promotion import Promotion

    here = settings()
    database = Database(here.database)
    database.upgrade()

    def alone(name: str, version: str) -> None:
        from app.worker.process import create_model_cache  # only here: it loads torch

        create_model_cache(here).check(name, version)

    return Promotion(database, _registry(), here.lease, alone=alone, patience=here.load_timeout)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:+.4f}"
