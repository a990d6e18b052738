"""`rlvo predict --cohort`: every study of a table through the same queue as everybody's, behind the acute ones.

Notable choices:
- Results are one CSV, a line as soon as a study has finished; what stands there is not sent again.
- A study's Idempotency-Key is made of its content, so one that was sent before an interruption is found, not repeated.
- A few studies are in the queue at once: enough for every worker, not enough to fill it.
"""

from __future__ import annotations

import csv
import hashlib
import os
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TextIO, cast

from app.sdk.errors import InternalError, RlvoError, TransportError
from app.sdk.types import Prediction, Priority

if TYPE_CHECKING:
    from collections.abc import Callable

    from app.sdk.client import Client, Study
    from app.training.cohort import CohortRow

AHEAD = 8
"""Studies that are sent before the first of them has finished."""
COLUMNS = ("patient", "status", "probability", "low", "high", "refractory", "prediction", "error")


def predict_cohort(
    client: Client,
    studies: Sequence[CohortRow],
    results: Path,
    *,
    model: str | None,
    explain: bool,
    done: Callable[[], None],
) -> dict[str, int]:
    """Predicts every study that ``results`` does not list yet; how many ended in which status.

    :param done: called once for each study that has finished, those of an earlier run included
    :raises TransportError: where the service went away; run it again and it goes on
    """
    listed = _listed(results)
    ended: dict[str, int] = {}
    waiting: deque[tuple[str, str]] = deque()
    with results.open("a", newline="", encoding="utf-8") as file:
        if file.tell() == 0:
            _write(file, COLUMNS)

        def finish() -> None:
            patient, prediction_id = waiting.popleft()
            prediction = client.wait(prediction_id, seconds=None)
            _write(file, _line(patient, prediction))
            ended[prediction.status] = ended.get(prediction.status, 0) + 1
            done()

        for study in studies:
            if study.patient in listed:
                done()
                continue
            try:
                waiting.append((study.patient, _submit(client, study, model=model, explain=explain)))
            except RlvoError as error:
                if isinstance(error, TransportError | InternalError):
                    raise
                _write(file, (study.patient, "refused", *[""] * 5, error.code))
                ended["refused"] = ended.get("refused", 0) + 1
                done()
            if len(waiting) >= AHEAD:
                finish()
        while waiting:
            finish()
    return ended


def _submit(client: Client, study: CohortRow, *, model: str | None, explain: bool) -> str:
    record = study.record.model_dump(mode="json", exclude_none=True)
    sent: dict[str, object] = {name.value: path for name, path in study.volumes.items()}
    sent |= {"clinical": record, "subject": study.patient, "explain": explain, "priority": Priority.BATCH}
    if model:
        sent["model"] = model
    return client.submit(idempotency_key=_key(study, model, explain), **cast("Study", sent)).id


def _key(study: CohortRow, model: str | None, explain: bool) -> str:
    digest = hashlib.sha256(repr((study.patient, model, explain, study.record.model_dump_json())).encode())
    for name, path in sorted(study.volumes.items()):
        with path.open("rb") as file:
            digest.update(f"{name}={hashlib.file_digest(file, 'sha256').hexdigest()}".encode())
    return f"cohort-{digest.hexdigest()}"


def _line(patient: str, prediction: Prediction) -> tuple[str, ...]:
    interval, decision, error = prediction.interval, prediction.decision, prediction.error
    return (
        patient,
        prediction.status,
        "" if prediction.probability is None else f"{prediction.probability:.6f}",
        "" if interval is None else f"{interval.low:.6f}",
        "" if interval is None else f"{interval.high:.6f}",
        "" if decision is None else str(decision.refractory).lower(),
        prediction.id,
        "" if error is None else error.code,
    )


def _listed(results: Path) -> set[str]:
    """The patients that an earlier run finished. A last line that a crash cut off is taken away first."""
    if not results.exists():
        return set()
    content = results.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if whole != content:
        os.truncate(results, len(whole))
    return {line["patient"] for line in csv.DictReader(whole.decode("utf-8").splitlines())}


def _write(file: TextIO, cells: Sequence[str]) -> None:
    csv.writer(file, lineterminator="\n").writerow(cells)
    file.flush()
    os.fsync(file.fileno())
