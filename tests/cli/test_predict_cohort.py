"""`rlvo predict-cohort`: each study is predicted once and listed once, also after an interruption."""

from __future__ import annotations

import csv
import json
from contextlib import nullcontext
from pathlib import Path

import pytest
from typer.testing import CliRunner

from app.cli import predict_cohort as command
from app.cli.__main__ import app
from app.cli.predict_cohort import RowOptions, predict_rows
from app.sdk.client import Client
from app.sdk.errors import InternalError, InvalidVolume, QueueFull, RlvoError, StorageFull, TransportError
from app.sdk.summary import Headline
from app.sdk.types import Decision, ModelRef, Prediction, Status
from app.training.cohort import read_for_prediction
from app.training.errors import CohortFault


def table(folder: Path, *lines: str) -> Path:
    for name in ("a", "b", "c"):
        (folder / f"{name}.nii").write_bytes(name.encode())
    path = folder / "cohort.csv"
    path.write_text("\n".join(("patient,cta,age", *lines)) + "\n")
    return path


class Service(Client):
    """Client of a service that predicts at once and has one prediction per idempotency key."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, dict[str, object]]] = []
        self.ids: dict[str, str] = {}
        self.fail_after = 10**6
        self.failure: RlvoError = TransportError()
        self.withheld: list[str] = []
        self.version = "1.0.0"
        self.decision: Decision | None = None

    def submit(self, *, on_progress: object = None, idempotency_key: str | None = None, **study: object) -> Prediction:
        if len(self.sent) >= self.fail_after:
            raise self.failure
        assert idempotency_key
        self.sent.append((idempotency_key, study))
        return self._prediction(self.ids.setdefault(idempotency_key, f"p{len(self.ids)}"))

    def wait(self, prediction_id: str, *, seconds: float | None = 0, on_progress: object = None) -> Prediction:
        return self._prediction(prediction_id)

    def _prediction(self, prediction_id: str) -> Prediction:
        model = ModelRef(name="tiny", version=self.version, digest="sha256:0")
        return Prediction(
            id=prediction_id,
            status=Status.SUCCEEDED,
            model=model,
            probability=0.25,
            withheld=self.withheld,
            decision=self.decision,
            created="2026-01-01T00:00:00Z",
        )


def run(service: Service, path: Path, out: Path) -> tuple[dict[str, int], int]:
    ticks: list[None] = []
    studies = read_for_prediction(path)
    options = RowOptions(None, explain=False)
    counts = predict_rows(service, studies, out, options, on_finished=lambda: ticks.append(None))
    return counts, len(ticks)


def test_cohort_is_sent_at_batch_priority(tmp_path: Path) -> None:
    path, service = table(tmp_path, "P1,a.nii,71", "P2,b.nii,"), Service()
    assert run(service, path, tmp_path / "out.csv") == ({"succeeded": 2}, 2)
    lines = list(csv.DictReader((tmp_path / "out.csv").read_text().splitlines()))
    assert [(line["patient"], line["probability"], line["prediction"]) for line in lines] == [
        ("P1", "0.250000", "p0"),
        ("P2", "0.250000", "p1"),
    ]
    sent = service.sent[0][1]
    assert sent["priority"] == "batch"
    assert sent["subject"] == "P1"
    assert sent["clinical"] == {"age": 71}
    assert sent["explain"] is False
    json.dumps(sent["clinical"])


def test_interrupted_cohort_continues_without_repetition(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "AHEAD", 2)
    path, service = table(tmp_path, "P1,a.nii,71", "P2,b.nii,72", "P3,c.nii,73"), Service()
    service.fail_after = 2
    with pytest.raises(TransportError):
        run(service, path, tmp_path / "out.csv")
    done = (tmp_path / "out.csv").read_text()
    assert "P1" in done
    with (tmp_path / "out.csv").open("a") as file:
        file.write("P2,succ")  # incomplete line
    service.fail_after = 10**6
    assert run(service, path, tmp_path / "out.csv") == ({"succeeded": 2}, 3)
    lines = list(csv.DictReader((tmp_path / "out.csv").read_text().splitlines()))
    assert [line["patient"] for line in lines] == ["P1", "P2", "P3"]
    assert len(service.ids) == 3  # P2 was sent twice with the same key
    assert run(service, path, tmp_path / "out.csv") == ({}, 3)


@pytest.mark.parametrize("failure", [QueueFull(), StorageFull()])
def test_study_that_meets_a_busy_service_is_not_listed_as_refused(tmp_path: Path, failure: RlvoError) -> None:
    path, service = table(tmp_path, "P1,a.nii,71"), Service()
    service.fail_after, service.failure = 0, failure
    with pytest.raises(type(failure)):
        run(service, path, tmp_path / "out.csv")
    service.fail_after = 10**6
    assert run(service, path, tmp_path / "out.csv") == ({"succeeded": 1}, 1)


@pytest.mark.parametrize("failure", [InternalError, InvalidVolume])
def test_study_of_an_earlier_run_that_has_failed_is_listed_from_its_record(
    tmp_path: Path, failure: type[RlvoError]
) -> None:
    path, service = table(tmp_path, "P1,a.nii,71"), Service()
    service.fail_after, service.failure = 0, failure(prediction_id="p7")
    assert run(service, path, tmp_path / "out.csv") == ({"succeeded": 1}, 1)
    assert "p7" in (tmp_path / "out.csv").read_text()


def test_invalid_study_is_listed_as_refused(tmp_path: Path) -> None:
    path, service = table(tmp_path, "P1,a.nii,71"), Service()
    service.fail_after, service.failure = 0, InvalidVolume()
    assert run(service, path, tmp_path / "out.csv") == ({"refused": 1}, 1)
    assert "nifti-invalid" in (tmp_path / "out.csv").read_text()


@pytest.mark.parametrize("change", ["record", "volume", "model"])
def test_listed_study_that_has_changed_is_refused_and_not_mixed(tmp_path: Path, change: str) -> None:
    path, service, out = table(tmp_path, "P1,a.nii,71", "P2,b.nii,72"), Service(), tmp_path / "out.csv"
    run(service, path, out)
    before = out.read_text()
    options = RowOptions("other" if change == "model" else None, explain=True)
    table_now = table(tmp_path, "P1,a.nii,71", "P2,b.nii,73", "P3,c.nii,74") if change == "record" else path
    if change == "volume":
        (tmp_path / "b.nii").write_bytes(b"other")
    studies = read_for_prediction(table_now)
    with pytest.raises(CohortFault, match=r"rows? .*3.* differ from those of the line in out\.csv"):
        predict_rows(service, studies, out, options, on_finished=lambda: None)
    assert out.read_text() == before
    kept = [line for line in before.splitlines() if not line.startswith(("P2,", "P1,"))]
    out.write_text("\n".join(kept) + "\n")
    counts = predict_rows(service, studies, out, options, on_finished=lambda: None)
    assert counts == {"succeeded": len(studies)}


def test_changed_volume_is_another_study(tmp_path: Path) -> None:
    path, service = table(tmp_path, "P1,a.nii,71"), Service()
    run(service, path, tmp_path / "one.csv")
    (tmp_path / "a.nii").write_bytes(b"other")
    run(service, path, tmp_path / "two.csv")
    assert len(service.ids) == 2


SAVED_BY_A_SPREADSHEET = {
    "semicolons and decimal commas": lambda text: text.replace(",", ";").replace("0.25", "0,25").encode(),
    "a byte-order mark": lambda text: text.encode("utf-8-sig"),
    "Windows line ends": lambda text: text.replace("\n", "\r\n").encode(),
    "UTF-16 with tabs": lambda text: text.replace(",", "\t").encode("utf-16"),
    "Windows-1252": lambda text: text.replace(",", ";").replace("P1", "Lleó").encode("cp1252"),
    "words in capitals": lambda text: text.replace("true", "WAHR").replace("false", "FALSE").encode("utf-8-sig"),
    "no line end": lambda text: text.replace(",", ";").rstrip("\n").encode(),
    "empty columns at the end": lambda text: text.replace(",", ";").replace("\n", ";;\n").encode(),
    "sep= in the first line": lambda text: "sep=;\n" + text.replace(",", ";"),
}


@pytest.mark.parametrize("name", SAVED_BY_A_SPREADSHEET)
def test_results_saved_again_by_a_spreadsheet_program_are_continued_in_their_own_form(
    tmp_path: Path, name: str
) -> None:
    patient = "Lleó" if name == "Windows-1252" else "P1"
    path, out, service = table(tmp_path, f"{patient},a.nii,71"), tmp_path / "out.csv", Service()
    run(service, path, out)
    before = out.read_text()
    saved = SAVED_BY_A_SPREADSHEET[name](before)
    out.write_bytes(saved if isinstance(saved, bytes) else saved.encode())
    path = table(tmp_path, f"{patient},a.nii,71", "P2,b.nii,")
    assert run(service, path, out) == ({"succeeded": 1}, 2)
    lines = out.read_text().splitlines()
    assert "\n".join(lines[:2]) + "\n" == before
    assert [line.split(",")[:3] for line in lines[1:]] == [
        [patient, "succeeded", "0.250000"],
        ["P2", "succeeded", "0.250000"],
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"patient,cta,age\nP1,a.nii,71\n", "no file of results"),
        (b"patient,cta,age\nP1,a.nii,71", "no file of results"),
        (b"PK\x03\x04 zip", "save it as CSV"),
        (b"\x00\x01\xff binary", "no text"),
        (b'patient;"status', "no file of results"),
        (
            b"patient;status;probability;fold_low;fold_high;headline;refractory;withheld;model;version;prediction;error;study\nP1;succeeded;250.000;;;;;;;;p0;;\n",
            "row 2",
        ),
        (
            b"patient;status;probability;fold_low;fold_high;headline;refractory;withheld;model;version;prediction;error;study\nP1;succeeded;0,2;;;;maybe;;;;p0;;\n",
            "row 2",
        ),
    ],
)
def test_file_that_is_no_file_of_results_is_refused_and_kept(tmp_path: Path, content: bytes, message: str) -> None:
    path, out = table(tmp_path, "P1,a.nii,71"), tmp_path / "out.csv"
    out.write_bytes(content)
    with pytest.raises(CohortFault, match=message):
        run(Service(), path, out)
    assert out.read_bytes() == content


@pytest.mark.parametrize("content", [b"", b"patient,sta"])
def test_file_whose_header_was_cut_off_is_started_again(tmp_path: Path, content: bytes) -> None:
    path, out = table(tmp_path, "P1,a.nii,71"), tmp_path / "out.csv"
    out.write_bytes(content)
    assert run(Service(), path, out) == ({"succeeded": 1}, 1)
    assert len(out.read_text().splitlines()) == 2


def test_command_writes_the_results_and_prints_the_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    service, out = Service(), tmp_path / "out.csv"
    monkeypatch.setattr("app.cli.common.ServiceOptions.client", lambda _: nullcontext(service))
    arguments = ["predict-cohort", str(table(tmp_path, "P1,a.nii,71")), "--results", str(out), "--model", "tiny"]
    run = CliRunner().invoke(app, [*arguments, "--no-explain"])
    assert run.stdout == f"1 succeeded; {out}\n"
    assert [line["patient"] for line in csv.DictReader(out.read_text().splitlines())] == ["P1"]
    assert service.sent[0][1]["model"] == "tiny"
    assert service.sent[0][1]["explain"] is False
    assert CliRunner().invoke(app, arguments).stdout == f"no study left to predict; {out}\n"


def test_all_faults_of_the_table_are_listed_before_a_study_is_sent(tmp_path: Path) -> None:
    path = table(tmp_path, "P1,a.nii,71", "P1,b.nii,72", "P3,,73", "P4,gone.nii,740")
    with pytest.raises(CohortFault) as raised:
        read_for_prediction(path)
    faults = str(raised.value.args) + str(raised.value.__dict__)
    for row in ("rows (2, 3)", "row 4", "row 5"):
        assert row in faults


def test_withheld_decisions_are_listed_and_counted(tmp_path: Path) -> None:
    path, service = table(tmp_path, "P1,a.nii,71"), Service()
    service.withheld = ["alignment-poor", "tmax-doubtful"]
    assert run(service, path, tmp_path / "out.csv")[0] == {"succeeded": 1, "withheld decisions": 1}
    (line,) = csv.DictReader((tmp_path / "out.csv").read_text().splitlines())
    assert (line["headline"], line["refractory"]) == ("withheld", "")
    assert line["withheld"] == "alignment-poor tmax-doubtful"


def test_undetermined_answer_is_listed_as_such_beside_its_side_of_the_threshold(tmp_path: Path) -> None:
    path, service = table(tmp_path, "P1,a.nii,71"), Service()
    both = [Headline.NOT_REFRACTORY.value, Headline.REFRACTORY.value]
    service.decision = Decision(refractory=False, threshold=0.4, rule="r", conformal=both)
    run(service, path, tmp_path / "out.csv")
    (line,) = csv.DictReader((tmp_path / "out.csv").read_text().splitlines())
    assert (line["headline"], line["refractory"]) == ("undetermined", "false")


def test_accepted_warnings_are_sent_and_change_the_key(tmp_path: Path) -> None:
    studies, service = read_for_prediction(table(tmp_path, "P1,a.nii,71")), Service()
    for number, accepted in enumerate((False, True)):
        options = RowOptions(None, explain=False, accept_warnings=accepted)
        predict_rows(service, studies, tmp_path / f"{number}.csv", options, on_finished=lambda: None)
    assert [sent["accept_warnings"] for _, sent in service.sent] == [False, True]
    assert len({key for key, _ in service.sent}) == 2


def test_results_file_of_an_earlier_release_is_refused_and_not_changed(tmp_path: Path) -> None:
    out = tmp_path / "out.csv"
    out.write_text("patient,status,probability,low,high,refractory,prediction,error\nP1,succeeded,0.2,0,1,fal")
    before = out.read_text()
    with pytest.raises(CohortFault, match="no file of results"):
        run(Service(), table(tmp_path, "P1,a.nii,71"), out)
    assert out.read_text() == before


def test_results_name_the_version_and_several_versions_are_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, out, service = table(tmp_path, "P1,a.nii,71", "P2,b.nii,72"), tmp_path / "out.csv", Service()
    monkeypatch.setattr("app.cli.common.ServiceOptions.client", lambda _: nullcontext(service))
    first = CliRunner().invoke(app, ["predict-cohort", str(path), "--results", str(out)])
    assert first.exit_code == 0, first.output
    lines = list(csv.DictReader(out.read_text().splitlines()))
    assert [(line["model"], line["version"]) for line in lines] == [("tiny", "tiny@1.0.0")] * 2
    assert "versions" not in first.output
    service.version = "1.1.0"  # the alias was promoted between both runs
    path = table(tmp_path, "P1,a.nii,71", "P2,b.nii,72", "P3,c.nii,73")
    second = CliRunner().invoke(app, ["predict-cohort", str(path), "--results", str(out)])
    assert second.exit_code == 0, second.output
    assert "2 versions, tiny@1.0.0 (2), tiny@1.1.0 (1)" in second.output.replace("\n", " ")
