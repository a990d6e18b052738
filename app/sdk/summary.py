"""First line of an answer: what it says, and whether it can be trusted.

Page, report, command line, FHIR and CDS Hooks show this line first. docs/flags.md explains the policy.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, Protocol

from .flags import Severity

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
    """First line of a finished answer, one to three short sentences.

    Args:
        probability: Calibrated probability, 0 to 1.
        decision: Decision of the version; None if it is withheld.
        withheld: Codes of the warnings that withhold the decision.
        flags: Flags of the answer.
        inputs: Names of the volumes that were sent.
    """
    sentences = [_verdict(probability, decision, withheld)]
    if signs := out_of_depth(flags, inputs):
        sentences.append(f"The model was not made for this study: {', '.join(signs)}.")
    if decision is not None and (accepted := warning_codes(flags)):
        sentences.append(f"There are warnings: {', '.join(accepted)}.")
    return " ".join(sentences)


def _verdict(probability: float, decision: DecisionLike | None, withheld: Sequence[str]) -> str:
    if withheld:
        return f"Decision withheld: {', '.join(withheld)}."
    chance = f"{100 * probability:.0f} %"
    if decision is None:
        return f"Probability of {chance}, without a decision."
    word, side = ("Refractory", "above") if decision.refractory else ("Not refractory", "below")
    return f"{word}: the probability of {chance} is {side} the threshold of {100 * decision.threshold:.0f} %."
