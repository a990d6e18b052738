"""Interim looks and the final report of a silent trial: opens the answers with two keys, and writes what they say.

Design notes:
- A look opens the answers of the patients with a known outcome, and returns the primary measure only.
- The final report follows the validation report, with the protocol, the looks, deviations and DECIDE-AI before
  TRIPOD+AI. It stays in the hospital: ``patients.csv`` has the opened answers.
- The primary result is that of the first look that decided, as the error rate holds for it; the others describe.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from app.core import csv_text
from app.database.trials import TrialEntry
from app.evaluation import decide_ai, sequential, tripod, validation, validation_report
from app.evaluation.baseline_table import Value
from app.evaluation.report_sections import ReportTable, Section
from app.evaluation.sequential import Look, LookVerdict
from app.evaluation.validation import Groups, PredictionTable, Validation
from app.operations.trial_patients import TrialPatient, TrialState, labels_of, probabilities_of
from app.sdk.errors import Conflict

Open = Callable[[TrialEntry], dict[str, Any]]
SUBGROUPS = ("sex", "atrial_fibrillation")
AGES = (60, 75)
OUTCOME = "Refractory occlusion: final stenosis > 50 %, eTICI 0-2a, or rescue treatment."


@dataclass(frozen=True)
class MadeLook:
    """A look with its number; ``verdict`` is the one that was recorded."""

    number: int
    look: Look
    verdict: str

    @property
    def decides(self) -> bool:
        """Whether the measure is above or below the margin."""
        return self.verdict in (LookVerdict.ABOVE, LookVerdict.BELOW)


@dataclass(frozen=True)
class FinalReport:
    """What the final report found.

    Attributes:
        looks: All looks.
        new: The look that the report made itself; None if there was none to make.
        computed: Patients with a sealed answer.
        answers: Their opened answers, by prediction.
        result: Validation of the answers.
    """

    looks: tuple[MadeLook, ...]
    new: MadeLook | None
    computed: Sequence[TrialPatient] = field(repr=False)
    answers: dict[str, dict[str, Any]] = field(repr=False)
    result: Validation = field(repr=False)

    @property
    def primary(self) -> MadeLook:
        """The look whose result is the primary one."""
        return next((one for one in self.looks if one.decides), self.looks[-1])


def interim(state: TrialState, opened: Open) -> MadeLook:
    """Make the look that is due. Raises Conflict if none is due, or an answer cannot be opened."""
    number, known = state.due(), state.known
    final = number == len(state.protocol.analysis.looks)
    found = _look(
        state, known, [opened(one.entry) for one in known], [one.patients for one in state.looks], final=final
    )
    return MadeLook(number, found, found.verdict)


def final(state: TrialState, opened: Open, *, rounds: int = 1000) -> FinalReport:
    """Compute the final report of a stopped trial; ``write`` writes it.

    Args:
        state: The trial with its patients.
        opened: Opens a sealed answer.
        rounds: Resamples of each bootstrap.

    Raises:
        Conflict: The patients with a known outcome are fewer than two, or all of one class.
    """
    known = state.known
    labels = labels_of(known)
    if not 0 < labels.sum() < len(labels):
        raise Conflict("A report needs patients with and without the outcome, with an answer")
    computed = [one for one in state.patients if one.computed]
    answers = {one.entry.prediction_id: opened(one.entry) for one in computed}
    looks, new = _all_looks(state, known, [answers[one.entry.prediction_id] for one in known])
    table = _table(state, computed, answers)
    threshold = next((float(one["decision"]["threshold"]) for one in answers.values() if one["decision"]), None)
    result = validation.validate(table, threshold=threshold, rounds=rounds)
    return FinalReport(looks, new, computed, answers, result)


def write(state: TrialState, report: FinalReport, folder: Path) -> None:
    """Write the final report with the opened answers; a folder that is there already is replaced."""
    sections = [
        _protocol(state),
        _primary(state, report),
        _deviations(state, report.answers),
        Section("DECIDE-AI", _decide_ai(state, report)),
    ]
    title = f"Silent trial {state.trial.name}: {state.protocol.title}"
    validation_report.write(folder, title, report.result, "of the trial", more=sections, items=_tripod(state))
    (folder / "protocol.json").write_text(json.dumps(state.protocol.document, indent=2) + "\n", encoding="utf-8")
    csv_text.write(folder / "patients.csv", *_patients_csv(report.computed, report.answers))


def describe(state: TrialState, made: MadeLook) -> str:
    """One line on a look."""
    plan = state.protocol.analysis.plan
    bound = "" if made.look.bound is None else f", bound {made.look.bound:.3f} standard errors"
    return (
        f"Look {made.number} of {len(plan.looks)}: {made.look.patients} patients, {made.look.events} with the outcome; "
        f"{plan.measure} {made.look.estimate}, margin {plan.margin:g}{bound}: {made.verdict}"
    )


def _look(
    state: TrialState,
    known: Sequence[TrialPatient],
    answers: Sequence[dict[str, Any]],
    earlier: Sequence[int],
    *,
    final: bool,
) -> Look:
    plan = state.protocol.analysis.plan
    return sequential.look(plan, labels_of(known), probabilities_of(answers), earlier, final=final)


def _all_looks(
    state: TrialState, known: Sequence[TrialPatient], answers: Sequence[dict[str, Any]]
) -> tuple[tuple[MadeLook, ...], MadeLook | None]:
    """The looks that were made, again, and the last one if it was not made."""
    last, made = len(state.protocol.analysis.looks), []
    for place, one in enumerate(state.looks):
        earlier = [before.patients for before in state.looks[:place]]
        size = min(one.patients, len(known))
        found = _look(state, known[:size], answers[:size], earlier, final=one.number == last)
        made.append(MadeLook(one.number, found, one.verdict))
    if state.looks and (state.looks[-1].number == last or state.looks[-1].patients >= len(known)):
        return tuple(made), None
    found = _look(state, known, answers, [one.patients for one in state.looks], final=True)
    new = MadeLook(last, found, found.verdict)
    return (*made, new), new


def _table(state: TrialState, computed: Sequence[TrialPatient], answers: dict[str, dict[str, Any]]) -> PredictionTable:
    own = [answers[one.entry.prediction_id] for one in computed]
    sets = [one["decision"]["conformal"] if one["decision"] else None for one in own]
    kept = None
    if sets and all(one is not None for one in sets):
        kept = np.array([["not-refractory" in one, "refractory" in one] for one in sets if one is not None])
    records = [_flat(one.entry.clinical) for one in computed]
    names = sorted({name for record in records for name in record})
    return PredictionTable(
        probabilities=probabilities_of(own),
        outcomes=np.array([np.nan if one.refractory is None else float(one.refractory) for one in computed]),
        sites=np.array([one.entry.caller for one in computed]),
        dates=np.array([f"{one.entry.created:%Y-%m-%d}" for one in computed]),
        groups=dict(_groups(records)),
        characteristics={name: [record.get(name) for record in records] for name in names},
        kept=kept,
        flow=tuple(state.flow),
    )


def _flat(clinical: dict[str, Any]) -> dict[str, Value]:
    """Values of a clinical record by name, sections as ``perfusion.core_ml``; numbers as floats."""
    found: dict[str, Value] = {}
    for name, value in clinical.items():
        if isinstance(value, dict):
            found |= {f"{name}.{inner}": each for inner, each in _flat(value).items()}
        elif value is not None:
            number = isinstance(value, int | float) and not isinstance(value, bool)
            found[name] = float(value) if number else value
    return found


def _groups(records: Sequence[dict[str, Value]]) -> list[tuple[str, Groups]]:
    groups = []
    for name in SUBGROUPS:
        levels = ["" if (value := record.get(name)) is None else str(value).lower() for record in records]
        if order := tuple(sorted(set(levels) - {""})):
            groups.append((name, Groups(np.array(levels), (*order, ""))))
    ages = [record.get("age") for record in records]
    if any(isinstance(age, float) for age in ages):
        bands = (f"below {AGES[0]}", f"{AGES[0]} to {AGES[1] - 1}", f"{AGES[1]} or more")
        levels = [
            bands[int(np.searchsorted(AGES, age, side="right"))] if isinstance(age, float) else "" for age in ages
        ]
        groups.append(("age", Groups(np.array(levels), (*bands, ""))))
    return groups


def _protocol(state: TrialState) -> Section:
    protocol, trial = state.protocol, state.trial
    plan = protocol.analysis.plan
    rows = [
        ["SHA-256 of the protocol", trial.hash],
        ["registration", protocol.registration or tripod.BLANK],
        ["ethics", protocol.ethics or tripod.BLANK],
        ["version", f"{protocol.model.name}@{protocol.model.version}, {protocol.model.digest}"],
        ["other versions at the sites", protocol.model.other_versions],
        ["population", protocol.population.description],
        ["sites", ", ".join(protocol.population.tenants)],
        ["assessment of the outcome", f"{protocol.outcome.assessment} Within {protocol.outcome.within_days} days."],
        ["primary measure", f"{plan.measure}, margin {plan.margin:g}, error {plan.alpha:g} on either side"],
        ["looks", f"at {', '.join(map(str, plan.looks))} patients; {plan.measure.method}"],
        ["key holders", ", ".join(holder.name for holder in protocol.holders)],
        ["ran", f"{trial.created:%Y-%m-%d} to {_day(trial.stopped)}; stopped: {trial.stop_reason}"],
    ]
    return Section("Protocol", [ReportTable(["part", "frozen text"], rows)])


def _primary(state: TrialState, report: FinalReport) -> Section:
    plan = state.protocol.analysis.plan
    at = {one.number: f"{one.at:%Y-%m-%d}" for one in state.looks}
    rows = [
        [
            str(one.number),
            at.get(one.number, "this report"),
            f"{one.look.patients}",
            f"{one.look.events}",
            str(one.look.estimate),
            "" if one.look.bound is None else f"{one.look.bound:.3f}",
            one.verdict,
        ]
        for one in report.looks
    ]
    note = (
        f"The interval of a look has the level {100 * (1 - 2 * plan.alpha):g} % over all looks together "
        f"({plan.measure.method}). An estimate at a trial that stopped early is biased away from the margin."
    )
    head = ["look", "date", "patients", "with the outcome", f"{plan.measure} (interval)", "bound", "verdict"]
    return Section("Primary result", [conclusion(state, report.primary), ReportTable(head, rows), note])


def conclusion(state: TrialState, made: MadeLook) -> str:
    """The primary result in one sentence."""
    plan = state.protocol.analysis.plan
    said = {LookVerdict.ABOVE: "exceeds the margin", LookVerdict.BELOW: "is below the margin"}.get(
        LookVerdict(made.verdict), "is not shown to differ from the margin"
    )
    return (
        f"The {plan.measure} is {made.look.estimate} at look {made.number}, with {made.look.patients} patients: "
        f"it {said} of {plan.margin:g}."
    )


def _deviations(state: TrialState, answers: dict[str, dict[str, Any]]) -> Section:
    withheld = sum(bool(one["withheld"]) for one in answers.values())
    failures = Counter(one.error for one in state.entries if one.error)
    rows = [[name, str(count)] for name, count in state.deviations()]
    rows.append(["answers whose decision warnings would have withheld (analysed all the same)", str(withheld)])
    rows += [[f"predictions that failed: {code}", str(count)] for code, count in sorted(failures.items())]
    parts: list[str | ReportTable] = [ReportTable(["departure or fault", "number"], rows)]
    if not state.trial.keeps_silent:
        parts.append("Other versions of the model answered openly at the sites, as the protocol says.")
    return Section("Deviations and faults", parts)


def _decide_ai(state: TrialState, report: FinalReport) -> list[str | ReportTable]:
    protocol, analysis = state.protocol, state.protocol.analysis
    failed = sum(one.error is not None for one in state.entries)
    filled = {
        "III": f"Protocol SHA-256 {state.trial.hash}. "
        + " ".join(part for part in (protocol.registration, protocol.ethics) if part),
        "3a": f"{protocol.population.description} All studies that the sites sent while the trial ran. Planned: "
        f"{analysis.plan.size} patients with an outcome.",
        "4a": f"{protocol.model.name} {protocol.model.version}, {protocol.model.digest}. Its model card has algorithm, "
        "training population and earlier performance.",
        "5a": f"{len(protocol.population.tenants)} sites: {', '.join(protocol.population.tenants)}.",
        "IV": f"{OUTCOME} {protocol.outcome.assessment}",
        "V": f"{analysis.measure}, margin {analysis.margin:g}: {analysis.plan.measure.method}, looks at "
        f"{', '.join(map(str, analysis.looks))} patients.",
        "6a": "A prediction without an answer is a malfunction; its code is recorded.",
        "9a": "The section on table 1.",
        "10a": f"{sum(one.computed for one in state.patients)} patients with a computed answer; no user saw one.",
        "VII": conclusion(state, report.primary),
        "VIII": "The section on subgroups." if report.result.subgroups else "",
        "11": "None: the digest of the version was checked for every study.",
        "13a": f"{failed} of {len(state.entries)} predictions failed; the section on deviations has the codes.",
    }
    found = decide_ai.items(filled)
    rows = [[one.number, one.asks, one.text or tripod.BLANK] for one in found]
    blank = f"Blank, to be written by the authors: {', '.join(tripod.blanks(found))}."
    return [blank, ReportTable(["item", "asks for", "from the data"], rows)]


def _tripod(state: TrialState) -> dict[str, str]:
    protocol = state.protocol
    plan = protocol.analysis.plan
    ends = f"{state.trial.created:%Y-%m-%d} to {_day(state.trial.stopped)}"
    filled = {
        "5a": f"All studies that the sites sent to the service while the silent trial ran, {ends}.",
        "6b": protocol.population.description,
        "8a": f"{OUTCOME} {protocol.outcome.assessment} Within {protocol.outcome.within_days} days.",
        "8c": "The answers were encrypted when they were computed, and no route, page, log or message showed them. "
        "Two key holders opened them together.",
        "10": f"Planned: {plan.size} patients with an outcome, with looks at {', '.join(map(str, plan.looks))}.",
        "12g": "The service computed the probabilities when it received the studies, and sealed them.",
        "17": protocol.ethics,
        "18c": f"Frozen before the first patient, SHA-256 {state.trial.hash}.",
        "18d": protocol.registration,
    }
    return {number: text for number, text in filled.items() if text}


def _patients_csv(
    computed: Sequence[TrialPatient], answers: dict[str, dict[str, Any]]
) -> tuple[list[str], list[list[csv_text.Cell]]]:
    head = ["prediction", "site", "date", "probability", "outcome", "withheld"]
    rows: list[list[csv_text.Cell]] = [
        [
            one.entry.prediction_id,
            one.entry.caller,
            f"{one.entry.created:%Y-%m-%d}",
            f"{answers[one.entry.prediction_id]['probability']:.9f}",
            None if one.refractory is None else int(one.refractory),
            " ".join(answers[one.entry.prediction_id]["withheld"]),
        ]
        for one in computed
    ]
    return head, rows


def _day(when: Any) -> str:
    return f"{when:%Y-%m-%d}" if when else "now"
