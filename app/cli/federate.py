"""`rlvo federate`: one fit over several sites by rounds of sums; no patient leaves a site."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from app.cli.pool import Trust

if TYPE_CHECKING:
    from app.evaluation.rounds import Result

federate = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    help="Fit a recalibration, or the heads of a version, over several sites by rounds of sums.",
)

Key = Annotated[Path | None, typer.Option(help="Private key that signs what is written")]
Rounds = Annotated[Path, typer.Argument(help="Folder of the rounds")]


@federate.command()
def start(
    folder: Annotated[Path, typer.Argument(help="New folder of the rounds")],
    site: Annotated[list[str], typer.Option(help="Name of a site; repeatable")],
    version: Annotated[str, typer.Option(help="Version in the model store: NAME, NAME@1.0.0 or NAME@ALIAS")] = "",
    predictor: Annotated[str, typer.Option(help="Name of another predictor; without --version")] = "",
    kind: Annotated[str, typer.Option(help="recalibration, or heads: the last layer of each fold")] = "recalibration",
    quorum: Annotated[int, typer.Option(min=0, help="Sites without which there is no result; 0: all")] = 0,
    ridge: Annotated[float, typer.Option(min=0, max=1e9, help="Penalty on the change of the heads")] = 10.0,
    rounds: Annotated[int, typer.Option(min=1, max=50, help="Most rounds; more rounds need more patients")] = 10,
    least_patients: Annotated[int, typer.Option(min=50, help="Patients that each site needs")] = 50,
    key: Key = None,
) -> None:
    """Plan a fit and write its first round.

    rlvo federate start rounds --version rlvo@1.0.0 --site north --site south --site west
    rlvo federate start rounds --version rlvo@1.0.0 --kind heads --ridge 10 --rounds 8 --site north --site south

    Give the file to the sites, by a shared folder, by mail or by SFTP.
    """
    from app.cli.cohort_options import cohort_faults
    from app.cli.common import naming_folders, open_model_store, settings
    from app.evaluation.rounds import Kind
    from app.operations import federation

    if kind not in list(Kind):
        raise typer.BadParameter(f"give {' or '.join(Kind)}", param_hint="--kind")
    if bool(version) == bool(predictor):
        raise typer.BadParameter("give one of both", param_hint="--version, --predictor")
    if predictor and kind == Kind.HEADS:
        raise typer.BadParameter("only a version has heads", param_hint="--kind")
    columns: tuple[int, ...] = (1, 2)
    digest, shared = "", False
    if version:
        config = settings()
        store = open_model_store(config)
        with naming_folders(config):
            entry = store.resolve(version)
        predictor, digest = f"{entry.name}@{entry.version}", entry.digest
        if kind == Kind.HEADS:
            from app.training import head_features

            shared = entry.manifest.kind == "logistic"
            columns = (head_features.head_size(entry.manifest) + 1,) * len(entry.manifest.folds)
    with cohort_faults():
        plan = federation.new_plan(
            kind=Kind(kind),
            predictor=predictor,
            predictor_digest=digest,
            sites=tuple(site),
            quorum=quorum or len(site),
            least_patients=least_patients,
            rounds=rounds,
            ridge=ridge if kind == Kind.HEADS else 0.0,
            columns=columns,
        )
        federation.start(folder, plan, key)
    needed = federation.needed_patients(plan, shared=shared)
    typer.echo(f"{kind} of {predictor}: {sum(columns)} parameters, {len(site)} sites, at most {rounds} rounds.")
    typer.echo(f"Each site needs {needed} patients. Wrote {federation.last_round(folder)}.")


@federate.command()
def answer(
    given: Annotated[Path, typer.Argument(help="File of a round, or folder of the rounds")],
    data: Annotated[Path, typer.Argument(help="File of `rlvo validate --site-file`")],
    site: Annotated[str, typer.Option(help="Name of your site in the plan")],
    out: Annotated[Path | None, typer.Option(help="Folder of the answer; default: that of the round")] = None,
    preview: Annotated[bool, typer.Option("--preview", help="Print the answer as text, and do not write it")] = False,
    follow: Annotated[
        float, typer.Option(min=0, help="Answer each new round, and end after so many quiet seconds")
    ] = 0,
    key: Key = None,
    trust: Trust = None,
) -> None:
    """Answer a round with sums over the patients of your site.

    rlvo federate answer round-01.json site.npz --site north --preview
    rlvo federate answer rounds site.npz --site north --key site.key --follow 600

    The same round gives the same answer, so a command that was interrupted is repeated. Too few patients, or a round
    that would single out patients, are refused. Exit status 1 says that no new round came.
    """
    from app.cli.cohort_options import cohort_faults
    from app.operations import federation

    folder = given if given.is_dir() else given.parent

    def one(path: Path) -> None:
        file, found = federation.answer(
            path, data, site, out=out or folder, key=key, trusted=trust or (), write=not preview
        )
        if preview:
            from app.evaluation import aggregate

            typer.echo(aggregate.preview(found.model_dump(mode="json")))
        else:
            typer.echo(f"Wrote {file}: sums over {found.patients} patients.")

    with cohort_faults():
        if follow and not preview:
            if not given.is_dir():
                raise typer.BadParameter("--follow needs the folder of the rounds")
            if not federation.follow(folder, one, follow):
                typer.echo(f"No new round came within {follow:g} seconds.", err=True)
                raise typer.Exit(1)
        else:
            one(federation.last_round(given) if given.is_dir() else given)


@federate.command()
def combine(
    folder: Rounds,
    wait: Annotated[float, typer.Option(min=0, help="Seconds to wait for missing answers")] = 0,
    until_result: Annotated[bool, typer.Option("--until-result", help="Repeat until there is a result")] = False,
    leave_out: Annotated[
        bool, typer.Option("--leave-out", help="Go on without sites that are missing, down to the quorum")
    ] = False,
    key: Key = None,
    trust: Trust = None,
) -> None:
    """Add the answers of the last round, and write the next round or the result.

    rlvo federate combine rounds
    rlvo federate combine rounds --wait 3600 --until-result --leave-out --key coordinator.key

    A command that was interrupted is repeated: it computes its state from the files of the folder. Exit status 1 says
    that sites are missing.
    """
    from app.cli.cohort_options import cohort_faults
    from app.operations import federation

    with cohort_faults():
        while True:
            found = federation.combine(folder, key=key, trusted=trust or (), wait=wait, leave_out=leave_out)
            if found.missing:
                typer.echo(f"Round {found.number}: no answer yet from {', '.join(found.missing)}.", err=True)
                raise typer.Exit(1)
            if found.result is not None:
                break
            typer.echo(f"Wrote round {found.number}.")
            if not until_result:
                return
        typer.echo(_text(found.result))


@federate.command()
def apply(
    result: Annotated[Path, typer.Argument(help="result.json of the folder of the rounds")],
    parent: Annotated[str, typer.Argument(help="Version of the plan in the model store")],
    name: Annotated[str, typer.Option(help="Name of the new version")],
    version: Annotated[str, typer.Option(help="Number of the new version, such as 1.0.1")],
    key: Annotated[Path | None, typer.Option(help="Private key that signs the new version")] = None,
    trust: Trust = None,
) -> None:
    """Write the result as a new version of the model store, with its lineage.

    rlvo federate apply rounds/result.json rlvo@1.0.0 --name rlvo --version 1.1.0 --key signing.key

    For a recalibration, a closed test decides whether there is an update. No alias moves.
    """
    from app.cli.cohort_options import cohort_faults
    from app.cli.common import check_new_version, naming_folders, open_model_store, settings, sign_new_version
    from app.evaluation.rounds import Result
    from app.operations import federation
    from app.training import federated_version

    check_new_version(name, version)
    config = settings()
    store = open_model_store(config)
    with naming_folders(config):
        entry = store.resolve(parent)
    with cohort_faults():
        store.verify(entry)
        found, _ = federation.read(result, Result, trust or ())
        manifest, text = federated_version.write(found, entry, store.folder / name / version)
    typer.echo(text)
    if manifest is None:
        return
    sign_new_version(store.folder / name / version, key)


def _text(found: Result) -> str:
    from app.evaluation import rounds
    from app.evaluation.rounds import Kind

    counts = f"{len(found.sites)} sites, {found.patients} patients, {found.events} with the outcome"
    lines = [f"Result after {found.rounds} rounds: {counts}."]
    if found.left_out:
        lines.append(f"Left out, because they did not answer: {', '.join(found.left_out)}.")
    if found.plan.kind is Kind.RECALIBRATION:
        both = found.fits[1]
        errors = [both.covariance[0] ** 0.5, both.covariance[2] ** 0.5]
        pairs = zip(("Intercept", "slope"), both.parameters, errors, strict=True)
        lines.append(
            ", ".join(f"{name} {value:.4f} (standard error {error:.4f})" for name, value, error in pairs) + "."
        )
        try:
            chosen = rounds.recalibration_of(found)
            lines.append(f"Closed test: {chosen.update} (p = {chosen.p_any:.2g}).")
        except ValueError as error:
            lines.append(f"No closed test: {error}.")
    else:
        lines.append(f"{sum(found.plan.columns)} weights of {len(found.fits)} heads.")
    return "\n".join(lines)
