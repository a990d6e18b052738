"""Patients of a silent trial: which prediction counts, the outcome, and the flow from entry to analysis.

Design notes:
- A patient is a subject of a site; without a pseudonym, a DICOM study or a single prediction. The first computed answer
  counts, whatever it says.
- The patients with a known outcome are in the order in which their outcomes were entered, so each look sees the first
  of them.
- Only `opened` needs the keys. Flow, looks that are due and bounds are blind to the answers.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import numpy as np

from app.core import two_key_sealing
from app.core.two_key_sealing import PrivateKey, UnsealFailed
from app.database.trials import Trial, TrialEntry, TrialLook
from app.evaluation.metrics import Array, Labels
from app.evaluation.trial_protocol import TrialProtocol
from app.sdk.errors import Conflict, InvalidRequest
from app.sdk.types import Status


@dataclass(frozen=True)
class TrialPatient:
    """One patient: the prediction that counts, and the outcome.

    Attributes:
        entry: First prediction with an answer; the first one, if none has an answer.
        predictions: Number of predictions of the patient.
        refractory: The outcome; None if it is missing, or if the findings do not decide it.
        entered: When the outcome was entered.
        has_outcome: Whether an outcome was entered.
    """

    entry: TrialEntry
    predictions: int
    refractory: bool | None
    entered: datetime | None
    has_outcome: bool

    @property
    def computed(self) -> bool:
        """Whether there is a sealed answer."""
        return self.entry.sealed is not None

    @property
    def known(self) -> bool:
        """Whether the patient is analysed: with an answer and an outcome."""
        return self.computed and self.refractory is not None


@dataclass(frozen=True)
class TrialState:
    """A trial as a blinded person sees it; ``patients`` are in the order of their first prediction."""

    trial: Trial
    protocol: TrialProtocol
    entries: Sequence[TrialEntry] = field(repr=False)
    looks: Sequence[TrialLook]

    @property
    def patients(self) -> list[TrialPatient]:
        """All patients that are not erased."""
        groups: dict[str, list[TrialEntry]] = {}
        for entry in self.entries:
            if not entry.erased:
                groups.setdefault(entry.patient, []).append(entry)
        return [_patient(group) for group in groups.values()]

    @property
    def known(self) -> list[TrialPatient]:
        """The patients with an answer and an outcome, in the order in which the outcomes were entered."""
        found = [one for one in self.patients if one.known]
        return sorted(found, key=lambda one: (one.entered or one.entry.created, one.entry.prediction_id))

    @property
    def flow(self) -> list[tuple[str, int]]:
        """Steps from the entered predictions to the analysed patients."""
        patients, entries = self.patients, self.entries
        computed = [one for one in patients if one.computed]
        return [
            ("predictions entered", len(entries)),
            ("predictions erased", sum(one.erased for one in entries)),
            ("patients", len(patients)),
            ("patients without an answer: failed or cancelled", sum(_ended(one) for one in patients)),
            ("patients whose answer is being computed", len(patients) - len(computed) - sum(map(_ended, patients))),
            ("patients with a sealed answer", len(computed)),
            ("of them without an outcome yet", sum(not one.has_outcome for one in computed)),
            ("of them with an undecided outcome", sum(one.has_outcome and not one.known for one in computed)),
            ("patients with answer and outcome", sum(one.known for one in computed)),
        ]

    def due(self) -> int:
        """Number of the planned look that is due. Raises Conflict if none is."""
        planned, known = self.protocol.analysis.looks, len(self.known)
        last = self.looks[-1].number if self.looks else 0
        reached = [number for number, size in enumerate(planned, 1) if size <= known and number > last]
        if reached:
            return reached[-1]
        if last == len(planned):
            raise Conflict("All planned looks are made. Stop the trial with `rlvo trial stop` for its final report")
        raise Conflict(
            f"The next planned look is at {planned[last]} patients with answer and outcome; there are {known}. Other "
            "looks would raise the error rate"
        )

    def deviations(self) -> list[tuple[str, int]]:
        """Departures from the protocol that the records show, with their numbers."""
        patients = self.patients
        late = timedelta(days=self.protocol.outcome.within_days)
        days = self.protocol.outcome.within_days
        planned = self.protocol.analysis.looks
        return [
            ("patients with more than one prediction", sum(one.predictions > 1 for one in patients)),
            (
                "patients without a pseudonym: several studies of one would count as several patients",
                sum(not one.entry.has_subject for one in patients),
            ),
            (
                f"outcomes entered later than {days} days after the study",
                sum(one.entered is not None and one.entered - one.entry.created > late for one in patients),
            ),
            ("corrected outcomes", sum(one.outcome_changes > 0 for one in self.entries)),
            ("outcomes entered or changed after the unsealing", sum(one.changed_unsealed for one in self.entries)),
            ("predictions erased", sum(one.erased for one in self.entries)),
            (
                "looks at another number of patients than planned",
                sum(one.patients not in planned for one in self.looks),
            ),
            ("patients fewer than planned", max(0, planned[-1] - len(self.known))),
        ]


def holders_of(protocol: TrialProtocol, keys: Sequence[PrivateKey]) -> list[str]:
    """Names of the holders of two private keys. Raises InvalidRequest unless they are two different holders."""
    own = {two_key_sealing.public_text(key) for key in keys}
    names = [holder.name for holder in protocol.holders if holder.public_key in own]
    if len(own) != len(keys) or len(names) != 2:
        raise InvalidRequest("Two private keys, of two different holders of the protocol, are needed")
    return names


def opener(state: TrialState, keys: Sequence[PrivateKey]) -> Callable[[TrialEntry], dict[str, Any]]:
    """A function that opens the sealed answer of an entry, as the output of `predict`."""

    def opened(entry: TrialEntry) -> dict[str, Any]:
        assert entry.sealed is not None
        trial = state.trial
        context = trial.context(entry.prediction_id)
        try:
            return dict(json.loads(two_key_sealing.open_sealed(entry.sealed, trial.holders, keys, context)))
        except UnsealFailed as error:
            raise Conflict(f"The answer of prediction {entry.prediction_id}: {error}") from None

    return opened


def labels_of(patients: Sequence[TrialPatient]) -> Labels:
    """Outcomes (n,) of patients with a known one."""
    return np.array([int(bool(one.refractory)) for one in patients], np.int64)


def probabilities_of(answers: Sequence[dict[str, Any]]) -> Array:
    """Probabilities (n,) of opened answers."""
    return np.array([one["probability"] for one in answers], np.float64)


def _patient(group: Sequence[TrialEntry]) -> TrialPatient:
    entry = next((one for one in group if one.sealed is not None), group[0])
    with_outcome = [one for one in (entry, *group) if one.has_outcome]
    source = next(
        (one for one in with_outcome if one.refractory is not None), with_outcome[0] if with_outcome else None
    )
    return TrialPatient(
        entry=entry,
        predictions=len(group),
        refractory=source.refractory if source else None,
        entered=source.outcome_entered if source else None,
        has_outcome=source is not None,
    )


def _ended(patient: TrialPatient) -> bool:
    return not patient.computed and patient.entry.status in (Status.FAILED, Status.CANCELLED)
