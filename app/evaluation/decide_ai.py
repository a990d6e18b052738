"""Items of DECIDE-AI (Vasey et al., Nat Med 2022;28:924) for a silent trial, filled from data.

A silent trial is the stage before the early clinical evaluation for which DECIDE-AI is written: no user sees an answer.
Items on users say so. An item that the data cannot answer stays blank and is named.
"""

from __future__ import annotations

from collections.abc import Mapping

from app.evaluation.tripod import Item

_SILENT = {
    "3b": "No user took part: the answers were sealed.",
    "3c": "No user took part: the answers were sealed.",
    "4c": "No output was presented. Callers, pages, logs, messages and records held no number of an answer.",
    "5b": "The answers took no part in the care of any patient.",
    "7": "Not assessed: a silent trial has no users.",
    "9b": "No user took part.",
    "10b": "None: nothing was shown.",
    "12": "Not assessed: no decision was shown. A following study with users has to assess it.",
    "14a": "Not assessed: a silent trial has no users.",
    "14b": "Not assessed: a silent trial has no users.",
}


def items(filled: Mapping[str, str]) -> list[Item]:
    """All items; ``filled`` has the texts from the data by number."""
    texts = _SILENT | dict(filled)
    return [Item(number, asks, texts.get(number, "")) for number, asks in ASKED]


ASKED = (
    ("1", "title: early clinical evaluation of a decision support system based on AI; the problem addressed"),
    ("I", "abstract"),
    ("2a", "targeted condition and problem, current standard practice, intended patients"),
    ("2b", "intended users, planned integration in the care pathway, potential impact"),
    ("II", "objectives"),
    ("III", "research governance: protocol, registration, ethics approval"),
    ("3a", "recruitment of patients, criteria at the level of patients and of data, and how their number was decided"),
    ("3b", "recruitment of users, and how their number was decided"),
    ("3c", "steps to familiarise the users with the system"),
    ("4a", "system: version, algorithm, training population, performance before"),
    ("4b", "inputs: acquisition, entry, pre-processing, missing and low-quality data"),
    ("4c", "outputs and how they were presented to the users"),
    ("5a", "settings of the evaluation"),
    ("5b", "clinical workflow, timing of use, and how the supported decision was reached and by whom"),
    ("IV", "outcomes: primary and secondary"),
    ("6a", "how significant errors and malfunctions were defined and identified"),
    ("6b", "how risks to patient safety were identified, analysed and minimised"),
    ("7", "human factors: tools, methods, use cases, users"),
    ("V", "analysis: statistical methods"),
    ("8", "ethics: methods for a goal such as fairness"),
    ("VI", "involvement of patients"),
    ("9a", "characteristics of the patients, and missing input data"),
    ("9b", "characteristics of the users"),
    ("10a", "exposure of users, number of uses, adherence to the intended implementation"),
    ("10b", "changes of the clinical workflow caused by the system"),
    ("VII", "main results"),
    ("VIII", "subgroup analyses"),
    ("11", "modifications of the system or its hardware during the study"),
    ("12", "agreement of users with the system, and reasons for variation"),
    ("13a", "significant errors and malfunctions: rate, causes, correction, impact on care"),
    ("13b", "risks to patient safety and observed harm"),
    ("14a", "usability"),
    ("14b", "learning curves of the users"),
    ("15", "discussion: support for the intended use"),
    ("16", "discussion: safety, errors and malfunctions"),
    ("IX", "strengths and limitations"),
    ("17", "availability of data and code"),
    ("X", "conflicts of interest"),
)
"""Number and content of the 28 items on AI (1 to 17) and the 10 general items (I to X)."""
