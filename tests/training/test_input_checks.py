"""Flags of the preparation, and repeated images, stop a run with their rows; similar valid cohorts pass."""

from __future__ import annotations

import gzip
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from app.inference import preprocess_cache
from app.phantoms import cohort as phantoms
from app.sdk.clinical import ClinicalRecord
from app.sdk.types import Flag, Input
from app.training import cohort as cohorts
from app.training import input_checks
from app.training.cohort import Cohort, CohortRow
from app.training.dataset import Dataset
from app.training.errors import CohortFault
from app.training.preprocess import preprocess
from app.training.progress import ProgressReporter
from tests.training.tiny import tiny_dataset

COARSE = {"ncct": (4.0, 4.0, 4.0), "cta": (4.0, 4.0, 4.0), "perfusion": (5.0, 5.0, 6.0)}
FLAG = Flag(code="contrast-doubtful", detail="cta: the arteries of the brain are hardly brighter than brain tissue")


def small(*digests: dict[str, str], flags: tuple[tuple[Flag, ...] | None, ...] = ()) -> tuple[Cohort, Dataset]:
    """One patient for each entry, in the rows 2, 3 ..."""
    count = len(digests)
    rows = tuple(
        CohortRow(number + 2, f"p{number}", "one", "", "", {}, None, ClinicalRecord(), number % 2)
        for number in range(count)
    )
    data = tiny_dataset(np.zeros(count), np.zeros(count), np.arange(count) % 2)
    return Cohort(Path(), rows), replace(data, digests=digests, flags=flags or ((),) * count)


def faults(cohort: Cohort, data: Dataset) -> tuple[str, ...]:
    with pytest.raises(CohortFault) as caught:
        input_checks.check(cohort, data, accept=False)
    assert "--accept-flags" in caught.value.faults[-1]
    return caught.value.faults[:-1]


@pytest.mark.parametrize("code", input_checks.DOUBTFUL)
def test_doubtful_flag_stops_the_run_with_its_rows(code: str) -> None:
    flag = FLAG.model_copy(update={"code": code})
    cohort, data = small({}, {}, {}, {}, flags=((flag,), (flag,), (), (flag,)))
    assert faults(cohort, data) == (f"rows 2-3, 5: {code}: {flag.detail}",)
    section = input_checks.check(cohort, data, accept=True)
    assert f"| {code} | 3 | 2-3, 5 |" in section
    assert "Accepted with `--accept-flags`" in section


@pytest.mark.parametrize("code", ["missing-modality", "vessels-computed", "slice-thickness", "coverage"])
def test_other_flag_is_counted_and_does_not_stop(code: str) -> None:
    cohort, data = small({}, {}, flags=((FLAG.model_copy(update={"code": code}),), None))
    section = input_checks.check(cohort, data, accept=False)
    assert f"| {code} | 1 | 2 |" in section
    assert "1 studies came prepared" in section


@pytest.mark.parametrize(
    ("digests", "message"),
    [
        (({"ncct": "a"}, {"ncct": "b"}, {"ncct": "a"}), "rows 2, 4: the same images under several patients"),
        (({"ncct": "a", "cta": "c"}, {"ncct": "a", "cta": "d"}), "rows 2-3: the same ncct for several patients"),
        (({"ncct file": "a"}, {"cta file": "a", "ncct file": "b"}), "rows 2-3: the same ncct for several patients"),
        (({"ncct file": "a", "cta file": "a"}, {}), "row 2: the columns cta and ncct hold the same image"),
    ],
)
def test_repeated_image_stops_the_run(digests: tuple[dict[str, str], ...], message: str) -> None:
    (fault,) = faults(*small(*digests))
    assert fault.startswith(message)


@pytest.mark.parametrize(
    "digests",
    [
        ({"ncct": "a", "cta": "b"}, {"ncct": "c", "cta": "d"}),
        ({"vessels": "a"}, {"vessels": "a"}),
        ({"tmax": "constant 0.0"}, {"tmax": "constant 0.0"}),
    ],
)
def test_different_or_empty_images_pass(digests: tuple[dict[str, str], ...]) -> None:
    assert "No study has a flag" in input_checks.check(*small(*digests), accept=False)


def test_images_of_several_rows_of_one_patient_pass() -> None:
    cohort, data = small({"ncct": "a"}, {"ncct": "a"})
    same = tuple(replace(study, patient="p") for study in cohort.studies)
    assert "No study has a flag" in input_checks.check(replace(cohort, studies=same), data, accept=False)


def test_compressed_copy_of_a_volume_is_found(tmp_path: Path) -> None:
    """Real preparation: a compressed copy of one patient's NCCT, and flags that the cache keeps."""
    phantoms.write_patient(tmp_path / "p3", 3, spacing_mm=COARSE)
    (tmp_path / "p5").mkdir()
    copy = gzip.compress(gzip.decompress((tmp_path / "p3" / "ncct.nii.gz").read_bytes()), compresslevel=1, mtime=9)
    (tmp_path / "p5" / "ncct.nii.gz").write_bytes(copy)
    table = pd.DataFrame({"patient": ["p3", "p5"], "ncct": ["p3/ncct.nii.gz", "p5/ncct.nii.gz"]})
    table.to_csv(tmp_path / "cohort.csv", index=False)
    rows = tuple(replace(study, outcome=0) for study in cohorts.read_for_prediction(tmp_path))
    cohort = Cohort(tmp_path, rows)
    first = preprocess(cohort, ProgressReporter())
    again = preprocess(cohort, ProgressReporter())
    assert first.flags == again.flags
    assert all(flags and {flag.code for flag in flags} >= {"missing-modality"} for flags in again.flags)
    found = [fault for fault in faults(cohort, again) if "same images" in fault]
    assert found == [
        "rows 2-3: the same images under several patients; give them one patient, or remove the repetition"
    ]


def test_study_of_an_older_cache_is_prepared_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ncct.nii.gz").write_bytes(b"volume")
    volumes = {Input.NCCT: tmp_path / "ncct.nii.gz"}
    now = preprocess_cache.cache_key(volumes)
    monkeypatch.setattr(preprocess_cache, "CACHE_VERSION", preprocess_cache.CACHE_VERSION - 1)
    assert preprocess_cache.cache_key(volumes) != now


def test_every_code_that_stops_a_run_is_documented() -> None:
    docs = Path(__file__).resolve().parents[2] / "docs"
    text = (docs / "training.md").read_text()
    assert "severity `warning` ([flags](flags.md))" in text[text.index("### Checks of the images") :]
    flags = (docs / "flags.md").read_text()
    warnings = flags[flags.index("## Warnings") : flags.index("## Info")]
    documented = [line.split("`")[1] for line in warnings.splitlines() if line.startswith("| `")]
    assert documented == list(input_checks.DOUBTFUL)
