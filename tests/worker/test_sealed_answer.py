"""The output of `predict` in a silent trial: no number, the same length for every answer, and codes of inputs only."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

from app.core import two_key_sealing
from app.core.two_key_sealing import PrivateKey
from app.database.trials import Trial
from app.worker import sealed_answer

KEYS = [PrivateKey.generate(), PrivateKey.generate()]
HOLDERS = [{"name": str(place), "public_key": two_key_sealing.public_text(key)} for place, key in enumerate(KEYS)]
TRIAL = Trial("silent", "0" * 64, {"holders": HOLDERS}, datetime(2026, 1, 1, tzinfo=UTC))


def answer(refractory: bool, **changes: Any) -> dict[str, Any]:
    decision = {"refractory": refractory, "threshold": 0.22, "rule": "max F1", "conformal": ["refractory"] * refractory}
    return {
        "probability": 0.123456789 if refractory else 0.5,
        "interval": None,
        "folds": [0.31, 0.35],
        "decision": decision,
        "withheld": [] if refractory else ["out-of-distribution"],
        "flags": [{"code": "imputed", "detail": "age: 71"}, {"code": "out-of-distribution", "detail": "distance 7.31"}],
        "perfusion": {"core_ml": 21.75},
        "computed_on": ["cpu", "float32"],
    } | changes


def test_sealed_output_has_no_number_and_opens_to_the_answer() -> None:
    for refractory in (True, False):
        output = sealed_answer.seal(TRIAL, "id-1", answer(refractory), ["imputed", "imputed"])
        text = json.dumps(output)
        for secret in ("0.1234", "0.5,", "0.31", "21.75", "7.31", "71", "out-of-distribution", "max F1", "0.22"):
            assert secret not in text.replace(output["sealed"], ""), secret
        assert [flag["code"] for flag in output["flags"]] == ["imputed"]
        sealed = sealed_answer.read(output)
        assert sealed is not None
        opened = two_key_sealing.open_sealed(sealed, TRIAL.holders, KEYS, TRIAL.context("id-1"))
        assert json.loads(opened) == answer(refractory)


def test_outputs_of_different_answers_have_one_length() -> None:
    outputs = [sealed_answer.seal(TRIAL, "id-1", answer(refractory), []) for refractory in (True, False, True)]
    assert len({len(json.dumps(output)) for output in outputs}) == 1
    assert len({output["sealed"] for output in outputs}) == 3


def test_open_output_is_not_sealed() -> None:
    assert sealed_answer.read(answer(True)) is None
