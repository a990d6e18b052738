"""`rlvo pool` and `rlvo federate`: bundles that are signed and pooled, rounds by processes, and versions of results."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from scipy.special import expit, logit
from typer.testing import CliRunner, Result

from app.cli.__main__ import app
from app.evaluation import logistic, rounds
from app.evaluation.rounds import FitResult, Kind, Plan
from app.inference import explain
from app.inference.model_version import ModelVersion
from app.operations import federation
from app.registry import signatures, signed_json
from app.registry.model_store import ModelStore
from app.training import cohort as cohorts
from app.training import federated_version, head_features
from app.training.dataset import Vectors, to_model_input
from app.training.preprocess import preprocess
from app.training.progress import ProgressReporter
from app.training.site_data import SiteData
from tests.cli.training_runs import rlvo as training

ROOT = Path(__file__).resolve().parents[2]
STORE = ROOT / "model_store"
NAMES = ("north", "south", "west", "east", "coast")


def rlvo(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def patients(seed: int, count: int = 150) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    odds = rng.normal(-1.0, 1.2, count)
    return (rng.random(count) < expit(0.7 * odds + 0.5)).astype(np.int64), odds


def write_table(path: Path, seed: int) -> Path:
    labels, odds = patients(seed)
    rows = [f"{expit(x):.6f},{y},{'f' if n % 2 else 'm'}" for n, (x, y) in enumerate(zip(odds, labels, strict=True))]
    path.write_text("\n".join(["probability,outcome,sex", *rows]) + "\n")
    return path


@pytest.fixture
def site_files(tmp_path: Path) -> dict[str, Path]:
    """Data of five sites, as `rlvo validate --site-file` writes them for a table."""
    files = {}
    for seed, name in enumerate(NAMES):
        files[name] = tmp_path / f"{name}.npz"
        SiteData("published", "", *patients(seed)).save(files[name])
    return files


def validate(tmp_path: Path, name: str, *more: object) -> Result:
    table = write_table(tmp_path / f"{name}.csv", NAMES.index(name))
    options = ("--subgroup", "sex", "--rounds", 100, "--out", tmp_path / f"report-{name}", "--predictor", "published")
    return training("validate", table, *options, *more)


def test_bundles_of_three_sites_are_signed_previewed_and_pooled(tmp_path: Path) -> None:
    public = signatures.generate(tmp_path / "key")
    for name in NAMES[:3]:
        bundle = tmp_path / f"{name}.json"
        options = ("--as-site", name, "--key", tmp_path / "key", "--export-aggregate", bundle)
        preview = validate(tmp_path, name, *options, "--preview")
        assert preview.exit_code == 0, preview.output
        assert not bundle.exists()
        written = validate(tmp_path, name, *options, "--site-file", tmp_path / f"{name}.npz")
        assert written.exit_code == 0, written.output
        assert public in written.output
        document = json.loads(bundle.read_text())["document"]
        assert f"{document['auc']['value']:.6g}" in preview.output
        stored = SiteData.load(tmp_path / f"{name}.npz")
        assert expit(stored.log_odds) == pytest.approx(expit(patients(NAMES.index(name))[1]), abs=1e-6)
        assert (tmp_path / f"{name}.npz").stat().st_mode & 0o777 == 0o600
    bundles = [tmp_path / f"{name}.json" for name in NAMES[:3]]
    pooled = rlvo("pool", *bundles, "--trust", public, "--out", tmp_path / "pooled")
    assert pooled.exit_code == 0, pooled.output
    assert "450 patients" in pooled.output
    assert {path.name for path in (tmp_path / "pooled").iterdir()} == {
        "pooled.csv",
        "sites.csv",
        "left-out.csv",
        "pooled.json",
    }
    refused = rlvo("pool", *bundles, "--trust", signatures.generate(tmp_path / "other"))
    assert refused.exit_code == 2
    assert "trusted key" in refused.output
    shown = rlvo("pool", bundles[0], "--show")
    assert "mean_predicted" in shown.output
    content = json.loads(bundles[1].read_text())
    content["document"]["auc"]["value"] += 0.01
    bundles[1].write_text(json.dumps(content))
    changed = rlvo("pool", *bundles)
    assert changed.exit_code == 2
    assert "does not fit its content" in changed.output


def test_two_bundles_are_listed_and_exit_with_status_1(tmp_path: Path) -> None:
    for name in NAMES[:2]:
        validate(tmp_path, name, "--as-site", name, "--export-aggregate", tmp_path / f"{name}.json")
    result = rlvo("pool", tmp_path / "north.json", tmp_path / "south.json")
    assert result.exit_code == 1
    assert "fewer than three" in result.output


def test_small_site_gets_a_report_and_no_bundle(tmp_path: Path) -> None:
    labels, odds = patients(0, 40)
    rows = [f"{expit(x):.6f},{y}" for x, y in zip(odds, labels, strict=True)]
    (tmp_path / "small.csv").write_text("\n".join(["probability,outcome", *rows]) + "\n")
    bundle = ("--export-aggregate", tmp_path / "b.json", "--as-site", "small", "--predictor", "p")
    result = training("validate", tmp_path / "small.csv", "--rounds", 100, "--out", tmp_path / "report", *bundle)
    assert result.exit_code == 2
    assert "needed are 50" in result.output
    assert not (tmp_path / "b.json").exists()
    assert (tmp_path / "report" / "report.md").exists()


def begin(folder: Path, *more: object) -> None:
    sites = [word for name in NAMES for word in ("--site", name)]
    result = rlvo("federate", "start", folder, "--predictor", "published", *sites, *more)
    assert result.exit_code == 0, result.output


class Sites:
    """Processes that answer the rounds of a folder, one for each site."""

    def __init__(self, folder: Path, files: dict[str, Path]) -> None:
        self.folder, self.files, self.running = (
            folder,
            files,
            {name: self._start(folder, files, name) for name in files},
        )

    @staticmethod
    def _start(folder: Path, files: dict[str, Path], name: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "app.cli", "federate", "answer", str(folder), str(files[name])]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        return subprocess.Popen(
            [*command, "--site", name, "--follow", "120"], env=environment, stdout=subprocess.DEVNULL
        )

    def restart(self, name: str) -> None:
        self.running[name] = self._start(self.folder, self.files, name)

    def wait_for(self, number: int, name: str) -> None:
        deadline = time.monotonic() + 120
        while not (self.folder / f"answer-{number:02d}-{name}.json").exists():
            assert time.monotonic() < deadline, (number, name)
            time.sleep(0.05)


@pytest.fixture
def sites(tmp_path: Path, site_files: dict[str, Path]) -> Iterator[Sites]:
    begin(tmp_path / "rounds", "--quorum", 4)
    started = Sites(tmp_path / "rounds", site_files)
    yield started
    for process in started.running.values():
        process.kill()
        process.wait()


def centralised(names: list[str]) -> np.ndarray:
    parts = [patients(NAMES.index(name)) for name in names]
    labels, odds = np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts])
    return logistic.fit(np.column_stack([np.ones_like(odds), odds]), labels).coefficients


@pytest.mark.parametrize("returns", [True, False])
def test_five_processes_finish_although_one_is_killed(sites: Sites, returns: bool) -> None:
    for name in NAMES:
        sites.wait_for(1, name)
    sites.running["east"].kill()
    sites.running["east"].wait()
    assert rlvo("federate", "combine", sites.folder).exit_code == 0
    for name in set(NAMES) - {"east"}:
        sites.wait_for(2, name)
    missing = rlvo("federate", "combine", sites.folder)
    assert missing.exit_code == 1
    assert "no answer yet from east" in missing.output
    if returns:
        sites.restart("east")
        finished = rlvo("federate", "combine", sites.folder, "--wait", 100, "--until-result")
    else:
        # All others have answered this round, so only the killed site is left out, however slow the machine is.
        assert rlvo("federate", "combine", sites.folder, "--wait", 1, "--leave-out").exit_code == 0
        finished = rlvo("federate", "combine", sites.folder, "--wait", 100, "--until-result")
    assert finished.exit_code == 0, finished.output
    assert ("Left out, because they did not answer: east" in finished.output) is not returns
    result, _ = federation.read(sites.folder / "result.json", rounds.Result)
    left = [name for name in NAMES if returns or name != "east"]
    assert result.sites == tuple(left)
    assert np.abs(np.subtract(result.fits[1].parameters, centralised(left))).max() < 1e-8
    for name in left:
        assert sites.running[name].wait(30) == 0


def test_coordinator_below_the_quorum_waits(tmp_path: Path, site_files: dict[str, Path]) -> None:
    begin(tmp_path / "rounds", "--quorum", 4)
    for name in NAMES[:3]:
        assert rlvo("federate", "answer", tmp_path / "rounds", site_files[name], "--site", name).exit_code == 0
    result = rlvo("federate", "combine", tmp_path / "rounds", "--leave-out")
    assert result.exit_code == 1
    assert "east, coast" in result.output


def test_same_round_gives_the_same_answer_and_counts_once(tmp_path: Path, site_files: dict[str, Path]) -> None:
    begin(tmp_path / "rounds")
    answer = ("federate", "answer", tmp_path / "rounds", site_files["north"], "--site", "north")
    preview = rlvo(*answer, "--preview")
    assert "log_likelihood" in preview.output
    assert not list((tmp_path / "rounds").glob("answer-*"))
    assert rlvo(*answer).exit_code == 0
    first = (tmp_path / "rounds" / "answer-01-north.json").read_text()
    assert rlvo(*answer).exit_code == 0
    assert (tmp_path / "rounds" / "answer-01-north.json").read_text() == first
    released = json.loads((tmp_path / "north.npz.released.json").read_text())
    assert [one["numbers"] for one in released.values()] == [9]


def test_site_gives_no_more_numbers_than_its_patients_have_values(tmp_path: Path) -> None:
    """Fifty patients have a hundred unknown values: twelve plans of nine numbers are one too many."""
    data = tmp_path / "site.npz"
    labels, odds = patients(0, 50)
    SiteData("published", "", labels, odds).save(data)
    for number in range(12):
        begin(tmp_path / str(number))
        result = rlvo("federate", "answer", tmp_path / str(number), data, "--site", "north")
        assert (result.exit_code == 0) is (number < 11), result.output
    assert "exceed the 100 unknown values" in result.output


def test_wrong_data_wrong_site_and_wrong_signature_are_refused(tmp_path: Path, site_files: dict[str, Path]) -> None:
    begin(tmp_path / "rounds")
    SiteData("another", "", *patients(0)).save(tmp_path / "another.npz")
    folder = tmp_path / "rounds"
    public = signatures.generate(tmp_path / "key")
    for words, said in (
        ((tmp_path / "another.npz", "--site", "north"), "the plan is for published"),
        ((site_files["north"], "--site", "island"), "does not take part"),
        ((site_files["north"], "--site", "north", "--trust", public), "not signed with a trusted key"),
        ((folder / "round-01.json", "--site", "north"), "no file of"),
    ):
        result = rlvo("federate", "answer", folder, *words)
        assert result.exit_code == 2, result.output
        assert said in result.output
    assert rlvo("federate", "answer", folder, site_files["north"], "--site", "north").exit_code == 0
    for name in NAMES[1:]:
        copied = json.loads((folder / "answer-01-north.json").read_text())
        (folder / f"answer-01-{name}.json").write_text(json.dumps(copied))
    result = rlvo("federate", "combine", folder)
    assert result.exit_code == 2
    assert "no answer of south" in result.output


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModelStore:
    monkeypatch.setenv("RLVO_MODEL_STORE", str(tmp_path / "store"))
    store = ModelStore(tmp_path / "store")
    store.folder.mkdir()
    return store


def result_of(store: ModelStore, parent: str, kind: Kind, fits: list[list[float]]) -> rounds.Result:
    """A result as two sites would give it; the information is that of 400 patients."""
    entry = store.resolve(parent)
    plan = Plan(
        kind=kind,
        predictor=f"{entry.name}@{entry.version}",
        predictor_digest=entry.digest,
        sites=("a", "b"),
        quorum=2,
        columns=tuple(len(fit) for fit in fits),
        nonce="x",
    )
    found = [
        FitResult(
            parameters=tuple(fit),
            covariance=tuple((np.eye(len(fit)) * 0.01)[np.triu_indices(len(fit))].tolist()),
            log_likelihood=-180.0 + place,
        )
        for place, fit in enumerate(fits)
    ]
    members = {"plan": plan, "rounds": 5, "sites": ("a", "b"), "left_out": (), "patients": 400, "events": 120}
    return rounds.Result.model_validate({**members, "as_predicted": -200.0, "fits": tuple(found)})


def test_federated_recalibration_becomes_a_signed_version(store: ModelStore, tmp_path: Path) -> None:
    store.add(STORE / "rlvo-synthetic-lr" / "1.0.0")
    found = result_of(store, "rlvo-synthetic-lr@1.0.0", Kind.RECALIBRATION, [[0.5], [0.45, 0.95]])
    signed_json.write(tmp_path / "result.json", found.model_dump(mode="json"))
    public = signatures.generate(tmp_path / "key")
    words = ("--name", "rlvo-synthetic-lr", "--version", "1.0.9", "--key", tmp_path / "key")
    result = rlvo("federate", "apply", tmp_path / "result.json", "rlvo-synthetic-lr@1.0.0", *words)
    assert result.exit_code == 0, result.output
    assert public in result.output
    parent, entry = store.resolve("rlvo-synthetic-lr@1.0.0"), store.resolve("rlvo-synthetic-lr@1.0.9")
    ModelStore(store.folder, [public]).verify(entry)
    lineage = entry.manifest.extra["federated"]
    assert lineage["parent_digest"] == parent.digest
    assert lineage["sites"] == ["a", "b"]
    chosen = rounds.recalibration_of(found)
    assert entry.manifest.calibration.slope == pytest.approx(chosen.slope * parent.manifest.calibration.slope)
    ModelVersion.load(entry.folder, entry.manifest, "cpu").verify_golden_cases(entry.folder)
    again = rlvo("federate", "apply", tmp_path / "result.json", "rlvo-synthetic-lr@1.0.9", *words[:3], "1.1.0")
    assert again.exit_code == 2
    assert "result is of" in again.output


@pytest.mark.parametrize("name", ["rlvo-synthetic-lr", "rlvo-synthetic"])
def test_new_heads_change_the_log_odds_as_the_fit_says(store: ModelStore, cohort: Path, name: str) -> None:
    """Parent's log-odds of each fold plus its change times the features, for every patient of a cohort."""
    store.add(STORE / name / "1.0.0")
    entry = store.resolve(f"{name}@1.0.0")
    data = preprocess(cohorts.read(cohort), ProgressReporter(), jobs=1).first(12)
    plain = SiteData(name, entry.digest, data.labels, np.zeros(12))
    site = head_features.add(plain, entry.folder, entry.manifest, data)
    assert site.features is not None
    assert site.fold_log_odds is not None
    folds, _, size = site.features.shape
    assert size == head_features.head_size(entry.manifest)
    rng = np.random.default_rng(5)
    changes = rng.normal(0, 0.05, (folds, size + 1))
    found = result_of(store, f"{name}@1.0.0", Kind.HEADS, changes.tolist())
    manifest, _ = federated_version.write(found, entry, store.folder / name / "1.2.0")
    assert manifest is not None
    new = store.resolve(f"{name}@1.2.0")
    store.verify(new)
    version = ModelVersion.load(new.folder, new.manifest, "cpu")
    version.verify_golden_cases(new.folder)
    vectors = Vectors.of(data, new.manifest.clinical)
    for row in range(12):
        case = to_model_input(data, vectors, new.manifest.clinical, row)
        shift = changes[:, 0] + (changes[:, 1:] * site.features[:, row]).sum(axis=1)
        expected = site.fold_log_odds[:, row] + shift
        image = explain.network_image(case, version.reference)
        logits = version.predictor.logits(image, case.clinical)
        assert explain.log_odds(logits, new.manifest.calibration) == pytest.approx(expected, abs=2e-3)
        assert logit(version.predict(case).probability) == pytest.approx(expected.mean(), abs=2e-3)


