"""`rlvo predict-cohort`: every study of a table, sent at batch priority.

Design notes:
- The results are one CSV file, which gets a line as soon as a study has finished. A listed study is not sent again. Its
  line has a digest of what was sent, so that a file never mixes results of before and after a change.
- A study's Idempotency-Key is made of its content. After an interruption the service finds the study by this key.
- A few studies are queued at once: enough for every worker, too few to fill the queue.
"""

from __future__ import annotations

import csv
import hashlib
import os
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple, TextIO, cast

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
COLUMNS = (
    "patient",
    "status",
    "probability",
    "fold_low",
    "fold_high",
    "headline",
    "refractory",
    "withheld",
    "model",
    "version",
    "prediction",
    "error",
    "study",
)

WITHHELD = "withheld decisions"  # name in the summary


class RowOptions(NamedTuple):
    """What every study of the table is sent with."""

    model: str | None
    explain: bool
    accept_warnings: bool = False
    ctp_interval_s: float | None = None


@expand_option_groups
def predict_cohort(
    table: Annotated[Path, typer.Argument(exists=True, help="Table (.csv, .xlsx, .parquet), or its folder")],
    results: Annotated[Path, typer.Option(dir_okay=False, help="CSV file of the results")] = Path("predictions.csv"),
    model: Annotated[str | None, typer.Option(help="name, name@1.2.0 or name@champion")] = None,
    explain: Annotated[bool, typer.Option(help="Also explain the predictions")] = True,
    accept_warnings: Annotated[
        bool, typer.Option("--accept-warnings", help="Give decisions in spite of warnings")
    ] = False,
    ctp_interval_s: Annotated[
        float | None, typer.Option("--ctp-interval-s", min=0.2, max=6.0, help="Seconds between the frames of every CTP")
    ] = None,
    *,
    service: ServiceOptions,
) -> None:
    """Predict every study of a cohort and write the results to a CSV file. Research use only.

    rlvo predict-cohort cohort.csv --results predictions.csv
    rlvo predict-cohort cohort.csv --results predictions.csv --no-explain --url http://rlvo.local:8000

    The table has one line per patient: `patient`, the paths of the volumes (`ncct`, `cta`, ...), clinical variables.
    Acute studies of other callers are predicted first. After an interruption, the same command continues.
    The column `headline` is the answer: refractory, not-refractory, undetermined or withheld. `refractory` is the side
    of the threshold, also of an undetermined answer. `withheld` lists the warnings that withhold a decision, and
    `version` the version that answered. Name one (`--model name@1.2.0`) if an alias may be promoted meanwhile: a file
    with several versions is named as such.

    Without --url, the command starts a service in the data folder (RLVO_DATA_DIR) and stops it at the end.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    from rich.progress import TimeElapsedColumn as Elapsed
    from rich.progress import TimeRemainingColumn as Remaining

    from app.cli import cohort_results
    from app.training.cohort import read_for_prediction

    studies = read_for_prediction(table)
    options = RowOptions(model, explain, accept_warnings, ctp_interval_s)
    # A file of another kind, or of other studies, is refused before a service starts.
    _check_unchanged(studies, cohort_results.listed_studies(results, COLUMNS), options, results)
    columns = TextColumn("predict"), BarColumn(), MofNCompleteColumn(), Elapsed(), Remaining()
    bar = Progress(*columns, console=Console(stderr=True))
    with service.client() as client, bar:
        task = bar.add_task("", total=len(studies))
        counts = predict_rows(client, studies, results, options, on_finished=lambda: bar.advance(task))
    summary = ", ".join(f"{count} {status}" for status, count in sorted(counts.items())) or "no study left to predict"
    typer.echo(f"{summary}; {results}")
    if mixed := cohort_results.mixed_versions(results):
        typer.echo(mixed, err=True)
    if set(counts) - {"succeeded", WITHHELD}:
        raise typer.Exit(1)


def predict_rows(
    client: Client, studies: Sequence[CohortRow], results: Path, options: RowOptions, *, on_finished: Callable[[], None]
) -> dict[str, int]:
    """Predict every study that ``results`` does not list yet; return the number of studies by final status.

    ``on_finished`` is called once for each study that has finished, including those of an earlier run.

    Raises:
        CohortFault: ``results`` has other columns, for example those of an earlier release, or a listed study has
            changed since.
        TransportError: The service is not reachable any more. The same call continues later.
        RlvoError: The service is busy, unavailable or failed. The same call continues later.
    """
    from app.cli import cohort_results
    from app.sdk.errors import Busy, InternalError, RlvoError, TransportError, Unavailable

    listed = cohort_results.listed_studies(results, COLUMNS)
    _check_unchanged(studies, listed, options, results)
    counts: dict[str, int] = {}
    waiting: deque[tuple[CohortRow, str]] = deque()
    with results.open("a", newline="", encoding="utf-8") as file:
        if file.tell() == 0:
            _write(file, COLUMNS)

        def finish_oldest() -> None:
            study, prediction_id = waiting.popleft()
            prediction = client.wait(prediction_id, seconds=None)
            _write(file, _line(study, prediction, options))
            counts[prediction.status] = counts.get(prediction.status, 0) + 1
            if prediction.withheld:
                counts[WITHHELD] = counts.get(WITHHELD, 0) + 1
            on_finished()

        for study in studies:
            if study.patient in listed:
                on_finished()
                continue
            try:
                waiting.append((study, _submit(client, study, options)))
            except RlvoError as error:
                if isinstance(error, TransportError | InternalError | Busy | Unavailable):
                    raise
                _write(file, (study.patient, "refused", *[""] * 8, error.code, _digest(study, options)))
                counts["refused"] = counts.get("refused", 0) + 1
                on_finished()
            if len(waiting) >= AHEAD:
                finish_oldest()
        while waiting:
            finish_oldest()
    return counts


def _check_unchanged(
    studies: Sequence[CohortRow], listed: Mapping[str, str], options: RowOptions, results: Path
) -> None:
    """Check that each listed study is the one of the table; ``listed``: its digest by patient."""
    from app.training.errors import CohortFault, rows_text

    rows = [one.row for one in studies if one.patient in listed and listed[one.patient] != _digest(one, options)]
    if rows:
        fault = f"{rows_text(rows)}: record, images or options differ from those of the line in {results.name}"
        raise CohortFault([f"{fault}; remove the line to predict the study again, or give another file --results"])


def _digest(study: CohortRow, options: RowOptions) -> str:
    """Digest of all that the answer depends on; it begins with letters, so that a spreadsheet keeps it."""
    return f"study-{_content(study, options._replace(explain=False))[:16]}"


def _idempotency_key(study: CohortRow, options: RowOptions) -> str:
    return f"cohort-{_content(study, options)}"


def _content(study: CohortRow, options: RowOptions) -> str:
    """SHA-256 of what is sent for a study."""
    from app.inference.preprocess_cache import file_digest

    digest = hashlib.sha256(repr((study.patient, *options, study.record.model_dump_json())).encode())
    for name, path in sorted(study.volumes.items()):
        digest.update(f"{name}={file_digest(path)}".encode())
    return digest.hexdigest()


def _submit(client: Client, study: CohortRow, options: RowOptions) -> str:
    from app.sdk.errors import RlvoError
    from app.sdk.types import Input, Priority

    record = study.record.model_dump(mode="json", exclude_none=True)
    sent: dict[str, object] = {name.value: path for name, path in study.volumes.items()}
    sent |= {"clinical": record, "subject": study.patient, "explain": options.explain, "priority": Priority.BATCH}
    sent["accept_warnings"] = options.accept_warnings
    if options.ctp_interval_s is not None and Input.CTP in study.volumes:
        sent["ctp_interval_s"] = options.ctp_interval_s
    if options.model:
        sent["model"] = options.model
    try:
        return client.submit(idempotency_key=_idempotency_key(study, options), **cast("Study", sent)).id
    except RlvoError as error:
        if error.prediction_id is None:
            raise
        return error.prediction_id  # sent by an earlier run, and failed since; its record has the reason


def _line(study: CohortRow, prediction: Prediction, options: RowOptions) -> tuple[str, ...]:
    interval, decision, error = prediction.interval, prediction.decision, prediction.error
    return (
        study.patient,
        prediction.status,
        "" if prediction.probability is None else f"{prediction.probability:.6f}",
        "" if interval is None else f"{interval.low:.6f}",
        "" if interval is None else f"{interval.high:.6f}",
        "" if prediction.headline is None else prediction.headline.value,
        "" if decision is None else str(decision.refractory).lower(),
        " ".join(prediction.withheld),
        prediction.model.name,
        f"{prediction.model.name}@{prediction.model.version}",
        prediction.id,
        "" if error is None else error.code,
        _digest(study, options),
    )


def _write(file: TextIO, cells: Sequence[str]) -> None:
    csv.writer(file, lineterminator="\n").writerow([csv_text.text_of(cell) for cell in cells])
    file.flush()
    os.fsync(file.fileno())
