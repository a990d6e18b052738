"""`rlvo models`: the versions of the model store and the aliases that select them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from app.cli.common import naming_folders, open_database, open_model_store, settings, table

if TYPE_CHECKING:
    from app.operations.promotion import Promotion
    from app.registry.model_store import ModelStore, StoredVersion

models = typer.Typer(
    help="Model versions: list, verify, sign, promote, roll back and export them.", no_args_is_help=True
)

Reference = Annotated[str, typer.Argument(help="name, name@1.2.0 or name@champion")]
Name = Annotated[str, typer.Argument(help="Name of the model")]
Alias = Annotated[str, typer.Option(help="champion, challenger, shadow, or an alias of your choice")]
Tenant = Annotated[
    str | None, typer.Option(help="The alias of this tenant, exactly as its keys name it; in place of --alias")
]


@models.command("list")
def list_models() -> None:
    """List every version in the model store.

    rlvo models list
    """
    registry = _registry()
    rows = []
    for name in registry.names():
        aliases = registry.aliases(name)
        for entry in registry.versions(name):
            names = ", ".join(alias for alias, version in sorted(aliases.items()) if version == entry.version)
            data = "synthetic patients" if entry.manifest.training.synthetic else "real patients"
            rows.append([name, entry.version, names, data, entry.digest.removeprefix("sha256:")[:12]])
    table(["model", "version", "aliases", "trained on", "digest"], rows)


@models.command("show")
def show_model(reference: Reference) -> None:
    """Show the inputs, the training data and the metrics of one version.

    rlvo models show rlvo-synthetic
    """
    entry = _resolve(_registry(), reference)
    manifest = entry.manifest
    rows = [
        ["version", f"{entry.name} {entry.version}"],
        ["digest", entry.digest],
        ["use", manifest.intended_use],
        ["network", f"{manifest.architecture.fusion}, {len(manifest.folds)} folds, grid {manifest.grid.shape}"],
        ["needs", ", ".join(manifest.required_inputs) or "no particular input"],
        ["clinical", ", ".join(variable.name for variable in manifest.clinical.variables)],
        ["trained on", f"{manifest.training.patients} patients: {manifest.training.data}"],
        ["threshold", f"{manifest.threshold.value:.3f} ({manifest.threshold.rule})"],
    ]
    for name, metric in manifest.metrics.items():
        bounded = metric.low is not None and metric.high is not None
        interval = f" ({metric.low:.3f} to {metric.high:.3f})" if bounded else ""
        rows.append([name, f"{metric.value:.3f}{interval}"])
    table(["", ""], rows)


@models.command()
def card(reference: Reference) -> None:
    """Print the model card of one version, in Markdown.

    rlvo models card rlvo-synthetic
    """
    text = _resolve(_registry(), reference).card()
    if not text:
        typer.echo("This version has no model card (card.md).", err=True)
        raise typer.Exit(2)
    typer.echo(text)


@models.command()
def verify(
    reference: Annotated[str | None, typer.Argument(help="name, name@1.2.0 or name@champion; default: all")] = None,
) -> None:
    """Check the digest of every file of one version, or of all versions.

    rlvo models verify
    rlvo models verify rlvo-synthetic@1.0.0

    If RLVO_TRUSTED_KEYS is set, the command checks the signatures too.
    """
    registry = _registry()
    entries = (
        [_resolve(registry, reference)]
        if reference
        else [entry for name in registry.names() for entry in registry.versions(name)]
    )
    for entry in entries:
        registry.verify(entry)
        typer.echo(f"{entry.name} {entry.version}: intact")


@models.command()
def add(
    folder: Annotated[Path, typer.Argument(exists=True, file_okay=False, help="Folder with manifest.json and folds")],
) -> None:
    """Check a version and copy it into the model store, completely or not at all. Running services see it at once.

    rlvo models add runs/2026-11/version

    No alias moves. To serve the version, run `rlvo models promote`.
    """
    from app.registry.model_store import ModelStore

    config = settings()
    entry = ModelStore(config.model_store, config.trusted).add(folder)  # the first version creates the folder
    typer.echo(f"{entry.name} {entry.version} is in the store, intact; run `rlvo models promote` to serve it")


@models.command()
def promote(
    reference: Annotated[str, typer.Argument(help="name@1.2.0")], alias: Alias = "champion", tenant: Tenant = None
) -> None:
    """Move an alias to a version, after every worker has loaded it and verified its golden cases.

    rlvo models promote mine@1.1.0
    rlvo models promote mine@1.1.0 --alias shadow
    rlvo models promote mine@1.1.0 --tenant North

    Without a running worker, this command loads and verifies the version. If a worker fails, nothing changes.
    """
    alias = _one_alias(alias, tenant)
    entry = _resolve(_registry(), reference)
    move = _promotion().promote(entry.name, alias, entry.version, by="operator")
    typer.echo(f"{entry.name}@{alias}: {move.previous or 'new'} -> {move.version}")


@models.command()
def rollback(name: Name, alias: Alias = "champion", tenant: Tenant = None) -> None:
    """Move an alias back to its previous version, with the same checks as `promote`.

    rlvo models rollback mine
    rlvo models rollback mine --tenant North
    """
    alias = _one_alias(alias, tenant)
    move = _promotion().rollback(name, alias, by="operator")
    typer.echo(f"{name}@{alias}: {move.previous} -> {move.version}")


@models.command()
def history(name: Name, alias: Alias = "champion", tenant: Tenant = None) -> None:
    """List every change of an alias, oldest first.

    rlvo models history rlvo-synthetic
    rlvo models history rlvo-synthetic --tenant North
    """
    alias = _one_alias(alias, tenant)
    changes = _known(name).history(name, alias)
    rows = [[change.at[:19], change.previous or "", change.version, change.by] for change in changes]
    table(["at", "from", "to", "by"], rows)


@models.command()
def shadow(name: Name) -> None:
    """Compare the scores of shadow versions with the answers that were given.

    rlvo models shadow rlvo-synthetic
    """
    from app.database.shadow_scores import report

    _known(name)
    with open_database().reading() as session:
        comparisons = report(session, name)
    table(
        [
            "shadow",
            "answered by",
            "scored",
            "failed",
            "decided",
            "decide alike",
            "mean difference",
            "mean absolute",
            "largest",
        ],
        [
            [
                each.version,
                each.answered,
                *map(str, (each.scored, each.failed, each.decided, each.agreed)),
                *map(_number, (each.mean_difference, each.mean_absolute_difference, each.largest_difference)),
            ]
            for each in comparisons
        ],
    )


@models.command()
def keygen(path: Annotated[Path, typer.Argument(help="New file for the private key")]) -> None:
    """Create an Ed25519 key pair for signing versions; print the public key.

    rlvo models keygen signing.key

    Set RLVO_TRUSTED_KEYS to the public key: the service then accepts only versions that are signed with it.
    """
    from app.registry.signatures import generate

    try:
        typer.echo(generate(path))
    except FileExistsError:
        typer.echo(f"{path} exists already. Choose another file name.", err=True)
        raise typer.Exit(2) from None


@models.command()
def sign(
    reference: Annotated[str, typer.Argument(help="name@1.2.0")],
    key: Annotated[Path, typer.Option(exists=True, dir_okay=False, help="File of the private key")],
) -> None:
    """Check every file of a version, then sign the version.

    rlvo models sign rlvo-synthetic@1.0.0 --key signing.key
    """
    from app.registry.model_store import ModelStore
    from app.registry.signatures import sign as add_signature

    config = settings()
    registry = ModelStore(config.model_store)  # without trusted keys: the version is not signed yet
    entry = _resolve(registry, reference)
    registry.verify(entry)
    typer.echo(f"{entry.name} {entry.version} is signed; its public key is {add_signature(entry.folder, key)}")


@models.command()
def export(
    reference: Reference,
    form: Annotated[str, typer.Option("--format", help="onnx, openvino or torchscript")] = "onnx",
    to: Annotated[Path, typer.Option(file_okay=False, help="Folder to write into")] = Path(),
) -> None:
    """Export a version as one graph for another runtime, and verify its golden cases in that runtime.

    rlvo models export rlvo-synthetic --format openvino --to exported

    The graph takes prepared tensors and returns the calibrated probability. It neither prepares nor explains.
    """
    if form not in ("onnx", "openvino", "torchscript"):
        raise typer.BadParameter("Use onnx, openvino or torchscript.", param_hint="--format")
    from app.inference.export import GraphFormat
    from app.inference.export import export as write
    from app.inference.model_version import ModelVersion

    registry = _registry()
    entry = _resolve(registry, reference)
    registry.verify(entry)
    written = write(ModelVersion.load(entry.folder, entry.manifest, "cpu"), entry.folder, GraphFormat(form), to)
    typer.echo(f"{written.path}: {written.cases} golden cases agree; largest difference {written.difference:.1e}")


def _one_alias(alias: str, tenant: str | None) -> str:
    """Return the alias of the options --alias and --tenant; BadParameter if both are given."""
    from app.registry.aliases import DEFAULT_ALIAS, alias_of_tenant

    if tenant is None:
        return alias
    if alias != DEFAULT_ALIAS:
        raise typer.BadParameter("Use --tenant or --alias, not both.", param_hint="--tenant")
    return alias_of_tenant(tenant)


def _registry() -> ModelStore:
    return open_model_store(settings())


def _resolve(registry: ModelStore, reference: str) -> StoredVersion:
    with naming_folders(settings()):
        return registry.resolve(reference)


def _known(name: str) -> ModelStore:
    """Return the model store; ModelNotFound if it has no version of the model."""
    from app.sdk.errors import ModelNotFound

    registry = _registry()
    if not registry.versions(name):
        raise ModelNotFound(f"The model store {registry.folder} has no such model; `rlvo models list` shows all")
    return registry


def _promotion() -> Promotion:
    from app.operations.promotion import Promotion

    config = settings()

    def check_here(name: str, version: str) -> None:
        from app.worker.process import create_model_cache  # here: it loads torch

        create_model_cache(config).check(name, version)

    return Promotion(
        open_database(), _registry(), config.lease, check_here=check_here, load_timeout=config.load_timeout
    )


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:+.4f}"