def test_version_and_cohort_give_a_site_file_with_features(store: ModelStore, cohort: Path, tmp_path: Path) -> None:
    store.add(STORE / "rlvo-synthetic-lr" / "1.0.0")
    words = ("--site-file", tmp_path / "site.npz", "--out", tmp_path / "report", "--rounds", 100, "--i-know")
    bundle = ("--export-aggregate", tmp_path / "bundle.json", "--as-site", "here")
    result = training("validate", "rlvo-synthetic-lr@1.0.0", cohort, *words, *bundle)
    assert result.exit_code == 0, result.output
    entry = store.resolve("rlvo-synthetic-lr@1.0.0")
    site = SiteData.load(tmp_path / "site.npz")
    assert site.digest == entry.digest
    assert site.fold_log_odds is not None
    assert site.fold_log_odds.mean(axis=0) == pytest.approx(site.log_odds, abs=1e-6)
    document = signed_json.read(tmp_path / "bundle.json").content
    assert document["predictor_digest"] == entry.digest
    begin_heads = ("federate", "start", tmp_path / "rounds", "--version", "rlvo-synthetic-lr@1.0.0", "--kind", "heads")
    planned = rlvo(*begin_heads, "--site", "here", "--site", "there")
    assert planned.exit_code == 0, planned.output
    refused = rlvo("federate", "answer", tmp_path / "rounds", tmp_path / "site.npz", "--site", "here")
    assert refused.exit_code == 2
    needed = planned.output.split("Each site needs ")[1].split(" ")[0]
    assert f"needed are {needed}" in refused.output
