"""Coded concepts of the result objects: standard codes where they exist, else codes of this project (99RLVO)."""

from __future__ import annotations

from highdicom.sr import CodedConcept

from app.core.display_names import truncated

__all__ = ["SCHEME", "UNITY", "own", "standard", "unit"]

SCHEME = "99RLVO"
MEANING_CHARACTERS = 64  # the longest Code Meaning (0008,0104)


def own(value: str, meaning: str) -> CodedConcept:
    """A code of this project.

    Args:
        value: the code.
        meaning: its text; a longer one than 64 characters is shortened. A backslash, which would separate two values
            (PS3.5, 6.2), becomes a slash.
    """
    return CodedConcept(value, SCHEME, truncated(meaning.replace("\\", "/"), MEANING_CHARACTERS))


def standard(scheme: str, value: str, meaning: str) -> CodedConcept:
    """A code of a standard terminology: DCM, SCT (SNOMED CT), LN (LOINC) or UCUM."""
    return CodedConcept(value, scheme, meaning)


def unit(value: str) -> CodedConcept:
    """A unit of UCUM."""
    return CodedConcept(value, "UCUM", value)


UNITY = CodedConcept("1", "UCUM", "no units")
