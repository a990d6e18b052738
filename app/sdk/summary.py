"""Headline and first line of an answer: what it says, and whether it can be trusted.

Page, report, command line, FHIR and CDS Hooks show them first. docs/flags.md explains the policy.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import StrEnum
from typing import Final, Protocol

from .flag_names import name_of
from .flags import Severity


class Headline(StrEnum):
    """Headline of a finished answer; it follows the conformal set, not the threshold."""

    REFRACTORY = "refractory"
    NOT_REFRACTORY = "not-refractory"
    UNDETERMINED = "undetermined"
    WITHHELD = "withheld"

    @property
    def text(self) -> str:
        """The headline as a reader sees it."""
        return _HEADLINES[self]


_HEADLINES: Final = {
    Headline.REFRACTORY: "Refractory",
    Headline.NOT_REFRACTORY: "Not refractory",
    Headline.UNDETERMINED: "Undetermined",
    Headline.WITHHELD: "Decision withheld",
}
SYNTHETIC_TRAINING: Final = "synthetic-training"
"""Code of the flag of every answer of a version that was trained on synthetic patients only."""
SYNTHETIC_NOTICE: Final = "Trained on synthetic patients only: the number says nothing about a real patient."
SYNTHETIC_SHORT: Final = "Trained on synthetic patients."
"""The notice for a line with a limited length."""

OUT_OF_DEPTH: Final = 2  # number of signs that together say that the model was not made for a study
_NO_CERTAIN_CTA: Final = "no certain CTA"
_SIGNS: Final = {
    **dict.fromkeys(("contrast-doubtful", "hu-cut", "vessels-few"), _NO_CERTAIN_CTA),
    **dict.fromkeys(("alignment-poor", "orientation-doubtful"), "alignment doubtful"),
    **dict.fromkeys(("head-doubtful", "head-size-implausible", "hu-doubtful"), "head doubtful"),
    "out-of-distribution": "unlike the training patients",
}
"""Signs by the code of a flag. A missing CTA is another sign; its flag does not name the volume."""


class FlagLike(Protocol):
    """Code and severity of a flag."""

    @property
    def code(self) -> str: ...
    @property
    def severity(self) -> Severity: ...


class DecisionLike(Protocol):
    """Decision at a threshold."""

    @property
    def refractory(self) -> bool: ...
    @property
    def threshold(self) -> float: ...
    @property
    def conformal(self) -> Sequence[str] | None: ...


def headline(decision: DecisionLike | None, withheld: Sequence[str]) -> Headline | None:
    """Headline of an answer: the only class of the conformal set, or undetermined.

    An empty set and a set of both classes are undetermined. Without a set, the side of the threshold is the headline.

    Args:
        decision: Decision of the version; None if it is withheld or not yet known.
        withheld: Codes of the warnings that withhold the decision.
    """
    if withheld:
        return Headline.WITHHELD
    if decision is None:
        return None
    if decision.conformal is None:
        return Headline.REFRACTORY if decision.refractory else Headline.NOT_REFRACTORY
    return Headline(decision.conformal[0]) if len(decision.conformal) == 1 else Headline.UNDETERMINED


def set_text(decision: DecisionLike) -> str:
    """What the conformal set of a decision says, in one clause; empty without a set."""
    if decision.conformal is None:
        return ""
    if not decision.conformal:
        return "the probability lies between the two cut-offs"
    return "neither class can be excluded" if len(decision.conformal) > 1 else "the other class is excluded"


def threshold_text(probability: float, decision: DecisionLike) -> str:
    """Side of the threshold: ``the probability of 38 % is above the threshold of 22 %``."""
    side = "above" if decision.refractory else "below"
    return f"the probability of {100 * probability:.0f} % is {side} the threshold of {100 * decision.threshold:.0f} %"


def is_synthetic(flags: Iterable[FlagLike]) -> bool:
    """Whether the version of an answer was trained on synthetic patients only."""
    return any(flag.code == SYNTHETIC_TRAINING for flag in flags)


def warning_codes(flags: Iterable[FlagLike]) -> list[str]:
    """Codes of the warnings, each once, in the order of the flags."""
    return list(dict.fromkeys(flag.code for flag in flags if flag.severity is Severity.WARNING))


def out_of_depth(flags: Sequence[FlagLike], inputs: Iterable[str]) -> list[str]:
    """Signs that together say that the model was not made for this study; empty if there are fewer than two.

    Args:
        flags: Flags of the answer.
        inputs: Names of the volumes that were sent.
    """
    codes = {flag.code for flag in flags}
    signs = list(dict.fromkeys(sign for code, sign in _SIGNS.items() if code in codes))
    if "missing-modality" in codes and "cta" not in inputs:
        signs = ["no CTA", *(sign for sign in signs if sign != _NO_CERTAIN_CTA)]
    return signs if len(signs) >= OUT_OF_DEPTH else []


def answer_line(
    probability: float,
    decision: DecisionLike | None,
    withheld: Sequence[str],
    flags: Sequence[FlagLike],
    inputs: Iterable[str],
) -> str:
    """First line of a finished answer, a few short sentences.

    Args:
        probability: Calibrated probability, 0 to 1.
        decision: Decision of the version; None if it is withheld.
        withheld: Codes of the warnings that withhold the decision.
        flags: Flags of the answer.
        inputs: Names of the volumes that were sent.
    """
    sentences = [_headline(probability, decision, withheld)]
    if is_synthetic(flags):
        sentences.append(SYNTHETIC_NOTICE)
    if signs := out_of_depth(flags, inputs):
        sentences.append(f"The model was not made for this study: {', '.join(signs)}.")
    if decision is not None and (accepted := warning_codes(flags)):
        sentences.append(f"There are warnings: {_names(accepted)}.")
    return " ".join(sentences)


def _headline(probability: float, decision: DecisionLike | None, withheld: Sequence[str]) -> str:
    found = headline(decision, withheld)
    if found is Headline.WITHHELD:
        return f"{found.text}: {_names(withheld)}."
    if found is None or decision is None:
        return f"Probability of {100 * probability:.0f} %, without a decision."
    fact = threshold_text(probability, decision)
    if reason := set_text(decision):
        return f"{found.text}: {reason}. {fact[0].upper()}{fact[1:]}."
    return f"{found.text}: {fact}."


def _names(codes: Iterable[str]) -> str:
    return ", ".join(name_of(code) for code in codes)
