"""What an answer says about the uncertainty of its probability."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from app.sdk import CalibratedInterval, FoldSpread, Prediction

FOLDS = [0.31, 0.35, 0.41, 0.4]
DOCUMENT: dict[str, Any] = {
    "id": "0192f0c4-0000-7000-8000-000000000001",
    "status": "succeeded",
    "model": {"name": "tiny", "version": "1.0.0", "digest": "sha256:" + "0" * 64},
    "probability": 0.37,
    "folds": FOLDS,
    "created": "2026-11-23T12:00:00Z",
}


def read(interval: object, **changes: object) -> Prediction:
    return Prediction.model_validate({**DOCUMENT, "interval": interval, **changes})


def test_spread_of_the_folds_has_no_level() -> None:
    prediction = read({"kind": "fold-spread", "low": 0.31, "high": 0.41})
    assert prediction.interval == FoldSpread(low=0.31, high=0.41)
    assert prediction.model_dump(mode="json")["interval"] == {"kind": "fold-spread", "low": 0.31, "high": 0.41}


def test_calibrated_interval_has_its_level_and_measured_coverage() -> None:
    document = {"kind": "calibrated", "low": 0.2, "high": 0.6, "level": 0.9, "coverage": 0.893}
    prediction = read(document)
    assert prediction.interval == CalibratedInterval(low=0.2, high=0.6, level=0.9, coverage=0.893)
    assert Prediction.model_validate_json(prediction.model_dump_json()) == prediction


@pytest.mark.parametrize("missing", ["level", "coverage"])
def test_calibrated_interval_without_level_or_coverage_is_refused(missing: str) -> None:
    document = {"kind": "calibrated", "low": 0.2, "high": 0.6, "level": 0.9, "coverage": 0.893}
    with pytest.raises(ValidationError):
        read({name: value for name, value in document.items() if name != missing})


def test_answer_of_an_earlier_release_is_read_as_the_spread_of_its_folds() -> None:
    assert read({"level": 0.9, "low": 0.24, "high": 0.51}).interval == FoldSpread(low=0.31, high=0.41)


def test_answer_of_an_earlier_release_without_folds_keeps_its_ends() -> None:
    assert read({"level": 0.9, "low": 0.24, "high": 0.51}, folds=None).interval == FoldSpread(low=0.24, high=0.51)


def test_answer_without_an_interval_is_read() -> None:
    assert read(None).interval is None
    assert Prediction.model_validate(DOCUMENT).interval is None
