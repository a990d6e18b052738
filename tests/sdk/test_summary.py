"""First line of an answer: headline, withheld decision, and studies that the model was not made for."""

from __future__ import annotations

from typing import Any

import pytest

from app.sdk import FLAGS, SYNTHETIC_NOTICE, Flag, Headline, Prediction, Severity, summary
from app.sdk.flag_names import _NAMES, name_of
from app.sdk.flags import severity_of
from app.sdk.summary import out_of_depth

DECISION = {"refractory": True, "threshold": 0.22, "rule": "max F1"}
DOCUMENT: dict[str, Any] = {
    "id": "0192f0c4-0000-7000-8000-000000000001",
    "status": "succeeded",
    "model": {"name": "tiny", "version": "1.0.0", "digest": "sha256:" + "0" * 64},
    "probability": 0.377,
    "decision": DECISION,
    "inputs": {"cta": {"sha256": "1" * 64, "bytes": 9, "shape": [2, 2, 2], "spacing_mm": [1, 1, 1]}},
    "created": "2026-11-23T12:00:00Z",
}


def flags(*codes: str) -> list[Flag]:
    return [Flag(code=code, detail=f"detail of {code}") for code in codes]


def answer(*codes: str, **changes: object) -> Prediction:
    return Prediction.model_validate({**DOCUMENT, "flags": flags(*codes), **changes})


@pytest.mark.parametrize(
    ("refractory", "line"),
    [
        (True, "Refractory: the probability of 38 % is above the threshold of 22 %."),
        (False, "Not refractory: the probability of 38 % is below the threshold of 22 %."),
    ],
)
def test_answer_without_warnings_starts_with_its_decision(refractory: bool, line: str) -> None:
    prediction = answer("imputed", decision=DECISION | {"refractory": refractory})
    assert prediction.summary == line
    assert prediction.warnings == []
    assert prediction.withheld == []


BOTH = ["refractory", "not-refractory"]


@pytest.mark.parametrize(
    ("refractory", "conformal", "headline", "start"),
    [
        (
            True,
            BOTH,
            Headline.UNDETERMINED,
            "Undetermined: neither class can be excluded. The probability of 38 % is above",
        ),
        (
            False,
            BOTH,
            Headline.UNDETERMINED,
            "Undetermined: neither class can be excluded. The probability of 38 % is below",
        ),
        (
            True,
            [],
            Headline.UNDETERMINED,
            "Undetermined: the probability lies between the two cut-offs. The probability",
        ),
        (True, ["refractory"], Headline.REFRACTORY, "Refractory: the other class is excluded. The probability of 38 %"),
        (False, ["not-refractory"], Headline.NOT_REFRACTORY, "Not refractory: the other class is excluded. The"),
        (True, ["not-refractory"], Headline.NOT_REFRACTORY, "Not refractory: the other class is excluded. The"),
        (False, None, Headline.NOT_REFRACTORY, "Not refractory: the probability of 38 % is below the threshold"),
    ],
)
def test_headline_follows_the_conformal_set(
    refractory: bool, conformal: list[str] | None, headline: Headline, start: str
) -> None:
    prediction = answer(decision=DECISION | {"refractory": refractory, "conformal": conformal})
    assert prediction.headline is headline
    assert prediction.summary.startswith(start)


def test_first_line_says_that_the_training_patients_were_synthetic() -> None:
    assert SYNTHETIC_NOTICE in answer("synthetic-training").summary
    assert SYNTHETIC_NOTICE in answer("alignment-poor", "synthetic-training", decision=None, withheld=["x"]).summary
    assert SYNTHETIC_NOTICE not in answer("imputed").summary


def test_every_code_has_a_name_without_hyphens() -> None:
    assert set(_NAMES) <= set(FLAGS)
    assert not [code for code in FLAGS if "-" in name_of(code)]
    assert name_of("hu-doubtful") == "HU doubtful"
    assert Flag(code="missing-modality", detail="").name == "image missing"


def test_withheld_decision_is_the_first_statement() -> None:
    withheld = ["alignment-poor", "tmax-doubtful"]
    prediction = answer("imputed", *withheld, decision=None, withheld=withheld)
    assert prediction.summary == "Decision withheld: alignment poor, Tmax doubtful."
    assert [flag.code for flag in prediction.warnings] == withheld


def test_accepted_warnings_are_named_after_the_decision() -> None:
    prediction = answer("tmax-doubtful", accept_warnings=True)
    assert prediction.summary.startswith("Refractory: ")
    assert prediction.summary.endswith("There are warnings: Tmax doubtful.")


def test_two_signs_together_say_that_the_model_was_not_made_for_the_study() -> None:
    codes = ["missing-modality", "alignment-poor", "out-of-distribution"]
    prediction = answer(*codes, decision=None, withheld=codes[1:], inputs={})
    assert prediction.summary == (
        "Decision withheld: alignment poor, unlike the training patients. The model was not made for this study: "
        "no CTA, alignment doubtful, unlike the training patients."
    )


@pytest.mark.parametrize(
    ("codes", "inputs"),
    [
        (["missing-modality"], ["ncct"]),
        (["missing-modality", "alignment-poor"], ["ncct", "cta"]),  # another image is missing
        (["out-of-distribution", "imputed", "vessels-computed"], ["cta"]),
        (["alignment-poor", "orientation-doubtful"], ["cta"]),  # one sign, seen twice
        (["contrast-doubtful", "vessels-few"], ["ncct", "cta"]),
        (["missing-modality", "vessels-few"], ["ncct"]),  # there is no CTA, so the mask holds no vessels
        (["map-classes", "tmax-scale", "record-contradiction"], ["cta"]),  # faults of other parts
        ([], []),
    ],
)
def test_one_sign_alone_does_not_say_so(codes: list[str], inputs: list[str]) -> None:
    assert out_of_depth(flags(*codes), inputs) == []


def test_every_sign_is_a_warning_of_the_catalogue() -> None:
    assert {severity_of(code) for code in summary._SIGNS} == {Severity.WARNING}
    assert set(summary._SIGNS) <= set(FLAGS)


def test_head_and_contrast_together_say_so() -> None:
    codes = ["hu-doubtful", "contrast-doubtful"]
    assert out_of_depth(flags(*codes), ["cta"]) == ["no certain CTA", "head doubtful"]


def test_unfinished_and_failed_predictions_name_their_state() -> None:
    assert answer(status="queued", probability=None, decision=None).summary == "Queued."
    error = {"code": "modality-implausible", "title": "The volume does not match its field", "detail": "no head"}
    failed = answer(status="failed", probability=None, decision=None, error=error)
    assert failed.summary == "Failed: The volume does not match its field."


def test_answer_of_an_earlier_release_keeps_its_decision_and_names_its_warnings() -> None:
    stored = {**DOCUMENT, "flags": [{"code": "alignment-poor", "detail": "cta: poor"}]}
    prediction = Prediction.model_validate(stored)
    assert prediction.decision
    assert prediction.withheld == []
    assert prediction.summary.endswith("There are warnings: alignment poor.")


def test_flag_says_what_to_do() -> None:
    assert "orientation" in Flag(code="alignment-poor", detail="").action
    assert "docs/flags.md" in Flag(code="of-a-later-release", detail="").action
