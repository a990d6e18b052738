"""A federated fit over files: rounds, answers and the result in one folder, which sites may share, mail or copy.

Design notes:
- ``round-01.json`` is written by the coordinator, ``answer-01-SITE.json`` by each site, ``result.json`` at the end.
- A site writes its count of released numbers before its answer. A site that is killed between the two gives the same
  answer again, which counts once.
- A wait ends with the sites that are missing. They are left out only if that is asked for, and never below the quorum.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from app.core.filesystem import locked, private_file
from app.core.schema import FrozenModel
from app.evaluation import federated, rounds
from app.evaluation.rounds import Answer, Kind, Plan, Result, Round, State
from app.registry import signed_json
from app.sdk.errors import InvalidRequest
from app.training.site_data import SiteData

RESULT = "result.json"
POLL = 0.2  # seconds between two looks at the folder
Model = TypeVar("Model", bound=FrozenModel)


@dataclass(frozen=True)
class Progress:
    """What a step of the coordinator found: the next round or the result, or the sites that are missing."""

    number: int
    missing: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    result: Result | None = None


def read(path: Path, model: type[Model], trusted: Sequence[str] = ()) -> tuple[Model, str]:
    """Read a signed document of one kind; return it and its digest.

    Raises:
        InvalidRequest: It is no such document, or its signature is refused.
    """
    content = signed_json.read(path, trusted).content
    return parsed(content, model, path.name), signed_json.digest(content)


def parsed(content: dict[str, Any], model: type[Model], name: str) -> Model:
    """A document as its model; the error names the first fault, without the value."""
    try:
        return model.model_validate_json(signed_json.canonical(content))
    except ValidationError as error:
        what = f"{model.__name__.casefold()} of rlvo"
        raise InvalidRequest(f"{name} is no {what}: {_first_fault(error)}") from None


def _first_fault(error: ValidationError) -> str:
    first = error.errors()[0]
    return ": ".join(filter(None, (".".join(map(str, first["loc"])), first["msg"])))


def new_plan(**members: Any) -> Plan:
    """A plan with a new nonce.

    Raises:
        InvalidRequest: The members do not fit.
    """
    try:
        return Plan(nonce=secrets.token_hex(8), **members)
    except ValidationError as error:
        raise InvalidRequest(f"The plan does not fit: {_first_fault(error)}") from None


def start(folder: Path, plan: Plan, key: Path | None = None) -> None:
    """Write the first round into a new folder.

    Raises:
        InvalidRequest: The folder holds rounds already.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if _round_files(folder):
        raise InvalidRequest(f"{folder.name} holds rounds already; give a new folder")
    _write(folder / _round_name(1), rounds.first_round(plan), key)


def last_round(folder: Path) -> Path:
    """File of the last round of a folder.

    Raises:
        InvalidRequest: There is none.
    """
    files = _round_files(folder)
    if not files:
        raise InvalidRequest(f"{folder.name} holds no round; `rlvo federate start` writes the first one")
    return files[-1]


def answer(
    given_file: Path,
    data_file: Path,
    site: str,
    *,
    out: Path,
    key: Path | None = None,
    trusted: Sequence[str] = (),
    write: bool = True,
) -> tuple[Path, Answer]:
    """Answer a round with the data of a site; return the file and the answer.

    Args:
        given_file: The round.
        data_file: The data of the site.
        site: Name of the site in the plan.
        out: Folder of the answer.
        key: Private key that signs the answer.
        trusted: Public keys, of which one must have signed the round.
        write: Whether the answer is written and counted.

    Raises:
        InvalidRequest: The round or the data do not fit, or the site has given as many numbers as it may.
    """
    given, digest = read(given_file, Round, trusted)
    data, plan = SiteData.load(data_file), given.plan
    if (data.predictor, data.digest) != (plan.predictor, plan.predictor_digest):
        raise InvalidRequest(f"The data are those of {data.predictor}, and the plan is for {plan.predictor}")
    patients = data.patients(plan.kind)
    if [design.shape[1] for design in patients.designs] != list(plan.columns):
        raise InvalidRequest("The features of the site do not fit the plan: the numbers of columns differ")
    try:
        found = rounds.answer(given, digest, site, patients)
    except ValueError as error:
        raise InvalidRequest(str(error)) from error
    path = out / f"answer-{given.number:02d}-{site}.json"
    if write:
        with locked(data_file.parent):  # two plans may be answered at the same time
            _count(data_file, given, digest, len(data.labels) * patients.values)
        out.mkdir(parents=True, exist_ok=True)
        _write(path, found, key)
    return path, found


