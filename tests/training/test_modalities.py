"""Performance by modality: present, absent, and removed from every study."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from app.inference import clinical_encoder, defaults
from app.network.architecture import Fusion
from app.network.daft import Network, build
from app.sdk.clinical import ClinicalRecord
from app.sdk.types import PerfusionSummary
from app.training import modalities, tasks
from app.training.dataset import LATENTS, Dataset, Vectors
from app.training.experiment import CHANNEL_NAMES, DAFT, LOGISTIC, ExperimentResult
from app.training.modalities import ModalityRow
from app.training.results_table import ModelScores
from app.training.splits import Split
from app.training.tasks import TrainingContext

COUNT = 40
DEVELOP = np.arange(30)
FOLDS = np.array_split(DEVELOP, 2)
SPLIT = Split(DEVELOP, np.arange(30, COUNT), tuple((np.setdiff1d(DEVELOP, own), own) for own in FOLDS))
CPU = torch.device("cpu")


def cohort(presence: np.ndarray) -> Dataset:
    """Studies with noise as images; NCCT, CTA and the maps differ in brightness."""
    rng = np.random.default_rng(4)
    images = rng.normal(0, 1, (COUNT, len(CHANNEL_NAMES), *defaults.GRID.shape)).astype(np.float16)
    images += rng.normal(0, 1, (COUNT, len(CHANNEL_NAMES), 1, 1, 1)).astype(np.float16)
    images *= presence[:, :, None, None, None]
    return Dataset(
        images=images,
        presence=presence,
        records=[ClinicalRecord(age=60.0 + n % 30) for n in range(COUNT)],
        perfusion=[PerfusionSummary(core_ml=10.0 + n) if presence[n, 3] else None for n in range(COUNT)],
        labels=(np.arange(COUNT) % 2).astype(np.int64),
        groups=np.arange(COUNT),
        sites=np.full(COUNT, "one"),
        latents=np.full((COUNT, len(LATENTS)), np.nan, np.float32),
        flags=[()] * COUNT,
    )


def fitted(data: Dataset) -> ExperimentResult:
    """Two random networks as the folds, with their scores."""
    spec = clinical_encoder.fit(data.records, defaults.VARIABLES)
    vectors = Vectors.of(data, spec)
    context = TrainingContext(data, vectors, defaults.GRID, CHANNEL_NAMES, CPU)
    networks: list[Network] = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        networks.append(build(defaults.architecture(Fusion.DAFT, spec, filters=2)).eval())
    out_of_fold, each = np.full(COUNT, np.nan), np.full((2, COUNT), np.nan)
    for fold, (network, own) in enumerate(zip(networks, FOLDS, strict=True)):
        out_of_fold[own] = tasks.logits(network, context, own)
        each[fold, SPLIT.test] = tasks.logits(network, context, SPLIT.test)
    scores = ModelScores(out_of_fold, each, (0.5, 0.5))
    return ExperimentResult(SPLIT, spec, vectors, {DAFT: scores, LOGISTIC: scores}, {DAFT: tuple(networks)}, ())


def by_name(lines: list[ModalityRow]) -> dict[str, ModalityRow]:
    return {line.name: line for line in lines}


def test_absent_and_present_studies_are_scored_apart() -> None:
    presence = np.ones((COUNT, 5), bool)
    presence[:12, 3:] = False  # perfusion maps
    presence[:3, 1:3] = False  # CTA and vessels
    data = cohort(presence)
    lines = by_name(modalities.measure(fitted(data), DAFT, data, CPU))
    assert (lines["perfusion maps absent"].studies, lines["perfusion maps present"].studies) == (12, 28)
    assert lines["perfusion maps absent"].events == 6
    assert lines["perfusion maps absent"].auc is not None
    assert lines["CTA absent"].auc is None
    text = modalities.markdown(list(lines.values()))
    assert "| CTA absent | <5 | too few of one outcome | | |" in text
    assert "| NCCT absent | 0 | none | | |" in text


def test_large_test_part_alone_is_scored_without_a_modality(monkeypatch: pytest.MonkeyPatch) -> None:
    data = cohort(np.ones((COUNT, 5), bool))
    result = fitted(data)
    every = by_name(modalities.measure(result, DAFT, data, CPU))
    monkeypatch.setattr(modalities, "LARGE_TEST", 1)
    lines = by_name(modalities.measure(result, DAFT, data, CPU))
    assert "NCCT removed from all" in every
    assert "NCCT removed from all" not in lines
    assert lines["NCCT removed from the test part"].studies == lines["test part, as sent"].studies == len(SPLIT.test)
    both = (modalities._without(result, DAFT, data, ("ncct",), CPU, test_only=only) for only in (False, True))
    whole, part = (scores.mean[SPLIT.test] for scores in both)
    assert part == pytest.approx(whole, abs=1e-6)


def test_removed_modality_is_as_if_it_had_not_been_sent() -> None:
    presence = np.ones((COUNT, 5), bool)
    data = cohort(presence)
    result = fitted(data)
    lines = by_name(modalities.measure(result, DAFT, data, CPU))
    without = presence.copy()
    without[:, 3:] = False
    other = cohort(without)
    networks = result.networks[DAFT]
    context = TrainingContext(other, Vectors.of(other, result.spec), defaults.GRID, CHANNEL_NAMES, CPU)
    expected = np.concatenate(
        [tasks.logits(network, context, own) for network, own in zip(networks, FOLDS, strict=True)]
    )
    scores = modalities._without(result, DAFT, data, ("tmax", "rcbf"), CPU, test_only=False)
    assert scores.out_of_fold[DEVELOP] == pytest.approx(expected, abs=1e-5)
    assert np.isfinite(scores.mean[SPLIT.test]).all()
    removed, sent = lines["perfusion maps removed from all"], lines["all studies, as sent"]
    assert removed.studies == sent.studies == COUNT
    assert removed.brier != sent.brier


def test_removal_of_what_no_study_has_changes_nothing() -> None:
    presence = np.ones((COUNT, 5), bool)
    presence[:, 3:] = False
    data = cohort(presence)
    lines = by_name(modalities.measure(fitted(data), DAFT, data, CPU))
    removed, sent = lines["perfusion maps removed from all"], lines["all studies, as sent"]
    assert removed.auc is not None
    assert sent.auc is not None
    assert removed.auc.value == pytest.approx(sent.auc.value)


def test_model_without_images_has_no_removed_modality() -> None:
    data = cohort(np.ones((COUNT, 5), bool))
    lines = modalities.measure(replace(fitted(data), networks={}), LOGISTIC, data, CPU)
    assert not any("removed" in line.name for line in lines)
    assert modalities.section([]) == []
