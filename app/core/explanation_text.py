"""Texts of an explanation, the same in figures, report, command line, CDS card and page (app/web/js/explanation.js)."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

from app.core.display_names import channel_label, format_value, label, percent

if TYPE_CHECKING:  # the command line imports this module and must start fast
    from app.sdk.types import Attribution, ClinicalContribution, Flag

BASE = "background patients without images"
TOTAL = "this patient"
NOT_GIVEN = "values not given"
OUTSIDE = "other"  # name of the region outside the brain


class Contribution(NamedTuple):
    """One contribution as a reader sees it; ``is_known`` is False for a value that was not given."""

    name: str
    value: str
    log_odds: float
    is_known: bool = True


def contributions(attribution: Attribution) -> list[Contribution]:
    """Every contribution, the largest first."""
    items = [
        Contribution(variable_label(item), "not given", item.contribution, False)
        if item.imputed
        else Contribution(variable_label(item), value_text(item), item.contribution)
        for item in attribution.clinical
    ] + [Contribution(channel_label(item.modality), "", item.contribution) for item in attribution.imaging]
    return sorted(items, key=lambda item: -abs(item.log_odds))


def variable_label(item: ClinicalContribution) -> str:
    """Name of the variable of a contribution for a reader: the declared one of an own variable."""
    return item.label or label(item.variable)


def value_text(item: ClinicalContribution) -> str:
    """Value of a contribution for a reader, a number with the unit of its variable: ``130 mg/dL``, ``yes``."""
    from app.sdk.clinical import unit_of  # later, because the command line imports this module and must start fast

    number = isinstance(item.value, int | float) and not isinstance(item.value, bool)
    return f"{format_value(item.value)} {(item.unit or unit_of(item.variable)) if number else ''}".rstrip()


def grouped(items: Iterable[Contribution]) -> list[Contribution]:
    """The contributions with those of values that were not given as one, the largest first."""
    listed = list(items)
    known = [item for item in listed if item.is_known]
    unknown = [item.log_odds for item in listed if not item.is_known]
    if unknown:
        known.append(Contribution(f"{NOT_GIVEN} ({len(unknown)})", "", sum(unknown), False))
    return sorted(known, key=lambda item: -abs(item.log_odds))


def reasons(attribution: Attribution, sign: int) -> list[Contribution]:
    """Known contributions that raise (``sign`` 1) or lower (-1) the probability, the largest first."""
    return [item for item in contributions(attribution) if item.is_known and sign * item.log_odds > 0]


def points(total: float, log_odds: float) -> float:
    """Percentage points of the probability that a contribution makes: with it, minus without it.

    Args:
        total: Log-odds of the probability.
        log_odds: Contribution to ``total``.
    """
    return 100 * (_probability(total) - _probability(total - log_odds))


def signed_points(total: float, log_odds: float) -> str:
    """Percentage points of a contribution with their sign, one decimal: ``+8.1``."""
    return f"{round(points(total, log_odds), 1) + 0.0:+.1f}"  # the sum turns -0.0 into 0.0


def points_text(total: float, log_odds: float) -> str:
    """Percentage points of a contribution: ``+8.1 points``."""
    return f"{signed_points(total, log_odds)} points"


def outside_brain(attribution: Attribution) -> dict[str, float]:
    """Share of each image's absolute regional contributions that lies outside the brain; empty without regions."""
    shares = {}
    for image in attribution.imaging:
        parts = [part for part in attribution.regions if part.modality == image.modality]
        if total := sum(abs(part.contribution) for part in parts):
            outside = sum(abs(part.contribution) for part in parts if part.region == OUTSIDE)
            shares[str(image.modality)] = outside / total
    return shares


def outside_text(attribution: Attribution) -> str:
    """First line of the reasons: ``Of the image contributions, outside the brain: NCCT 12 %, CTA 5 %.``"""
    shares = [f"{channel_label(name)} {percent(share)}" for name, share in outside_brain(attribution).items()]
    return f"Of the image contributions, outside the brain: {', '.join(shares)}." if shares else ""


def side_text(affected: str | None, flags: Iterable[Flag]) -> str:
    """Side of the occlusion, and whether it was sent or found in the images; empty if it is unknown."""
    if affected is None:
        return ""
    if any(flag.code == "side-from-images" for flag in flags):
        return f"The occlusion is taken to be {affected} (from the images)."
    return f"The occlusion is on the {affected} (from the record)."


def _probability(log_odds: float) -> float:
    return 1 / (1 + math.exp(-log_odds)) if log_odds > -700 else 0.0
