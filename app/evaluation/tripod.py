"""Items of TRIPOD+AI (Collins et al., BMJ 2024;385:e078378) for the evaluation of a model, filled from data.

An item that the data cannot answer stays blank and is named, so that the authors write it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from app.core.display_names import NOT_RECORDED
from app.evaluation.validation import Validation


@dataclass(frozen=True)
class Item:
    """One item: number, what it asks for, and the text from the data; "" for a blank."""

    number: str
    asks: str
    text: str = ""


BLANK = "to be written"


def items(result: Validation, source: str, more: Mapping[str, str] | None = None) -> list[Item]:
    """All items that apply to an evaluation.

    Args:
        result: The validation.
        source: Name of the table.
        more: Texts by number of the item, which replace those of the table.
    """
    table = result.table
    patients, events = len(result.labels), int(result.labels.sum())
    unknown = len(table) - patients
    filled = {
        "5a": f"The table {source}, with {len(table)} predicted patients.",
        "5b": _period(result),
        "6a": _sites(result),
        "10": f"{patients} patients with a known outcome, {events} with it and {patients - events} without. "
        "`rlvo plan` calculates the size that was needed.",
        "11": f"{unknown} patients have no outcome. They are left out of the main analysis; the section on missing "
        "outcomes has the extremes and the weighted estimates."
        if unknown
        else "No outcome is missing.",
        "12d": "AUC, O/E and slope by site, pooled with random effects (Debray et al. 2017)." if result.pooled else "",
        "12e": "AUC (DeLong and bootstrap); calibration in the large, slope, O/E and a smooth curve; ICI, E50, E90; "
        "Brier score, plain and scaled; net benefit.",
        "12f": "The predictions were evaluated as they are; no model was updated.",
        "12g": "The probabilities were read from the table.",
        "14": f"Scores by {', '.join(table.groups)}." if table.groups else "",
        "15": "" if result.threshold is None else f"Probability; decision at {result.threshold:g}.",
        "20a": "See the section on the flow of the patients.",
        "20b": "See table 1." if table.characteristics else "",
        "23a": "See the sections on performance, calibration and subgroups."
        if table.groups
        else "See the sections on performance and calibration.",
        "23b": "See the section on sites." if result.pooled else "",
    }
    filled |= more or {}
    return [Item(number, asks, filled.get(number, "")) for number, asks in ASKED]


def blanks(found: list[Item]) -> list[str]:
    """Numbers of the items that stay blank."""
    return [item.number for item in found if not item.text]


def _period(result: Validation) -> str:
    dates = result.table.dates
    known = sorted(set() if dates is None else set(dates.tolist()) - {""})
    return f"{known[0]} to {known[-1]}." if known else ""


def _sites(result: Validation) -> str:
    named = [site for site in result.sites if site.name != NOT_RECORDED]
    return f"{len(named)} sites." if named else ""


ASKED = (
    ("1", "title: evaluation of a prediction model, target population, outcome"),
    ("2", "abstract (TRIPOD+AI for Abstracts)"),
    ("3a", "healthcare context and reason for the evaluation"),
    ("3b", "target population, and purpose of the model in the care pathway"),
    ("3c", "known health inequalities between sociodemographic groups"),
    ("4", "objectives"),
    ("5a", "sources of the data, and how well they represent the target population"),
    ("5b", "dates of the data"),
    ("6a", "setting, with number and location of the centres"),
    ("6b", "eligibility of the patients"),
    ("6c", "treatments received, and how they were handled"),
    ("7", "preparation and quality checks of the data, and whether they were alike in all groups"),
    ("8a", "outcome, its time, how and when it was assessed"),
    ("8b", "qualifications of the assessors of a subjective outcome"),
    ("8c", "blinding of the assessment of the outcome"),
    ("9b", "definition and measurement of all predictors"),
    ("9c", "qualifications of the assessors of subjective predictors"),
    ("10", "size of the study, and how it was determined"),
    ("11", "missing data and how they were handled"),
    ("12d", "heterogeneity between clusters"),
    ("12e", "measures and plots of performance"),
    ("12f", "updating of the model"),
    ("12g", "how the predictions were calculated"),
    ("14", "fairness: methods"),
    ("15", "output of the model, and its thresholds"),
    ("16", "differences between development and evaluation data"),
    ("17", "approval by an ethics committee, and consent"),
    ("18a", "funding"),
    ("18b", "conflicts of interest"),
    ("18c", "protocol"),
    ("18d", "registration"),
    ("18e", "availability of the data"),
    ("18f", "availability of the code"),
    ("19", "involvement of patients and the public"),
    ("20a", "flow of the patients, with numbers with and without the outcome"),
    ("20b", "characteristics of the patients, with missing values"),
    ("20c", "comparison of important predictors with the development data"),
    ("23a", "performance with intervals, also of key subgroups"),
    ("23b", "heterogeneity of the performance between clusters"),
    ("25", "interpretation, with fairness, in the context of previous studies"),
    ("26", "limitations"),
    ("27a", "handling of poor or missing input data"),
    ("27b", "interaction of users with the model, and the expertise needed"),
    ("27c", "next steps of research"),
)
"""Number and content of the items for an evaluation; 9a, 12a-c, 13, 21, 22 and 24 concern development or updating."""
