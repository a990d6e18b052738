"""`rlvo trial` from the protocol to the final report, with simulated patients in a real database."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result
from scipy.special import expit
from sqlalchemy import select
from typer.testing import CliRunner

from app.cli.__main__ import app
from app.core import two_key_sealing
from app.database import audit, followup, job_state, predictions, trials
from app.database.predictions import NewPrediction
from app.database.session import Database
from app.database.tables import AuditRow, PredictionRow
from app.evaluation import decide_ai
from app.registry.model_store import ModelStore
from app.sdk.errors import Conflict, ModelNotReady, Sealed
from app.sdk.followup import OutcomeDraft
from app.sdk.types import ModelRef
from app.worker import sealed_answer
from tests.evaluation.test_trial_protocol import EXAMPLE
from tests.factory import tiny_version
from tests.study import new_prediction

NAME = "silent-2027"
RUNNER = CliRunner()


@dataclass
class Site:
    """A data folder with a running trial, and its keys."""

    folder: Path
    database: Database
    model: ModelRef

    def rlvo(self, *words: str) -> Result:
        return RUNNER.invoke(app, list(words))

    @property
    def keys(self) -> list[str]:
        return [word for name in ("statistician", "investigator") for word in ("--key", str(self.folder / name))]

    def patient(self, number: int, probability: float, outcome: bool | None, **changes: Any) -> str:
        """A patient whose sealed answer is ``probability``, and whose outcome is entered if it is known."""
        defaults = {"subject": f"S-{number}", "model": self.model, "clinical": {"age": 50 + number % 40, "sex": "male"}}
        new = new_prediction("stroke-a" if number % 2 else "stroke-b", **(defaults | changes))
        with self.database.session() as session:
            predictions.add(session, new)
        self.answer(new, probability)
        if outcome is not None:
            self.outcome(new.id, outcome)
        return new.id

    def answer(self, new: NewPrediction, probability: float) -> None:
        decision = {"refractory": probability >= 0.3, "threshold": 0.3, "rule": "max F1", "conformal": ["refractory"]}
        document = {
            "probability": probability,
            "interval": {"kind": "fold-spread", "low": probability, "high": probability},
            "folds": [probability],
            "decision": decision,
            "withheld": [],
            "flags": [],
            "perfusion": None,
            "computed_on": ["cpu", "float32"],
        }
        with self.database.session() as session:
            study = job_state.start(session, new.id)
            assert study
            assert study.trial
            answer = sealed_answer.seal(study.trial, new.id, document, ["imputed"])
            result = job_state.PredictionResult(
                **{name: answer[name] for name in ("probability", "interval", "folds", "decision", "perfusion")},
                flags=[],
                attribution=None,
                timings={},
                sealed=sealed_answer.read(answer),
            )
            assert job_state.succeed(session, study, result)

    def outcome(self, prediction_id: str, refractory: bool, *, correction: bool = False) -> None:
        draft = OutcomeDraft(etici="1" if refractory else "3", rescue_treatment=False, final_stenosis_percent=0.0)
        with self.database.session() as session:
            followup.set_outcome(session, prediction_id, None, draft)
            trials.note_outcome(session, prediction_id, correction=correction)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    tiny_version(tmp_path / "store")
    monkeypatch.setenv("RLVO_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("RLVO_MODEL_STORE", str(tmp_path / "store"))
    monkeypatch.chdir(tmp_path)
    text = EXAMPLE.read_text(encoding="utf-8").replace("rlvo-synthetic", "tiny").replace("2.0.0", "1.0.0")
    text = text.replace("[100, 200, 300]", "[20, 40, 60]")
    for name in ("statistician", "investigator"):
        public = RUNNER.invoke(app, ["trial", "key", str(tmp_path / name)])
        assert public.exit_code == 0
        text = text.replace(f"the line that `rlvo trial key {name}.key` printed", public.output.strip())
    (tmp_path / "protocol.toml").write_text(text, encoding="utf-8")
    assert RUNNER.invoke(app, ["db", "upgrade"]).exit_code == 0
    database = Database(f"sqlite:///{tmp_path / 'data' / 'rlvo.sqlite'}")
    entry = ModelStore(tmp_path / "store").resolve("tiny")
    site = Site(tmp_path, database, ModelRef(name="tiny", version="1.0.0", digest=entry.digest))
    made = site.rlvo("trial", "create", "protocol.toml")
    assert made.exit_code == 0, made.output
    assert "No API key has the tenant stroke-a" in made.output
    return site


def fill(site: Site, first: int, last: int, effect: float = 2.5) -> None:
    """Patients from ``first`` to before ``last``; a larger effect separates the outcomes better."""
    rng = np.random.default_rng(first)
    for number in range(first, last):
        outcome = number % 4 == 0
        site.patient(number, float(expit(rng.normal(0, 1) + effect * outcome - 1.5)), outcome)


def actions(site: Site) -> list[tuple[str, dict[str, Any]]]:
    with site.database.reading() as session:
        rows = session.scalars(select(AuditRow).where(AuditRow.target == NAME).order_by(AuditRow.seq))
        return [(row.action, row.detail) for row in rows]


def test_a_trial_from_its_first_look_to_the_report(site: Site) -> None:
    fill(site, 0, 19)
    early = site.rlvo("trial", "report", NAME, *site.keys)
    assert early.exit_code == 1  # of the exception: the test runner does not print it
    assert isinstance(early.exception, Conflict)
    assert "next planned look is at 20 patients with answer and outcome; there are 19" in str(early.exception)
    fill(site, 19, 22)
    look = site.rlvo("trial", "report", NAME, *site.keys)
    assert look.exit_code == 0, look.output
    assert look.output.startswith("Look 1 of 3: 22 patients, 6 with the outcome; auc 0.")
    assert look.output.strip().endswith(" standard errors: continue")
    again = site.rlvo("trial", "report", NAME, *site.keys)
    assert "next planned look is at 40 patients" in str(again.exception)
    fill(site, 22, 46, effect=4)
    site.patient(46, 0.4, None)
    site.patient(48, 0.9, True)
    second = site.rlvo("trial", "report", NAME, *site.keys)
    assert "look 2 of 3" in second.output.lower()
    assert second.output.splitlines()[0].endswith(": above")
    assert "The stopping rule is met" in second.output
    shown = site.rlvo("trial", "status", NAME).output
    assert "Look 2" in shown
    assert "0.9" not in shown
    assert site.rlvo("trial", "stop", NAME, "--reason", "rule met at look 2").exit_code == 0
    final = site.rlvo("trial", "report", NAME, *site.keys, "--out", "final", "--rounds", "100")
    assert final.exit_code == 0, (final.output, final.exception)
    assert "exceeds the margin of 0.65" in final.output
    check_report(site)
    assert [action for action, _ in actions(site)] == [
        *("trial.create", "trial.look", "trial.look", "trial.stop", "trial.unseal")
    ]
    assert actions(site)[1][1] == {
        "number": 1,
        "patients": 22,
        "verdict": "continue",
        "holders": ["statistician", "investigator"],
    }
    with site.database.reading() as session:
        assert audit.verify(session).intact
        assert predictions.find(session, session.scalars(select(PredictionRow.id)).first() or "", None).sealed == NAME


def check_report(site: Site) -> None:
    """The report names protocol, flow, looks, deviations and the blanks; its table has the opened answers."""
    text = (site.folder / "final" / "report.md").read_text(encoding="utf-8")
    with site.database.reading() as session:
        hash_ = trials.find(session, NAME).hash
    for part in (
        hash_,
        "NCT00000000",
        "rule met at look 2",
        "| patients with answer and outcome | 47 |",
        "| of them without an outcome yet | 1 |",
        "| looks at another number of patients than planned | 2 |",
        "No user took part: the answers were sealed.",
        "Frozen before the first patient",
    ):
        assert part in text, part
    assert "| 12 | agreement of users with the system" in text
    rows = list(csv.DictReader((site.folder / "final" / "patients.csv").read_text(encoding="utf-8").splitlines()))
    assert len(rows) == 48
    assert {row["probability"] for row in rows} >= {"0.400000000", "0.900000000"}
    assert json.loads((site.folder / "final" / "protocol.json").read_text())["name"] == NAME
    assert "<script" not in (site.folder / "final" / "report.html").read_text(encoding="utf-8")


def test_report_at_the_planned_size_makes_the_last_look(site: Site) -> None:
    fill(site, 0, 61, effect=0.9)
    assert site.rlvo("trial", "stop", NAME, "--reason", "planned size reached").exit_code == 0
    for _ in range(2):  # the second report makes no further look
        final = site.rlvo("trial", "report", NAME, *site.keys, "--out", "final", "--rounds", "100")
        assert final.exit_code == 0, (final.output, final.exception)
    with site.database.reading() as session:
        (look,) = trials.looks(session, NAME)
        assert (look.number, look.patients) == (3, 61)
        assert trials.find(session, NAME).unsealed is not None
    counted = [action for action, _ in actions(site)]
    assert counted == ["trial.create", "trial.stop", "trial.look", "trial.unseal", "trial.unseal"]


def test_outcomes_after_the_unsealing_are_deviations(site: Site) -> None:
    fill(site, 0, 24)
    late = site.patient(25, 0.5, None)
    site.rlvo("trial", "stop", NAME, "--reason", "funding")
    assert site.rlvo("trial", "report", NAME, *site.keys, "--rounds", "100").exit_code == 0
    site.outcome(late, True)
    site.outcome(late, False, correction=True)
    shown = site.rlvo("trial", "status", NAME).output
    rows = {
        line.rsplit(maxsplit=1)[0].strip(): line.rsplit(maxsplit=1)[-1] for line in shown.splitlines() if line.strip()
    }
    assert rows["outcomes entered or changed after the unsealing"] == "1"
    assert rows["corrected outcomes"] == "1"
    assert rows["patients fewer than planned"] == "35"


def test_patient_counts_once_and_flow_adds_up(site: Site) -> None:
    site.patient(1, 0.2, None)
    site.patient(1, 0.7, True)  # a second study of the subject: its outcome is the patient's, the first answer counts
    site.patient(2, 0.3, False)
    with site.database.session() as session:
        failed = new_prediction("stroke-a", subject="S-failed", model=site.model)
        predictions.add(session, failed)
        study = job_state.start(session, failed.id)
        assert study
        job_state.fail(session, study, job_state.Failure(code="nifti-invalid", title="t", detail="d"))
        erased = new_prediction("stroke-a", subject="S-erased", model=site.model)
        predictions.add(session, erased)
        predictions.erase(session, erased.id, None)
        waiting = new_prediction("stroke-a", subject="S-waiting", model=site.model)
        predictions.add(session, waiting)
    from app.cli.trial import _state

    with site.database.reading() as session:
        state = _state(session, NAME)
    unnamed = "patients without a pseudonym: several studies of one would count as several patients"
    assert dict(state.deviations())[unnamed] == 0
    with site.database.session() as session:
        predictions.add(session, new_prediction("stroke-a", subject=None, model=site.model))
    with site.database.reading() as session:
        with_unnamed = _state(session, NAME)
    assert dict(with_unnamed.deviations())[unnamed] == 1
    assert dict(with_unnamed.flow)["patients"] == 5
    flow = dict(state.flow)
    assert flow["predictions entered"] == 6
    assert flow["predictions erased"] == 1
    assert flow["patients"] == 4
    assert flow["patients without an answer: failed or cancelled"] == 1
    assert flow["patients whose answer is being computed"] == 1
    assert flow["patients with answer and outcome"] == 2
    first = next(one for one in state.known if one.predictions == 2)
    assert first.refractory is True
    assert first.entry.created == min(one.created for one in state.entries)


def test_order_of_the_looks_is_that_of_the_outcomes(site: Site) -> None:
    ids = [site.patient(number, 0.3, None) for number in range(4)]
    for place in (2, 0, 3, 1):
        site.outcome(ids[place], place == 0)
    from app.cli.trial import _state

    with site.database.reading() as session:
        known = [one.entry.prediction_id for one in _state(session, NAME).known]
    assert known == [ids[place] for place in (2, 0, 3, 1)]
    with site.database.session() as session:  # a late correction does not move a patient
        trials.note_outcome(session, ids[2], correction=True)
    with site.database.reading() as session:
        assert [one.entry.prediction_id for one in _state(session, NAME).known] == known


def test_only_the_sites_and_the_version_of_the_trial_are_sealed(site: Site) -> None:
    with site.database.session() as session:
        for tenant, model, expected in (("stroke-a", site.model, NAME), ("elsewhere", site.model, None)):
            new = new_prediction(tenant, model=model, return_address=b"sealed address")
            predictions.add(session, new)
            prediction = predictions.find(session, new.id, None)
            row = session.get_one(PredictionRow, new.id)
            assert (prediction.sealed, row.explain) == (expected, expected is None)
            assert (session.get(predictions.ReturnAddressRow, new.id) is None) == (expected is not None)
        with pytest.raises(Sealed, match="only tiny@"):
            predictions.add(
                session, new_prediction("stroke-a", model=site.model.model_copy(update={"version": "2.0.0"}))
            )
        with pytest.raises(Sealed, match="only tiny@"):  # as a recalibrated version, which has an own name
            predictions.add(session, new_prediction("stroke-a", model=site.model.model_copy(update={"name": "mine"})))
        running = trials.running_at(session, "stroke-a")
        for reference, version in ((None, "tiny@1.0.0"), ("tiny", "tiny@1.0.0"), ("tiny@champion", "tiny@1.0.0")):
            assert trials.pinned(running, reference) == version
        for reference in ("tiny@2.0.0", "tiny@1.0.0", "mine", "mine@champion"):
            assert trials.pinned(running, reference) is None
        assert trials.pinned(trials.running_at(session, "elsewhere"), None) is None
        other = site.model.model_copy(update={"digest": "sha256:" + "0" * 64})
        with pytest.raises(ModelNotReady, match="protocol"):
            predictions.add(session, new_prediction("stroke-a", model=other))


def test_second_trial_at_a_site_and_a_second_stop_are_refused(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    again = site.rlvo("trial", "create", "protocol.toml")
    assert "There is a trial silent-2027 already" in str(again.exception)
    text = (site.folder / "protocol.toml").read_text(encoding="utf-8")
    (site.folder / "second.toml").write_text(text.replace(NAME, "second"), encoding="utf-8")
    assert "runs at one of these sites" in str(site.rlvo("trial", "create", "second.toml").exception)
    assert site.rlvo("trial", "stop", NAME, "--reason", "x").exit_code == 0
    assert "stopped already" in str(site.rlvo("trial", "stop", NAME, "--reason", "x").exception)
    monkeypatch.setenv("RLVO_RETENTION_DAYS", "30")
    started = site.rlvo("trial", "create", "second.toml")
    assert started.exit_code == 0
    assert "erases predictions after 30 days" in started.output


def test_open_versions_beside_the_trial(site: Site) -> None:
    """With ``other_versions = "open"`` other versions answer; a shadow of the trial's version does not score them."""
    site.rlvo("trial", "stop", NAME, "--reason", "x")
    text = (site.folder / "protocol.toml").read_text(encoding="utf-8")
    text = text.replace(NAME, "beside").replace('other_versions = "refuse"', 'other_versions = "open"')
    (site.folder / "beside.toml").write_text(text, encoding="utf-8")
    assert site.rlvo("trial", "create", "beside.toml").exit_code == 0
    other = site.model.model_copy(update={"version": "0.9.0"})
    with site.database.session() as session:
        opened, sealed = new_prediction("stroke-a", model=other), new_prediction("stroke-a", model=site.model)
        elsewhere = new_prediction("elsewhere", model=other)
        for new in (opened, sealed, elsewhere):
            predictions.add(session, new)
        assert predictions.find(session, opened.id, None).sealed is None
        assert predictions.find(session, sealed.id, None).sealed == "beside"
        assert trials.covers_shadow(session, opened.id, "tiny", "1.0.0")
        assert trials.covers_shadow(session, sealed.id, "tiny", "0.9.0")
        assert not trials.covers_shadow(session, opened.id, "tiny", "0.8.0")
        assert not trials.covers_shadow(session, elsewhere.id, "tiny", "1.0.0")
        trials.refuse(session, "stroke-a", "tiny", "0.9.0")
        with pytest.raises(Sealed):
            trials.refuse(session, "stroke-a", "tiny", "1.0.0")
        assert trials.pinned(trials.running_at(session, "stroke-a"), "tiny") is None
        trials.refuse(session, "stroke-a", "mine", "1.0.0")
        added = new_prediction("stroke-a", model=site.model.model_copy(update={"name": "mine"}))
        predictions.add(session, added)
        assert predictions.find(session, added.id, None).sealed is None


def test_wrong_keys_open_nothing_and_are_noted(site: Site) -> None:
    fill(site, 0, 20)
    two_key_sealing.generate(site.folder / "stranger")
    for wrong in (["investigator"], ["investigator", "investigator"], ["investigator", "stranger"]):
        words = [word for name in wrong for word in ("--key", str(site.folder / name))]
        refused = site.rlvo("trial", "report", NAME, *words)
        assert "two different holders" in str(refused.exception)
    assert [action for action, _ in actions(site)].count("trial.keys-refused") == 3
    with site.database.reading() as session:
        assert trials.looks(session, NAME) == []


def test_decide_ai_has_all_items() -> None:
    numbers = [number for number, _ in decide_ai.ASKED]
    assert len(numbers) == len(set(numbers)) == 38
    assert sum(number[0].isdigit() for number in numbers) == 28
    assert {one.number for one in decide_ai.items({"1": "x"}) if one.text} >= {"1", "3b", "12"}
