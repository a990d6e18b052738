"""`rlvo predict-cohort`: every study of a table, sent at batch priority.

Design notes:
- The results are one CSV file, which gets a line as soon as a study has finished. A listed study is not sent again.
- A study's Idempotency-Key is made of its content. After an interruption the service finds the study by this key.
- A few studies are queued at once: enough for every worker, too few to fill the queue.
"""

from __future__ import annotations

import csv
import hashlib
import os
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TextIO, cast

import typer

from app.cli.common import ServiceOptions
from app.cli.option_groups import expand_option_groups
from app.core import csv_text

if TYPE_CHECKING:
    from collections.abc import Callable

    from app.sdk.client import Client, Study
    from app.sdk.types import Prediction
    from app.training.cohort import CohortRow

AHEAD = 8  # studies that are sent before the first of them has finished
COLUMNS = ("patient", "status", "probability", "low", "high", "refractory", "prediction", "error")


@expand_option_groups
def predict_cohort(
    table: Annotated[Path, typer.Argument(exists=True, help="Table (.csv, .xlsx, .parquet), or its folder")],
    results: Annotated[Path, typer.Option(dir_okay=False, help="CSV file of the results")] = Path("predictions.csv"),
    model: Annotated[str | None, typer.Option(help="name, name@1.2.0 or name@champion")] = None,
    explain: Annotated[bool, typer.Option(help="Also explain the predictions")] = True,
    *,
    service: ServiceOptions,
) -> None:
    """Predict every study of a cohort and write the results to a CSV file. Research use only.

    rlvo predict-cohort cohort.csv --results predictions.csv
    rlvo predict-cohort cohort.csv --results predictions.csv --no-explain --url http://rlvo.local:8000

    The table has one line per patient: `patient`, the paths of the volumes (`ncct`, `cta`, ...), clinical variables.
    Acute studies of other callers are predicted first. After an interruption, the same command continues.

    Without --url, the command starts a service in the data folder (RLVO_DATA_DIR) and stops it at the end.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    from rich.progress import TimeElapsedColumn as Elapsed
    from rich.progress import TimeRemainingColumn as Remaining

    from app.training.cohort import read_for_prediction

    studies = read_for_prediction(table)
    columns = TextColumn("predict"), BarColumn(), MofNCompleteColumn(), Elapsed(), Remaining()
    bar = Progress(*columns, console=Console(stderr=True))
    with service.client() as client, bar:
        task = bar.add_task("", total=len(studies))
        counts = predict_rows(
            client, studies, results, model=model, explain=explain, on_finished=lambda: bar.advance(task)
        )
    summary = ", ".join(f"{count} {status}" for status, count in sorted(counts.items())) or "no study left to predict"
    typer.echo(f"{summary}; {results}")
    if set(counts) - {"succeeded"}:
        raise typer.Exit(1)


def predict_rows(
    client: Client,
    studies: Sequence[CohortRow],
    results: Path,
    *,
    model: str | None,
    explain: bool,
    on_finished: Callable[[], None],
) -> dict[str, int]:
    """Predict every study that ``results`` does not list yet; return the number of studies by final status.

    ``on_finished`` is called once for each study that has finished, including those of an earlier run.

    Raises:
        TransportError: The service is not reachable any more. The same call continues later.
    """
    from app.sdk.errors import InternalError, RlvoError, TransportError

    listed = _listed(results)
    counts: dict[str, int] = {}
    waiting: deque[tuple[str, str]] = deque()
    with results.open("a", newline="", encoding="utf-8") as file:
        if file.tell() == 0:
            _write(file, COLUMNS)

        def finish_oldest() -> None:
            patient, prediction_id = waiting.popleft()
            prediction = client.wait(prediction_id, seconds=None)
            _write(file, _line(patient, prediction))
            counts[prediction.status] = counts.get(prediction.status, 0) + 1
            on_finished()

        for study in studies:
            if study.patient in listed:
                on_finished()
                continue
            try:
                waiting.append((study.patient, _submit(client, study, model=model, explain=explain)))
            except RlvoError as error:
                if isinstance(error, TransportError | InternalError):
                    raise
                _write(file, (study.patient, "refused", *[""] * 5, error.code))
                counts["refused"] = counts.get("refused", 0) + 1
                on_finished()
            if len(waiting) >= AHEAD:
                finish_oldest()
        while waiting:
            finish_oldest()
    return counts


def _submit(client: Client, study: CohortRow, *, model: str | None, explain: bool) -> str:
    from app.sdk.types import Priority

    record = study.record.model_dump(mode="json", exclude_none=True)
    sent: dict[str, object] = {name.value: path for name, path in study.volumes.items()}
    sent |= {"clinical": record, "subject": study.patient, "explain": explain, "priority": Priority.BATCH}
    if model:
        sent["model"] = model
    return client.submit(idempotency_key=_idempotency_key(study, model, explain), **cast("Study", sent)).id


def _idempotency_key(study: CohortRow, model: str | None, explain: bool) -> str:
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
    """Return the patients that an earlier run finished; remove a last line that a crash cut off."""
    if not results.exists():
        return set()
    content = results.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if whole != content:
        os.truncate(results, len(whole))
    return {csv_text.plain(line["patient"]) for line in csv.DictReader(whole.decode("utf-8").splitlines())}


def _write(file: TextIO, cells: Sequence[str]) -> None:
    csv.writer(file, lineterminator="\n").writerow([csv_text.text_of(cell) for cell in cells])
    file.flush()
    os.fsync(file.fileno())
