"""Published scores of an atherosclerotic cause of the occlusion, as comparators of a version.

Design notes:
- Their target is intracranial atherosclerotic disease (ICAD) as the cause of the occlusion. It is not rLVO.
- Every number is from an abstract that was read; docs/scores.md says which. A score whose items or points are unknown
  is in ``NOT_IMPLEMENTED``.
- A sum without all items is no score: a patient has the range that the missing items leave open.
- They follow from the clinical record alone, so a stored answer of any release has them when it is read.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Field

from .clinical import ClinicalRecord, Smoking

TARGET: Final = "intracranial atherosclerotic disease (ICAD) as the cause of the occlusion"
TARGET_NOTE: Final = (
    f"The target of these scores is {TARGET}. It is "
    "not rLVO: an occlusion due to ICAD may open, and an embolic one may be refractory."
)


class ScoreSummary(BaseModel):
    """One published score of the patient, on another target than rLVO. A sum without all items is no score."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    name: str
    target: str = Field(default=TARGET, description="What the score is for; it is not rLVO")
    unit: str = Field(description="`points`, or `log odds`")
    value: float | None = Field(default=None, description="The sum; null if an item is missing")
    low: float = Field(description="Lowest sum that the missing items leave open")
    high: float = Field(description="Highest sum that the missing items leave open")
    highest: float = Field(description="Sum of all items; the lowest sum is 0")
    missing: list[str] = Field(default=[], description="Items that the record does not say")
    items: int = Field(description="Number of items of the score")
    source: str

    @property
    def text(self) -> str:
        """``12 of 20 points``, ``7 to 18 of 20 points``, or ``no item known``."""
        if len(self.missing) == self.items:
            return "no item known"
        low, high = f"{self.low:.3g}", f"{self.high:.3g}"
        return f"{low if low == high else f'{low} to {high}'} of {self.highest:.3g} {self.unit}"


PatientScores = Annotated[
    list[ScoreSummary] | None,
    Field(
        description="Published scores from the clinical record, for another target than rLVO; absent in a list, "
        "without a result, and if the answer is sealed"
    ),
]
"""Member of a prediction."""


@dataclass(frozen=True)
class ScoreItem:
    """One item of a score.

    Attributes:
        text: The item, as it counts.
        points: Points if it holds, above 0; it has none if it does not hold.
        field: Dotted name of the field of the record; "" if the record has none.
        holds: Whether the item holds for a value of the field.
    """

    text: str
    points: float
    field: str = ""
    holds: Callable[[Any], bool] = bool

    def state(self, record: ClinicalRecord) -> bool | None:
        """Whether the item holds for a patient; None if the record does not say so."""
        value = record.value(self.field) if self.field else None
        return None if value is None else self.holds(value)


@dataclass(frozen=True)
class PublishedScore:
    """A published score: its items, the unit of its sum, and its source."""

    name: str
    items: tuple[ScoreItem, ...]
    unit: str
    source: str

    @property
    def highest(self) -> float:
        """Sum of all items; the lowest sum is 0."""
        return math.fsum(item.points for item in self.items)

    def of(self, record: ClinicalRecord) -> PatientScore:
        """The score of one patient."""
        return PatientScore(self, tuple(item.state(record) for item in self.items))


@dataclass(frozen=True)
class PatientScore:
    """A score of one patient; ``states`` says of each item whether it holds, or None if that is unknown."""

    score: PublishedScore
    states: tuple[bool | None, ...]

    @property
    def missing(self) -> tuple[str, ...]:
        """Texts of the items that are not known."""
        return tuple(item.text for item, state in zip(self.score.items, self.states, strict=True) if state is None)

    @property
    def range(self) -> tuple[float, float]:
        """Lowest and highest sum that the missing items leave open."""
        pairs = list(zip(self.score.items, self.states, strict=True))
        return math.fsum(i.points for i, s in pairs if s), math.fsum(i.points for i, s in pairs if s is not False)

    @property
    def value(self) -> float | None:
        """The score; None if an item is missing."""
        return None if self.missing else self.range[0]

    @property
    def summary(self) -> ScoreSummary:
        """What the API, the page and the report show."""
        low, high = self.range
        return ScoreSummary(
            name=self.score.name,
            unit=self.score.unit,
            value=self.value,
            low=low,
            high=high,
            highest=self.score.highest,
            missing=list(self.missing),
            items=len(self.states),
            source=self.score.source,
        )


def _no(value: Any) -> bool:
    return not value


SCORE_ICAD: Final = PublishedScore(
    "Score-ICAD",
    (
        ScoreItem("no atrial fibrillation", 5, "atrial_fibrillation", _no),
        ScoreItem("hypertension", 1, "hypertension"),
        ScoreItem("diabetes", 1, "diabetes"),
        ScoreItem("smoking (read as current)", 1, "smoking", lambda value: value == Smoking.CURRENT),
        ScoreItem("hyperlipidaemia", 1, "dyslipidemia"),
        ScoreItem("several stenoses of one artery on CTA", 3),
        ScoreItem("no territorial cortical infarct", 3),
        ScoreItem("borderzone infarct", 3),
        ScoreItem("calcification of the carotid siphon of that side", 2),
    ),
    "points",
    "Tarek et al., J NeuroIntervent Surg 2024, doi:10.1136/jnis-2024-021676",
)
ABC2D_ODDS: Final = PublishedScore(
    "ABC2D (published odds ratios)",
    (
        ScoreItem("no atrial fibrillation", math.log(27.29), "atrial_fibrillation", _no),
        ScoreItem("hypertension", math.log(2.90), "hypertension"),
        ScoreItem("NIHSS below 7", math.log(2.92), "nihss", lambda value: value < 7),
        ScoreItem("no hyperdense artery on CT", math.log(2.86), "imaging_signs.hyperdense_artery", _no),
        ScoreItem("diabetes", math.log(2.80), "diabetes"),
    ),
    "log odds",
    "J Neurosurg 2022, PubMed 35303701: the logarithms of its odds ratios, not its points",
)
SCORES: Final = (SCORE_ICAD, ABC2D_ODDS)
NOT_IMPLEMENTED: Final = ("ABC2D by its own points", "ISAT", "REMIT", "ATHE", "ICAS-LVO")
"""Scores whose items or points could not be confirmed; docs/scores.md says what was looked for."""


def of_record(record: ClinicalRecord) -> list[ScoreSummary]:
    """All scores of one patient."""
    return [score.of(record).summary for score in SCORES]
