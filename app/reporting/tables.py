"""The data of a figure as a table, for readers who cannot see it, and the tables of the contributions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from app.core.display_names import channel_label, region_label
from app.core.explanation_text import contributions, signed_points
from app.sdk.types import Attribution, RegionContribution


class FigureTable(NamedTuple):
    """The data of a drawing; the last column holds the numbers."""

    headers: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]


def contribution_table(attribution: Attribution) -> FigureTable:
    """Return every contribution, those of values that were not given one by one, the largest first."""
    rows = [
        (item.name, item.value, signed_points(attribution.total, item.log_odds), f"{item.log_odds:+.3f}")
        for item in contributions(attribution)
    ]
    return FigureTable(("Variable", "Value", "Points", "Log-odds"), rows)


def region_table(regions: Sequence[RegionContribution], total: float, limit: int = 12) -> FigureTable | None:
    """Return the ``limit`` largest contributions of regions, the largest first; None without regions.

    ``total`` is the log-odds of the probability.
    """
    largest = sorted(regions, key=lambda part: -abs(part.contribution))[:limit]
    rows = [
        (
            region_label(part.region),
            part.side or "",
            channel_label(part.modality),
            signed_points(total, part.contribution),
            f"{part.contribution:+.3f}",
        )
        for part in largest
    ]
    return FigureTable(("Region", "Side", "Image", "Points", "Log-odds"), rows) if rows else None
