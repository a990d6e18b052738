"""`rlvo trial`: silent trials of a model version, whose answers are not seen before their end."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from app.cli.common import naming_folders, open_database, open_model_store, settings, table

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from app.core.two_key_sealing import PrivateKey
    from app.database.session import Database
    from app.operations.trial_patients import TrialState
    from app.operations.trial_report import MadeLook

trial = typer.Typer(
    help="Silent trials: answers are computed and sealed until two key holders open them.", no_args_is_help=True
)

ACTOR = "operator"
Name = Annotated[str, typer.Argument(help="Name of the trial, as in its protocol")]


@trial.command("key")
def key(path: Annotated[Path, typer.Argument(help="New file for the private key")]) -> None:
    """Create the key pair of a holder; print the public key, which the protocol names.

    rlvo trial key statistician.key

    Each holder runs this on a machine of their own. The private key stays there; two keys open the answers.
    """
    from app.core.two_key_sealing import generate

    try:
        typer.echo(generate(path))
    except FileExistsError:
        typer.echo(f"{path.name} exists already. Choose another file name.", err=True)
        raise typer.Exit(2) from None


@trial.command("create")
def create(
    protocol: Annotated[Path, typer.Argument(help="Protocol of the trial (TOML)")],
    check: Annotated[bool, typer.Option("--check", help="Only check the protocol; start nothing")] = False,
) -> None:
    """Freeze a protocol and start its trial: from now on, the answers of its sites are sealed.

    rlvo trial create protocol.toml --check
    rlvo trial create protocol.toml
    """
    from app.database import api_keys, audit, trials
    from app.evaluation.trial_protocol import parse

    read = parse(protocol.read_bytes())
    config = settings()
    store = open_model_store(config)
    with naming_folders(config):
        entry = store.resolve(f"{read.model.name}@{read.model.version}")
    store.verify(entry)
    frozen = read.with_digest(entry.digest)
    if not check:
        database = open_database(must_exist=True)
        with database.session() as session:
            trials.create(session, frozen.name, frozen.document)
            known = {each.tenant for each in api_keys.listed(session)} | {"local"}
            detail = {"hash": frozen.hash, "version": f"{entry.name}@{entry.version}", "digest": entry.digest}
            audit.append(session, ACTOR, "trial.create", frozen.name, detail)
        if config.retention_days:
            warning = f"RLVO_RETENTION_DAYS erases predictions after {config.retention_days:g} days, with their sealed"
            typer.echo(f"{warning} answers and outcomes: set a period that ends after the final report.", err=True)
        for tenant in frozen.population.tenants:
            if tenant not in known:
                typer.echo(f"No API key has the tenant {tenant}: check that the site's studies come as it.", err=True)
    typer.echo(f"{frozen.name}: {'valid' if check else 'running'}, protocol SHA-256 {frozen.hash}")


@trial.command("status")
def status(name: Annotated[str, typer.Argument(help="Name of the trial; without one, all are listed")] = "") -> None:
    """Show patients, outcomes and looks of a trial. No key is needed, and no answer is read.

    rlvo trial status
    rlvo trial status silent-2027
    """
    from app.database import trials
    from app.sdk.errors import Conflict

    database = open_database(must_exist=True)
    if not name:
        with database.reading() as session:
            rows = trials.listed(session)
        table(
            ["name", "version", "sites", "started", "stopped"],
            [
                [
                    one.name,
                    f"{one.model}@{one.version}",
                    ", ".join(one.protocol["population"]["tenants"]),
                    f"{one.created:%Y-%m-%d}",
                    f"{one.stopped:%Y-%m-%d}" if one.stopped else "",
                ]
                for one in rows
            ],
        )
        return
    with database.reading() as session:
        state = _state(session, name)
    typer.echo(f"{name}: {_phase(state)}; protocol SHA-256 {state.trial.hash}")
    table(["step", "number"], [[step, str(count)] for step, count in state.flow])
    table(["deviation", "number"], [[step, str(count)] for step, count in state.deviations() if count])
    for look in state.looks:
        typer.echo(f"Look {look.number}: {look.at:%Y-%m-%d}, {look.patients} patients: {look.verdict}")
    if state.trial.stopped is None:
        try:
            typer.echo(f"Look {state.due()} is due: `rlvo trial report {name}` with two keys.")
        except Conflict as none:
            typer.echo(none.detail)


@trial.command("stop")
def stop(
    name: Name,
    reason: Annotated[str, typer.Option(help="Why it stops, for the report; no name and no value of a patient")],
) -> None:
    """Stop a trial. New studies of its sites are answered openly again; sealed answers stay sealed.

    rlvo trial stop silent-2027 --reason "planned size reached"
    """
    from app.database import audit, trials
    from app.sdk.errors import InvalidRequest

    if not 1 <= len(reason) <= 500:
        raise InvalidRequest("The reason must have 1 to 500 characters")
    with open_database(must_exist=True).session() as session:
        trials.stop(session, name, reason)
        audit.append(session, ACTOR, "trial.stop", name, {"reason": reason})
    typer.echo(f"{name} is stopped. `rlvo trial report {name}` writes the final report.")


@trial.command("report")
def report(
    name: Name,
    key: Annotated[list[Path], typer.Option(exists=True, dir_okay=False, help="Private key of a holder; give two")],
    out: Annotated[Path, typer.Option(help="New folder of the final report, or that of an earlier one")] = Path(
        "trial"
    ),
    rounds: Annotated[int, typer.Option(min=100, max=20_000, help="Resamples of each bootstrap")] = 1000,
) -> None:
    """Make the interim look that is due; or, after the stop, write the final report. Both need two keys.

    rlvo trial report silent-2027 --key statistician.key --key investigator.key

    A look prints the primary measure and nothing else. The final report follows DECIDE-AI and TRIPOD+AI.
    """
    from app.cli.cohort_options import cohort_faults
    from app.core.two_key_sealing import read_private
    from app.operations import trial_report
    from app.operations.trial_patients import opener
    from app.training import report_folder

    keys = [read_private(path) for path in key]
    database = open_database(must_exist=True)
    with database.reading() as session:
        state = _state(session, name)
    holders = _holders(database, state, keys)
    opened = opener(state, keys)
    if state.trial.stopped is None:
        look = trial_report.interim(state, opened)
        _record(database, name, holders, look, final=False)
        typer.echo(trial_report.describe(state, look))
        if look.decides:
            typer.echo(f"The stopping rule is met. `rlvo trial stop {name}` ends the trial.")
        return
    with cohort_faults():
        report_folder.check(out, "--out")
    found = trial_report.final(state, opened, rounds=rounds)
    _record(database, name, holders, found.new, final=True)
    trial_report.write(state, found, out)
    typer.echo(trial_report.conclusion(state, found.primary))
    typer.echo(f"Report: {out / 'report.html'}")


def _state(session: Session, name: str) -> TrialState:
    from app.database import trials
    from app.evaluation import trial_protocol
    from app.operations.trial_patients import TrialState

    row = trials.find(session, name)
    entries, looks = trials.entries(session, name), trials.looks(session, name)
    return TrialState(row, trial_protocol.read(row.protocol), entries, looks)


def _phase(state: TrialState) -> str:
    row = state.trial
    if row.stopped is None:
        return f"running since {row.created:%Y-%m-%d}"
    unsealed = f", unsealed {row.unsealed:%Y-%m-%d}" if row.unsealed else ", sealed"
    return f"stopped {row.stopped:%Y-%m-%d} ({row.stop_reason}){unsealed}"


def _holders(database: Database, state: TrialState, keys: list[PrivateKey]) -> list[str]:
    """Names of the holders; wrong keys are noted in the audit log."""
    from app.database import audit
    from app.operations.trial_patients import holders_of
    from app.sdk.errors import InvalidRequest

    try:
        return holders_of(state.protocol, keys)
    except InvalidRequest:
        with database.session() as session:
            audit.append(session, ACTOR, "trial.keys-refused", state.trial.name, {"keys": len(keys)})
        raise


def _record(database: Database, name: str, holders: list[str], made: MadeLook | None, *, final: bool) -> None:
    """Record a look, and the unsealing by the final report, before anything is printed or written."""
    from app.database import audit, trials

    with database.session() as session:
        if made is not None:
            look = made.look
            trials.add_look(session, name, made.number, look.patients, look.events, made.verdict)
            counts = {"number": made.number, "patients": look.patients, "verdict": made.verdict}
            audit.append(session, ACTOR, "trial.look", name, counts | {"holders": holders})
        if final:
            trials.note_unsealed(session, name)
            audit.append(session, ACTOR, "trial.unseal", name, {"holders": holders})
