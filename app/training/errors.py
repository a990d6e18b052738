"""Errors of a training run that list every fault."""

from __future__ import annotations

from collections.abc import Sequence

from app.sdk.errors import InvalidStudy


class CohortFault(InvalidStudy):
    """The cohort cannot be used for training or evaluation.

    Attributes:
        faults: One line for each fault, with its row where there is one.
    """

    code, title = "cohort-invalid", "The cohort cannot be used as it is"

    def __init__(self, faults: Sequence[str], **_: object) -> None:
        self.faults = tuple(faults)
        super().__init__("\n".join(faults))


class PublicationRefused(CohortFault):
    """The trained model must not become a version unless the user accepts the objections."""

    code, title = "publication-refused", "The model version was not published"