def follow(folder: Path, answer_one: Callable[[Path], None], seconds: float) -> bool:
    """Answer each new round of a folder until there is a result; False if nothing new came for some seconds."""
    done: set[str] = set()
    deadline = time.monotonic() + seconds
    while not (folder / RESULT).exists():
        files = _round_files(folder)
        if files and files[-1].name not in done:
            answer_one(files[-1])
            done.add(files[-1].name)
            deadline = time.monotonic() + seconds
        elif time.monotonic() > deadline:
            return False
        else:
            time.sleep(POLL)
    return True


def combine(
    folder: Path, *, key: Path | None = None, trusted: Sequence[str] = (), wait: float = 0.0, leave_out: bool = False
) -> Progress:
    """Make one step: the next round, or the result, if every site of the last round has answered.

    Args:
        folder: Folder of the rounds.
        key: Private key that signs what is written.
        trusted: Public keys, of which one must have signed each answer.
        wait: Seconds to wait for missing answers.
        leave_out: Go on without the sites that are missing then, down to the quorum.

    Raises:
        InvalidRequest: A document does not fit, or the sums have no estimate.
    """
    if (folder / RESULT).exists():
        found, _ = read(folder / RESULT, Result)
        return Progress(found.rounds, left_out=found.left_out, result=found)
    given, _ = read(last_round(folder), Round)
    deadline = time.monotonic() + wait
    while missing := [site for site in given.sites if not _answer_file(folder, given.number, site).exists()]:
        if time.monotonic() > deadline:
            break
        time.sleep(POLL)
    left = len(given.sites) - len(missing)
    if missing and not (leave_out and left >= given.plan.quorum):
        return Progress(given.number, missing=tuple(missing))
    left_out = (*given.left_out, *missing)
    try:
        played, state = _replayed(folder, left_out, trusted)
        if state.done:
            found = rounds.result(played, state)
            _write(folder / RESULT, found, key)
            return Progress(given.number, left_out=left_out, result=found)
        _write(folder / _round_name(given.number + 1), rounds.next_round(given, state), key)
    except ValueError as error:
        raise InvalidRequest(str(error)) from error
    return Progress(given.number + 1, left_out=left_out)


def _replayed(
    folder: Path, left_out: Sequence[str], trusted: Sequence[str]
) -> tuple[list[tuple[Round, dict[str, Answer]]], State]:
    """All rounds with the answers of the sites that are not left out, and the state after them."""
    played: list[tuple[Round, dict[str, Answer]]] = []
    plan: Plan | None = None
    for number, path in enumerate(_round_files(folder), 1):
        given, digest = read(path, Round)
        if given.number != number or (plan is not None and given.plan != plan):
            raise InvalidRequest(f"{path.name} does not follow from the rounds before it; start again")
        plan = given.plan
        answers = {}
        for site in given.sites:
            file = _answer_file(folder, number, site)
            if not file.exists():
                continue  # this site is left out from the next round on
            one, _ = read(file, Answer, trusted)
            if (one.round_digest, one.number, one.site) != (digest, number, site):
                raise InvalidRequest(f"{file.name} is no answer of {site} to round {number}")
            answers[site] = one
        played.append((given, answers))
    return played, rounds.replay(played, left_out)


def _count(data_file: Path, given: Round, digest: str, limit: int) -> None:
    """Count the numbers of an answer before they leave; refuse a plan whose rounds could exceed the limit."""
    path = data_file.with_name(f"{data_file.name}.released.json")
    try:
        released: dict[str, dict[str, Any]] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        spent = sum(one["numbers"] for one in released.values() if one["kind"] == given.plan.kind.value)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InvalidRequest(f"{path.name} is damaged; restore it, because it counts what left the site") from error
    if digest in released:
        return
    open_fits = [len(own) for own in given.parameters if own]
    now = federated.numbers(open_fits)
    if spent + now > limit:
        raise InvalidRequest(
            f"This site has given {spent} numbers, and {now} more would exceed the {limit} unknown values of its "
            "patients: it gives no more"
        )
    released[digest] = {"kind": given.plan.kind.value, "numbers": now, "nonce": given.plan.nonce}
    with private_file(path) as file:
        file.write(f"{json.dumps(released, indent=1)}\n".encode())


def needed_patients(plan: Plan, *, shared: bool) -> int:
    """Patients that a site needs for a plan; ``shared``: the folds have the same features."""
    values = 2
    if plan.kind is Kind.HEADS:
        values = rounds.head_values(len(plan.columns), plan.columns[0] - 1, shared=shared)
    return max(plan.least_patients, federated.least_patients(plan.columns, values, plan.rounds))


def _write(path: Path, document: FrozenModel, key: Path | None) -> None:
    signed_json.write(path, document.model_dump(mode="json"), key)


def _round_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("round-[0-9][0-9].json"))


def _round_name(number: int) -> str:
    return f"round-{number:02d}.json"


def _answer_file(folder: Path, number: int, site: str) -> Path:
    return folder / f"answer-{number:02d}-{site}.json"
