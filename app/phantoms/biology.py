"""Simulate synthetic patients: clinical facts, imaging latents, and a known probability of rLVO.

Design notes:
- ``draw_random`` draws all random numbers; ``simulate`` is a pure function of them.
- Random numbers are drawn row by row, so patient i of a seed does not depend on the size of the cohort.
- A latent trait makes an occlusion atherosclerotic or cardioembolic (docs/decisions/0052).
- Scores are standardised with constants of the process, so a patient does not depend on the rest of the sample.
- No parameter is fitted to patients. docs/training.md compares the odds ratios of the phantoms with the literature.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

NORMALS = 16
UNIFORMS = 24


class Preset(StrEnum):
    """Named set of weights of the clinical score, the imaging score and their product."""

    PAPER = "paper"
    INTERACTION = "interaction"
    NULL = "null"
    XOR = "xor"


@dataclass(frozen=True)
class Weights:
    """Weights of logit p = base + clinical * S + imaging * U + product * S * U (S clinical, U imaging score)."""

    base: float
    clinical: float
    imaging: float
    product: float


WEIGHTS = {
    Preset.PAPER: Weights(-2.08, 0.75, 0.60, 1.3),
    Preset.INTERACTION: Weights(-2.28, 0.60, 0.45, 1.9),
    Preset.NULL: Weights(-1.67, 0.0, 0.0, 0.0),
    Preset.XOR: Weights(0.0, 0.0, 0.0, 40.0),
}

# Mean and standard deviation over two million draws of the process; tests/phantoms/test_biology.py checks them.
STANDARD = {
    "clinical": (1.9878, 1.2514),
    "truncal": (0.3453, 0.4755),
    "intensity": (0.4203, 0.1628),
    "length": (11.046, 4.134),
    "density": (53.007, 6.380),
    "calcified": (0.2588, 0.4380),
    "imaging": (0.0, 2.7366),
}

SITES = ("ica-terminus", "m1", "m2")


@dataclass(frozen=True)
class RandomDraws:
    """All random numbers of n patients: ``normals`` (n, NORMALS) and ``uniforms`` (n, UNIFORMS)."""

    normals: Array
    uniforms: Array


@dataclass(frozen=True)
class Patient:
    """One synthetic patient: clinical facts, imaging latents and ground truth.

    Volumes are millilitres of the patient's brain, lengths millimetres, densities Hounsfield units.
    ``intensity`` is the hypoperfusion intensity ratio (Tmax > 10 s volume over Tmax > 6 s volume).
    """

    index: int
    age: float
    atrial_fibrillation: bool
    hypertension: bool
    diabetes: bool
    dyslipidemia: bool
    smoking: bool
    male: bool
    coronary_disease: bool
    prior_stroke: bool
    nihss: int
    systolic_bp: float
    glucose: float
    onset_to_door: float
    anticoagulant: bool
    ivt: bool
    left: bool
    site: str
    truncal: bool
    intensity: float
    clot_length_mm: float
    clot_hu: float
    calcified: bool
    tmax6_ml: float
    core_ml: float
    clinical_score: float
    imaging_score: float
    probability: float
    refractory: bool


def draw_random(patients: int, seed: int) -> RandomDraws:
    """Draw all random numbers of a cohort; a larger cohort of the same seed starts with the same patients."""
    normals, uniforms = (np.random.default_rng([seed, stream]) for stream in (1, 2))
    return RandomDraws(normals.standard_normal((patients, NORMALS)), uniforms.random((patients, UNIFORMS)))


def _logistic(x: Array) -> Array:
    return 1.0 / (1.0 + np.exp(-x))


def _standard(x: Array, name: str) -> Array:
    mean, deviation = STANDARD[name]
    return (x - mean) / deviation


def process(draws: RandomDraws, preset: Preset) -> dict[str, Array]:
    """Run the process: columns (n,) of facts, latents, both scores, the probability of rLVO and the outcome."""
    e, u = draws.normals.T, draws.uniforms.T
    c: dict[str, Array] = {}
    a, g = e[0], e[1]
    c["age"] = np.clip(74 + 12 * (0.75 * e[2] - 0.3 * a + 0.4 * g), 20, 105)
    older = c["age"] - 74
    c["atrial_fibrillation"] = u[0] < _logistic(-0.75 - 1.6 * a + 0.05 * older)
    c["hypertension"] = u[1] < _logistic(0.65 + 0.25 * a + 0.03 * older)
    c["diabetes"] = u[2] < _logistic(-1.2 + 0.55 * a)
    c["dyslipidemia"] = u[3] < _logistic(-0.1 + 0.4 * a)
    c["smoking"] = u[4] < _logistic(-1.4 + 0.75 * a - 0.04 * older)
    c["male"] = u[5] < _logistic(0.05 + 0.35 * a)
    c["coronary_disease"] = u[6] < _logistic(-1.6 + 0.3 * a + 0.02 * older)
    c["prior_stroke"] = u[7] < _logistic(-1.7 + 0.25 * a)
    c["nihss"] = np.clip(np.rint(15.5 - 1.2 * a + g + 5 * e[3]), 0, 42)
    c["systolic_bp"] = np.clip(148 + 6 * a + 22 * e[4], 70, 270)
    c["glucose"] = np.clip(np.exp(np.log(120) + 0.35 * c["diabetes"] + 0.22 * e[5]), 45, 650)
    c["onset_to_door"] = np.clip(np.exp(np.log(200) + 0.12 * a + 0.8 * e[6]), 5, 2880)
    c["anticoagulant"] = u[8] < np.where(c["atrial_fibrillation"], 0.5, 0.05)
    late = c["onset_to_door"] > 270  # the 4.5 h window of thrombolysis
    c["ivt"] = u[9] < np.where(c["anticoagulant"].astype(bool) | late, 0.05, 0.6)

    hidden = 0.15 * a + np.sqrt(1 - 0.15**2) * e[7]
    c["truncal"] = u[10] < _logistic(-0.9 + 1.5 * hidden)
    c["intensity"] = np.clip(0.42 - 0.13 * hidden + 0.10 * e[8], 0.02, 0.95)
    c["clot_length_mm"] = np.clip(11 - 3 * hidden + 3 * e[9], 3, 30)
    c["clot_hu"] = np.clip(53 - 4 * hidden + 5 * e[10], 36, 80)
    c["calcified"] = u[11] < _logistic(-1.3 + 1.1 * hidden)
    c["site"] = np.digitize(u[12], [0.22, 0.78]).astype(np.float64)
    c["left"] = u[13] < 0.5
    reach = np.choose(c["site"].astype(int), [1.25, 1.0, 0.6])
    c["tmax6_ml"] = np.clip(np.exp(np.log(120) + 0.45 * e[11]) * reach, 10, 330)
    share = np.clip(0.45 * c["intensity"] + 0.08 * e[12], 0.0, None)
    c["core_ml"] = c["tmax6_ml"] * np.minimum(share, 0.95 * c["intensity"])  # the core lies inside Tmax > 10 s

    clinical = (
        1.5 * (1 - c["atrial_fibrillation"])
        + 0.8 * c["diabetes"]
        + 0.8 * c["smoking"]
        + 0.4 * c["hypertension"]
        + 0.5 * c["dyslipidemia"]
        + 0.4 * c["male"]
        - 0.02 * older
        - 0.05 * (c["nihss"] - 15)
    )
    imaging = (
        0.9 * _standard(c["truncal"], "truncal")
        - 1.2 * _standard(c["intensity"], "intensity")
        - 0.7 * _standard(c["clot_length_mm"], "length")
        - 0.3 * _standard(c["clot_hu"], "density")
        + 0.7 * _standard(c["calcified"], "calcified")
    )
    c["clinical_score"] = 1.4 * np.tanh(_standard(clinical, "clinical") / 1.2)
    c["imaging_score"] = 1.35 * np.tanh(_standard(imaging, "imaging") / 1.6)
    weights = WEIGHTS[preset]
    c["probability"] = _logistic(
        weights.base
        + weights.clinical * c["clinical_score"]
        + weights.imaging * c["imaging_score"]
        + weights.product * c["clinical_score"] * c["imaging_score"]
    )
    c["refractory"] = u[14] < c["probability"]
    return c


_FLAGS = [field.name for field in fields(Patient) if field.type == "bool"]


def simulate(draws: RandomDraws, preset: Preset) -> list[Patient]:
    """Make the patients of these draws (a pure function)."""
    columns = process(draws, preset)
    patients = []
    for index in range(len(draws.normals)):
        facts = {name: float(column[index]) for name, column in columns.items()}
        flags = {name: bool(facts.pop(name)) for name in _FLAGS}
        site, nihss = SITES[int(facts.pop("site"))], int(facts.pop("nihss"))
        patients.append(Patient(index=index, site=site, nihss=nihss, **flags, **facts))  # type: ignore[arg-type]
    return patients


def draw(patients: int, seed: int, preset: Preset = Preset.INTERACTION) -> list[Patient]:
    """Draw a cohort of ``patients``, the same for the same seed."""
    return simulate(draw_random(patients, seed), preset)
