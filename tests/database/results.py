"""A result in which each part is set, for tests that store one."""

from __future__ import annotations

from collections.abc import Iterable

from app.database.job_state import PredictionResult
from app.database.predictions import Artifact
from app.sdk.types import (
    Attribution,
    Channel,
    ClinicalContribution,
    Decision,
    Flag,
    FoldSpread,
    ModalityContribution,
    PerfusionSummary,
    RegionContribution,
)


def result(artifacts: Iterable[Artifact] = ()) -> PredictionResult:
    return PredictionResult(
        probability=0.1 + 0.2,
        interval=FoldSpread(low=0.31, high=0.35),
        folds=[0.31, 0.35, 1 / 3],
        decision=Decision(refractory=True, threshold=0.22, rule="max F1", conformal=["refractory"]),
        flags=[Flag(code="imputed", detail="age: not given, imputed")],
        perfusion=PerfusionSummary(core_ml=21.0),
        attribution=Attribution(
            base=-1.63,
            total=-0.53,
            clinical=[
                ClinicalContribution(variable="atrial_fibrillation", value=True, contribution=-0.41),
                ClinicalContribution(variable="age", value=None, contribution=0.2, imputed=True),
            ],
            imaging=[ModalityContribution(modality=Channel.CTA, contribution=0.62)],
            regions=[RegionContribution(region="left MCA M1", modality=Channel.CTA, contribution=0.34)],
            maps=["attribution-cta"],
        ),
        timings={"prepare": 1.1, "predict": 0.2, "explain": 0.4},
        artifacts=artifacts,
    )
