"""The spellings of eTICI that the table, the API and the SDK accept."""

from __future__ import annotations

import json

import pytest
from pydantic import ValidationError

from app.sdk import Etici, OutcomeDraft, parse_etici

SPELLINGS = [
    ("0", "0"),
    ("3.0", "3"),
    ("2b", "2b"),
    ("2B", "2b"),
    ("2b50", "2b50"),
    ("2b 67", "2b67"),
    ("2b-50", "2b50"),
    ("2b (67 %)", "2b67"),
    ("TICI 2b", "2b"),
    ("mTICI 2a", "2a"),
    ("eTICI 2b50", "2b50"),
    ("eTICI score: 2c", "2c"),
    ("IIb", "2b"),
    ("TICI III", "3"),
    (" 2a ", "2a"),
]
WRONG = ["", "2", "2d", "4", "IIII", "2b/3", "2a-2b", "> 2a", "2b51", "tici", "22a", "30", "-1"]


@pytest.mark.parametrize(("text", "grade"), SPELLINGS)
def test_spelling_gives_its_grade_everywhere(text: str, grade: str) -> None:
    assert parse_etici(text) == grade
    assert OutcomeDraft(etici=text, rescue_treatment=False).etici is Etici(grade)
    document = json.dumps({"etici": text, "rescue_treatment": False})
    assert OutcomeDraft.model_validate_json(document).etici is Etici(grade)


@pytest.mark.parametrize("text", WRONG)
def test_text_that_is_no_grade_is_refused_everywhere(text: str) -> None:
    with pytest.raises(ValueError, match="expected one of 0, 1, 2a, 2b, 2b50"):
        parse_etici(text)
    with pytest.raises(ValidationError, match="expected one of"):
        OutcomeDraft(etici=text, rescue_treatment=False)


@pytest.mark.parametrize("value", [0, 3, None, True, ["3"]])
def test_value_that_is_no_text_is_refused(value: object) -> None:
    with pytest.raises(ValidationError):
        OutcomeDraft.model_validate_json(json.dumps({"etici": value, "rescue_treatment": False}))


def test_undivided_2b_is_no_refractory_outcome() -> None:
    draft = OutcomeDraft(etici="2b", rescue_treatment=False, final_stenosis_percent=10)
    assert draft.refractory is False
    assert OutcomeDraft(etici="IIa", rescue_treatment=False).refractory is True
