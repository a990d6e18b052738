"""Silent trials: which predictions they seal, their sealed answers, outcomes and looks.

Design notes:
- `predictions.add` asks `seals` for every new prediction, so no way in can pass a running trial.
- A study in a trial is accepted without an explanation and without a return address, so that no map, figure, report or
  DICOM object of it ever exists.
- This module knows the protocol as JSON; `app.evaluation.trial_protocol` checks it. A stored protocol that differs from
  its hash stops the answers of all sites, because it may no longer name one of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.core.json_text import canonical_hash
from app.database.session import now
from app.database.tables import OutcomeRow, PredictionRow
from app.database.trial_tables import TrialEntryRow, TrialLookRow, TrialRow
from app.sdk.errors import Conflict, InternalError, ModelNotReady, NotFound, Sealed
from app.sdk.types import ModelRef, Status


@dataclass(frozen=True)
class Trial:
    """A trial; ``holders`` are the public keys, in the order of the protocol."""

    name: str
    hash: str
    protocol: dict[str, Any]
    created: datetime
    stopped: datetime | None = None
    stop_reason: str | None = None
    unsealed: datetime | None = None

    @property
    def holders(self) -> tuple[str, ...]:
        """Public keys of the holders."""
        return tuple(one["public_key"] for one in self.protocol["holders"])

    @property
    def model(self) -> str:
        """Name of the model."""
        return str(self.protocol["model"]["name"])

    @property
    def version(self) -> str:
        """Version of the model."""
        return str(self.protocol["model"]["version"])

    @property
    def keeps_silent(self) -> bool:
        """Whether the trial's sites get no answer of another version, of any model."""
        return bool(self.protocol["model"]["other_versions"] == "refuse")

    def context(self, prediction_id: str) -> str:
        """Context of a sealed answer."""
        return f"{self.name}:{self.hash}:{prediction_id}"


@dataclass(frozen=True)
class TrialEntry:
    """A prediction of a trial, with its sealed answer and its outcome, as far as they exist."""

    prediction_id: str
    caller: str
    patient: str
    created: datetime
    status: Status
    erased: bool
    clinical: dict[str, Any] = field(repr=False)
    sealed: bytes | None = field(default=None, repr=False)
    error: str | None = None
    has_outcome: bool = False
    refractory: bool | None = None
    outcome_entered: datetime | None = None
    outcome_changes: int = 0
    changed_unsealed: bool = False
    has_subject: bool = True


@dataclass(frozen=True)
class TrialLook:
    """A look that was made."""

    number: int
    at: datetime
    patients: int
    events: int
    verdict: str


def create(session: Session, name: str, protocol: dict[str, Any]) -> Trial:
    """Stores a trial, which runs from now on. Raises Conflict if its name, or one of its sites, is taken."""
    if session.get(TrialRow, name) is not None:
        raise Conflict(f"There is a trial {name} already. An amended protocol is a new trial with a new name")
    row = TrialRow(name=name, hash=canonical_hash(protocol), protocol=protocol, created=now())
    new = _trial(row)
    for tenant in protocol["population"]["tenants"]:
        for other in running_at(session, tenant):
            if new.keeps_silent or other.keeps_silent or other.model == new.model:
                raise Conflict(f"The trial {other.name} runs at one of these sites. Stop it first")
    session.add(row)
    session.flush()
    return new


def find(session: Session, name: str) -> Trial:
    """The trial. Raises NotFound."""
    row = session.get(TrialRow, name)
    if row is None:
        raise NotFound("There is no trial of this name. `rlvo trial status` lists all")
    return _trial(row)


def listed(session: Session) -> list[Trial]:
    """All trials, oldest first."""
    return [_trial(row) for row in session.scalars(select(TrialRow).order_by(TrialRow.created, TrialRow.name))]


def running_at(session: Session, tenant: str) -> list[Trial]:
    """Running trials of a site, oldest first; there are few."""
    rows = session.scalars(select(TrialRow).where(TrialRow.stopped.is_(None)).order_by(TrialRow.created, TrialRow.name))
    checked = [_trial(row) for row in rows]  # all of them: a changed protocol may also have lost a site
    return [one for one in checked if tenant in one.protocol["population"]["tenants"]]


def deciding(running: Sequence[Trial], model: str) -> Trial | None:
    """The trial that decides on the answers of a model, among the running ones of a site; None if there is none.

    A trial that keeps its sites silent decides on every model: a version that was recalibrated from that of the trial
    has a name of its own, and its answers tell the sealed ones.
    """
    return next((one for one in running if one.keeps_silent or one.model == model), None)


def refuse(session: Session, tenant: str, model: str, version: str) -> None:
    """Raises Sealed if a running trial forbids that a site sees answers of this version outside of the trial."""
    trial = deciding(running_at(session, tenant), model)
    if trial is not None and (trial.keeps_silent or version == trial.version):
        raise Sealed(f"The silent trial {trial.name} runs at this site")


def pinned(running: Sequence[Trial], reference: str | None) -> str | None:
    """Version ``name@1.2.0`` of a trial that keeps a site silent, for a request that leaves the choice; else None.

    Such a request names no model, or the model of the trial without a version or with an alias.
    """
    trial = next((one for one in running if one.keeps_silent), None)
    if trial is None:
        return None
    name, _, which = (reference or trial.model).partition("@")
    names_a_version = which[:1].isdigit()  # an alias begins with a letter
    return None if name != trial.model or names_a_version else f"{trial.model}@{trial.version}"


