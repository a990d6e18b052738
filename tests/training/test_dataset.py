from __future__ import annotations

import numpy as np

from app.phantoms import biology
from app.sdk.clinical import ClinicalRecord
from app.sdk.types import PerfusionSummary
from app.training.dataset import LATENTS, known_latents, standard_latents


def test_latents_of_a_real_patient_are_scaled_like_those_of_a_phantom() -> None:
    person = biology.draw(1, 5)[0]
    signs = {
        "truncal_type": person.truncal,
        "clot_length_mm": person.clot_length_mm,
        "clot_hu": person.clot_hu,
        "calcified_artery": person.calcified,
    }
    record = ClinicalRecord.model_validate({"imaging_signs": signs, "perfusion": {"core_ml": person.core_ml}})
    computed = PerfusionSummary(
        core_ml=999.0, tmax6_ml=person.tmax6_ml, hypoperfusion_intensity_ratio=person.intensity
    )  # the core of the site takes precedence over the computed core
    assert np.allclose(known_latents(record, computed), standard_latents(person))


def test_unknown_latents_are_nan() -> None:
    latents = known_latents(ClinicalRecord(age=70), PerfusionSummary(tmax6_ml=100.0))
    assert [name for name, value in zip(LATENTS, latents, strict=True) if np.isfinite(value)] == ["tmax6_ml"]
