"""The answer of a prediction in a silent trial: sealed by the step that computes it.

Design notes:
- No number of the answer reaches a file, a row or a message. The output of the step holds ciphertext, which differs at
  each computation, so its digest in the log of the job engine says nothing either.
- The codes of the checks of the inputs stay readable without their details: a site must see that its studies are unfit.
  Flags of the answer and the perfusion volumes are sealed with it.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from typing import Any

from app.core import two_key_sealing
from app.database.trials import Trial
from app.sdk.types import Flag

__all__ = ["read", "seal"]

_DETAIL = "The detail is sealed with the answer"


def seal(trial: Trial, prediction_id: str, answer: dict[str, Any], codes: Sequence[str]) -> dict[str, Any]:
    """The output of `predict` for a prediction in a trial: empty members, and the sealed answer.

    Args:
        trial: The trial, with the public keys of its holders.
        prediction_id: The prediction.
        answer: Output of `predict`.
        codes: Codes of the flags that do not depend on the answer.
    """
    document = json.dumps(answer, allow_nan=False).encode()
    sealed = two_key_sealing.seal(document, trial.holders, trial.context(prediction_id))
    flags = [Flag(code=code, detail=_DETAIL) for code in dict.fromkeys(codes)]
    return {
        "probability": None,
        "interval": None,
        "folds": None,
        "decision": None,
        "withheld": [],
        "flags": [flag.model_dump(mode="json") for flag in flags],
        "perfusion": None,
        "computed_on": answer["computed_on"],
        "sealed": base64.b64encode(sealed).decode(),
    }


def read(answer: dict[str, Any]) -> bytes | None:
    """The sealed answer in the output of `predict`; None if it is open."""
    sealed = answer.get("sealed")
    return None if sealed is None else base64.b64decode(sealed)
