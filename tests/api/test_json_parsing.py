"""Bounded JSON parsing: each malformed case is one that some JSON parsers accept."""

from __future__ import annotations

import time

import pytest

from app.api import json_parsing
from app.sdk.clinical import Sex, Smoking
from app.sdk.errors import InvalidClinical, MalformedJson, RlvoError

MALFORMED = {
    "empty": b"",
    "cut off": b'{"age": 7',
    "two documents": b"{} {}",
    "trailing comma": b'{"age": 71,}',
    "comment": b"{} // no",
    "NaN": b'{"age": NaN}',
    "infinity": b'{"age": -Infinity}',
    "overflow to infinity": b'{"age": 1e999}',
    "a number of 5000 digits": b'{"age": ' + b"7" * 5000 + b"}",
    "a float of 5000 digits": b'{"age": 0.' + b"7" * 5000 + b"}",
    "duplicate key": b'{"age": 71, "age": 17}',
    "duplicate key by escape": b'{"age": 71, "\\u0061ge": 17}',
    "duplicate key within": b'{"perfusion": {"core_ml": 1, "core_ml": 2}}',
    "lone surrogate": b'{"sex": "\\ud800"}',
    "lone surrogate as key": b'{"\\udc00": 1}',
    "NUL": b'{"sex": "\\u0000"}',
    "not UTF-8": b'{"sex": "\xff"}',
    "UTF-16": '{"age": 71}'.encode("utf-16"),
    "11 levels": b"[" * 11 + b"]" * 11,
    "100000 levels": b"[" * 100_000,
    "levels behind a quote": b'["\\"", ' + b"[" * 20_000,
    "an open string": b'{"age": "' + b"\\" * 3,
}


@pytest.mark.parametrize("content", MALFORMED.values(), ids=MALFORMED.keys())
def test_malformed_document_is_refused(content: bytes) -> None:
    with pytest.raises(MalformedJson):
        json_parsing.parse(content)


def test_ten_levels_and_brackets_in_strings_are_accepted() -> None:
    assert json_parsing.parse(b'{"a": ' + b"[" * 9 + b"]" * 9 + b', "b": "' + b"[" * 100 + b'"}')


@pytest.mark.parametrize(
    "content", [b'"' * 65_536, b'"\\' * 32_768, b'\\"' * 32_768, b'"\\"' * 21_845, b"[1," * 21_845]
)
def test_parsing_time_is_bounded_for_any_content(content: bytes) -> None:
    began = time.perf_counter()
    with pytest.raises(MalformedJson):
        json_parsing.parse(content)
    assert time.perf_counter() - began < 1


def test_byte_order_mark_is_accepted() -> None:
    record = json_parsing.clinical_record('\ufeff{"age": 71, "sex": "male", "smoking": "former", "ivt": true}'.encode())
    assert (record.age, record.sex, record.smoking, record.ivt) == (71, Sex.MALE, Smoking.FORMER, True)


FAULTS = {
    b'{"age": 17}': ("age", "must be within 18 to 110 years"),
    b'{"nihss": 43}': ("nihss", "must be within 0 to 42"),
    b'{"perfusion": {"core_ml": -0.5}}': ("perfusion.core_ml", "must be within 0 to 1000 mL"),
    b'{"age": "74"}': ("age", "input should be a valid number"),
    b'{"age": true}': ("age", "input should be a valid number"),
    b'{"ivt": 1}': ("ivt", "input should be a valid boolean"),
    b'{"nihss": 3.5}': ("nihss", "input should be a valid integer"),
    b'{"sex": "canary"}': ("sex", "input should be 'female' or 'male'"),
    b'{"agee": 74}': ("agee", "is not a field of the clinical document"),
    b'{"perfusion": {"coreml": 4}}': ("perfusion.coreml", "is not a field of the clinical document"),
    b'{"perfusion": [4]}': ("perfusion", "must be a JSON object"),
    b'{"Mr. Canary, born 1950": 4}': ("(a field)", "is not a field of the clinical document"),
    b'{"perfusion": {"software": "<canary>"}}': ("perfusion.software", "string should match pattern"),
    b'{"own": 4}': ("own", "must be a JSON object"),
    b'{"own": {"ddimer": "Canary, John"}}': (
        "own.ddimer",
        "must be a number, true or false, or a word of small letters",
    ),
    b'{"own": {"ddimer": 1e13}}': ("own.ddimer", "must be a number, true or false, or a word of small letters"),
    b'{"own": {"Mr. Canary": 4}}': ("own.(a field)", "the name has small letters"),
    b'{"glucose": 100, "glucose_mmol_l": 5.5}': ("clinical", "give glucose or glucose_mmol_l, not both"),
}


@pytest.mark.parametrize(("content", "fault"), FAULTS.items())
def test_error_names_field_and_range_but_no_value(content: bytes, fault: tuple[str, str]) -> None:
    with pytest.raises(InvalidClinical) as refusal:
        json_parsing.clinical_record(content)
    (error,) = refusal.value.errors
    assert error.field == fault[0]
    assert error.detail.startswith(fault[1])
    assert "canary" not in f"{refusal.value.detail} {error.field} {error.detail}".lower()


@pytest.mark.parametrize("content", [b"[]", b"3", b"null", b'"text"'])
def test_record_must_be_an_object(content: bytes) -> None:
    with pytest.raises(RlvoError):
        json_parsing.clinical_record(content)


def test_contradictory_record_is_refused_by_field() -> None:
    with pytest.raises(InvalidClinical) as caught:
        json_parsing.clinical_record(
            b'{"systolic_bp": 80, "diastolic_bp": 140, "perfusion": {"tmax6_ml": 9, "tmax8_ml": 90}}'
        )
    assert [error.field for error in caught.value.errors] == ["systolic_bp", "perfusion.tmax8_ml"]


def test_whole_float_is_accepted_as_an_integer() -> None:
    assert json_parsing.clinical_record(b'{"nihss": 15.0}').nihss == 15
