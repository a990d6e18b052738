"""An attribution for the tests of figures and of the report."""

from __future__ import annotations

import pytest

from app.sdk.types import Attribution, Channel, ClinicalContribution, ModalityContribution


@pytest.fixture
def attribution() -> Attribution:
    return Attribution(
        base=-1.6,
        total=-0.5,
        clinical=[
            ClinicalContribution(variable="age", value=61.0, contribution=0.9),
            ClinicalContribution(variable="atrial_fibrillation", value=True, contribution=-0.4),
            ClinicalContribution(variable="perfusion.core_ml", value=None, contribution=0.0, imputed=True),
        ],
        imaging=[ModalityContribution(modality=Channel.CTA, contribution=0.6)],
        maps=["attribution-cta"],
    )