def seals(running: Sequence[Trial], model: ModelRef) -> str | None:
    """Name of the trial that seals a new prediction of a site; None if none does.

    Raises:
        Sealed: The trial of the site forbids answers of this version.
        ModelNotReady: The files of the version are not those of the protocol.
    """
    trial = deciding(running, model.name)
    if trial is None:
        return None
    if (model.name, model.version) != (trial.model, trial.version):
        if trial.keeps_silent:
            only = f"{trial.model}@{trial.version}"
            raise Sealed(f"The silent trial {trial.name} runs at this site: only {only} may be asked, or no version")
        return None
    if model.digest != trial.protocol["model"]["digest"]:
        raise ModelNotReady("The files of the model version are not those of the protocol of the silent trial")
    return trial.name


def enter(session: Session, trial: str, prediction_id: str) -> None:
    """Adds a prediction to a trial."""
    session.add(TrialEntryRow(prediction_id=prediction_id, trial=trial))
    session.flush()


def keep_sealed(session: Session, prediction_id: str, sealed: bytes) -> None:
    """Stores the sealed answer of a prediction of a trial."""
    session.get_one(TrialEntryRow, prediction_id).sealed = sealed


def note_outcome(session: Session, prediction_id: str, *, correction: bool) -> str | None:
    """Notes that the outcome of a prediction was entered or corrected; returns its trial, None without one."""
    entry = session.get(TrialEntryRow, prediction_id)
    if entry is None:
        return None
    entry.outcome_entered = entry.outcome_entered or now()
    entry.outcome_changes += correction
    if session.get_one(TrialRow, entry.trial).unsealed is not None:
        entry.changed_unsealed = True
    session.flush()
    return entry.trial


def covers_shadow(session: Session, prediction_id: str, model: str, version: str) -> bool:
    """Whether a trial forbids that a version scores a prediction as a shadow.

    A stored score is the difference to an open answer, so it would reveal an answer of the trial's version.
    """
    row = session.get(PredictionRow, prediction_id)
    if row is None:
        return False
    trial = deciding(running_at(session, row.caller), model)
    return row.trial is not None or (trial is not None and (trial.model, trial.version) == (model, version))


def stop(session: Session, name: str, reason: str) -> Trial:
    """Stops a trial: new studies of its sites are answered openly again. Raises NotFound, Conflict."""
    row = session.scalars(select(TrialRow).where(TrialRow.name == name).with_for_update()).one_or_none()
    if row is None:
        raise NotFound("There is no trial of this name. `rlvo trial status` lists all")
    if row.stopped is not None:
        raise Conflict("The trial is stopped already")
    row.stopped, row.stop_reason = now(), reason
    session.flush()
    return _trial(row)


def note_unsealed(session: Session, name: str) -> None:
    """Notes the first final report of a trial."""
    row = session.get_one(TrialRow, name)
    row.unsealed = row.unsealed or now()


def looks(session: Session, name: str) -> list[TrialLook]:
    """Looks of a trial, in order."""
    rows = session.scalars(select(TrialLookRow).where(TrialLookRow.trial == name).order_by(TrialLookRow.number))
    return [TrialLook(row.number, row.at, row.patients, row.events, row.verdict) for row in rows]


def add_look(session: Session, name: str, number: int, patients: int, events: int, verdict: str) -> None:
    """Stores a look. Raises Conflict if it was made meanwhile."""
    if session.get(TrialLookRow, (name, number)) is not None:
        raise Conflict("This look was made meanwhile")
    session.add(TrialLookRow(trial=name, number=number, at=now(), patients=patients, events=events, verdict=verdict))
    session.flush()


def entries(session: Session, name: str) -> list[TrialEntry]:
    """All predictions of a trial, also erased ones, oldest first."""
    query = (
        select(PredictionRow, TrialEntryRow, OutcomeRow)
        .outerjoin(TrialEntryRow, TrialEntryRow.prediction_id == PredictionRow.id)
        .outerjoin(OutcomeRow, OutcomeRow.prediction_id == PredictionRow.id)
        .where(PredictionRow.trial == name)
        .order_by(PredictionRow.created, PredictionRow.id)
    )
    return [_entry(*row) for row in session.execute(query)]


def _entry(row: PredictionRow, entry: TrialEntryRow | None, outcome: OutcomeRow | None) -> TrialEntry:
    patient = row.subject or row.study_instance_uid or row.id
    return TrialEntry(
        prediction_id=row.id,
        caller=row.caller,
        patient=f"{row.caller}/{patient}",
        created=row.created,
        status=Status(row.status),
        erased=row.erased is not None,
        clinical=row.clinical or {},
        sealed=entry.sealed if entry else None,
        error=row.error["code"] if row.error else None,
        has_outcome=outcome is not None,
        refractory=outcome.refractory if outcome else None,
        outcome_entered=entry.outcome_entered if entry else None,
        outcome_changes=entry.outcome_changes if entry else 0,
        changed_unsealed=bool(entry and entry.changed_unsealed),
        has_subject=bool(row.subject),
    )


def _trial(row: TrialRow) -> Trial:
    if canonical_hash(row.protocol) != row.hash:  # with other keys in it, answers would be sealed to someone else
        raise InternalError("The stored protocol of a silent trial differs from its hash; the audit log has the hash")
    return Trial(row.name, row.hash, row.protocol, row.created, row.stopped, row.stop_reason, row.unsealed)
