"""Studies that cannot be right, and valid look-alikes, through the running service.

The studies are those of bench/variations, of one patient each: of each kind of fault those that differ most, with every
answer, and in ``make soak`` all. ``python -m bench.input_checks`` measures more patients.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from app.phantoms import biology
from app.phantoms.biology import Preset
from app.sdk import Prediction, RlvoError, Status
from app.sdk.flags import Severity
from bench import input_checks, variations
from bench.input_checks import REFUSED, Study

from .service_process import RunningService

pytestmark = pytest.mark.xdist_group("wrong studies")

MODEL_STORE = Path(__file__).parents[2] / "model_store"
PATIENT = 3
UNLIKE = ("wide_mask", "noisy", "low_dose", "noisy series", "whole hemisphere", "Tmax 0 in normal tissue")
LEARNT = {name: {"out-of-distribution"} for name in UNLIKE}
"""Codes that depend on the training of the version: the shipped one was trained on computed masks, on less noise, on
smaller lesions and on Tmax that is not 0 in normal tissue."""
SIDELESS = {"no lesion"}
"""Studies whose images show no side, so that the record must name it."""
WRONG = [(module, name) for module, (_, wrong) in input_checks.modules().items() for name in wrong]
VALID = [(module, name) for module, (valid, _) in input_checks.modules().items() for name in valid]
QUICK = {
    *("head_turned", "thick_ncct", "arch_to_vertex", "craniectomy", "patient_moved", "maps_slab", "ncct_only"),
    *("padding", "metal", "bright_arteries", "own_mask", "slab of 80 mm", "four maps", "background NaN"),
    *("background 4095 and 60 s", "no lesion", "old infarct", "series", "biphasic series", "right step without a unit"),
}
"""Valid look-alikes of each kind of fault; the others run in ``make soak``, and on many patients in the bench."""
QUICK_WRONG = {
    *("slices_reversed", "axes_exchanged", "slices_lost", "spacing_times_0.7", "slice_distance_wrong", "tilt_ignored"),
    *("one_slice_distance_wrong", "identity_affine", "other_patients_ncct", "maps_displaced_10mm", "maps_mirrored"),
    *(
        "ge_stored_values",
        "intercept_twice_padded",
        "wrong_slope",
        "inverted_sign",
        "brain_window",
        "cta_cut",
        "after_contrast",
        "haemorrhage",
    ),
    *("thick_cta_as_ncct", "ncct_as_cta", "exchanged", "cta_twice_turned", "tmax_twice"),
    *("bone_mask", "displaced_mask", "one_sided_arteries", "core blanked with 0 in both maps", "core blanked in Tmax"),
    *("Tmax in tenths", "MTT as Tmax beside all maps", "TTP as CBF", "Tmax and CBF exchanged", "noise as Tmax"),
    *("classes 1 to 5 as Tmax", "Tmax of the lesion only", "step of 1 by default", "step of 6 s instead of 1 s"),
    *("no step", "reversed frames", "empty frame of -1024", "axes X, Y, T, Z", "repeated frames"),
    *("bolus cut off at its peak", "scan starts at the peak"),
}
"""Wrong studies that the service gets in each run, at least one for each set of accepted answers of each kind."""


@pytest.fixture(scope="module")
def demo_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    """A service with the shipped version, which reads every channel."""
    store = tmp_path_factory.mktemp("store") / "model_store"
    shutil.copytree(MODEL_STORE, store)
    running = RunningService(tmp_path_factory.mktemp("demo"), store, "rlvo-synthetic")
    running.start()
    yield running
    assert running.stop() == 0, running.log()


def send(service: RunningService, study: Study, folder: Path, **record: Any) -> Prediction | str:
    """The answer of the service, or the code of its refusal."""
    volumes: dict[str, Any] = {}
    for field, volume in study.items():
        volumes[str(field)] = folder / f"{field}.nii"
        scaled = (volume.slope, volume.inter) != (1.0, 0.0)
        image = nibabel.Nifti1Image(volume.values() if scaled else volume.data, volume.affine)
        without_unit = {flag.code for flag in volume.flags} & {"time-step-default", "time-unit-assumed"}
        image.header.set_xyzt_units("mm", None if without_unit else "sec")
        if volume.data.ndim == 4:
            image.header["pixdim"][4] = volume.time_step_s or 0.0
        image.to_filename(volumes[str(field)])
    with service.client() as client:
        try:
            return client.predict(**volumes, clinical=record, explain=False)
        except RlvoError as error:
            return error.code


def patient_side() -> str:
    """Side of the occlusion of the patient of the studies."""
    return "left" if biology.draw(PATIENT + 1, input_checks.SEED, Preset.INTERACTION)[PATIENT].left else "right"


def codes(answer: Prediction | str) -> set[str]:
    if isinstance(answer, str) or answer.status is Status.FAILED:
        return {REFUSED}
    assert answer.status is Status.SUCCEEDED
    return {flag.code for flag in answer.flags if flag.severity is Severity.WARNING}


def quick(names: set[str], pairs: list[tuple[str, str]]) -> list[Any]:
    """The parameters of a test; those without a name of ``names`` are for ``make soak``."""
    marks = {True: (), False: pytest.mark.soak}
    return [pytest.param(module, name, marks=marks[name in names], id=f"{module}-{name}") for module, name in pairs]


def test_each_kind_of_fault_and_answer_is_sent_in_each_run() -> None:
    wrong = {
        (module, name): accepted
        for module, (_, bad) in input_checks.modules().items()
        for name, (_, accepted) in bad.items()
    }
    kinds = {pair: (variations.kind(*pair), frozenset(accepted)) for pair, accepted in wrong.items()}
    assert {kinds[pair] for pair in WRONG if pair[1] in QUICK_WRONG} == set(kinds.values())
    assert {name for _, name in WRONG} >= QUICK_WRONG
    assert {name for _, name in VALID} >= QUICK


@pytest.mark.parametrize(("module", "name"), quick(QUICK_WRONG, WRONG))
def test_wrong_study_has_no_decision(demo_service: RunningService, tmp_path: Path, module: str, name: str) -> None:
    vary, accepted = input_checks.modules()[module][1][name]
    study = vary(dict(input_checks.phantom(PATIENT)), np.random.default_rng(5))
    answer = send(demo_service, study, tmp_path)
    assert codes(answer) & accepted, codes(answer)
    if isinstance(answer, Prediction) and answer.status is Status.SUCCEEDED:
        assert answer.decision is None
        assert accepted & set(answer.withheld)


@pytest.mark.parametrize(("module", "name"), quick(QUICK, VALID))
def test_unusual_valid_study_has_a_decision(
    demo_service: RunningService, tmp_path: Path, module: str, name: str
) -> None:
    study = input_checks.modules()[module][0][name](dict(input_checks.phantom(PATIENT)), np.random.default_rng(5))
    answer = send(demo_service, study, tmp_path, **({"occlusion_side": patient_side()} if name in SIDELESS else {}))
    assert isinstance(answer, Prediction), answer
    assert codes(answer) - LEARNT.get(name, set()) == set()
    assert (answer.decision is None) == bool(answer.withheld)


def test_side_that_neither_record_nor_images_show_withholds_the_decision(
    demo_service: RunningService, tmp_path: Path
) -> None:
    (module,) = (module for module, name in VALID if name == "no lesion")
    study = input_checks.modules()[module][0]["no lesion"](
        dict(input_checks.phantom(PATIENT)), np.random.default_rng(5)
    )
    answer = send(demo_service, study, tmp_path)
    assert codes(answer) == {"side-unknown"}
    assert isinstance(answer, Prediction)
    assert answer.decision is None


def test_record_and_maps_on_different_sides_withhold_the_decision(demo_service: RunningService, tmp_path: Path) -> None:
    side = patient_side()
    other = "right" if side == "left" else "left"
    study = input_checks.phantom(PATIENT)
    answer = send(demo_service, study, tmp_path, occlusion_side=other, occlusion_site="ica-cervical")
    assert isinstance(answer, Prediction)
    assert "side-contradiction" in answer.withheld
    right = send(demo_service, study, tmp_path, occlusion_side=side)
    assert codes(right) == set()


def test_record_that_contradicts_itself_is_refused_by_field(demo_service: RunningService, tmp_path: Path) -> None:
    study = input_checks.phantom(PATIENT)
    wrong: dict[str, Any] = {"systolic_bp": 80, "diastolic_bp": 140}
    assert send(demo_service, study, tmp_path, **wrong) == "clinical-invalid"
    unusual = send(demo_service, study, tmp_path, platelets=25, nihss=json.loads("15.0"))
    assert isinstance(unusual, Prediction)
    assert "record-unusual" in {flag.code for flag in unusual.flags}
    assert unusual.decision is not None
