"""The reference head that training makes, and what a training context shows relative to it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from app.inference import clinical_encoder, defaults
from app.inference.attribution import atlas
from app.inference.model_input import ModelInput
from app.inference.reference_head import ReferenceHead
from app.phantoms.biology import Preset
from app.sdk.clinical import ClinicalRecord, Side
from app.training import reference
from app.training.dataset import Dataset, Vectors, phantoms, to_model_input
from app.training.tasks import TrainingContext

GRID = defaults.GRID
CHANNEL_NAMES = tuple(channel.name for channel in defaults.CHANNELS)


@pytest.fixture(scope="module")
def data() -> Dataset:
    return phantoms(12, 4, Preset.INTERACTION, GRID, defaults.CHANNELS)


@pytest.fixture(scope="module")
def head(data: Dataset) -> ReferenceHead:
    return reference.make(data, np.arange(12), GRID)


def context(data: Dataset, head: ReferenceHead | None) -> TrainingContext:
    vectors = Vectors.of(data, clinical_encoder.fit(data.records, [*defaults.VARIABLES]))
    left = reference.left_sided(data)
    return TrainingContext(data, vectors, GRID, CHANNEL_NAMES, torch.device("cpu"), reference=head, left=left)


def test_mask_holds_the_brain_and_its_arteries_and_no_skull(data: Dataset) -> None:
    mask = reference.intracranial(GRID)
    assert np.array_equal(mask, mask[::-1])
    labels = atlas.labels(GRID.shape, GRID.affine)
    named = labels != atlas.NAMES.index("other")
    assert mask[named].mean() > 0.85
    ncct = data.images[:, 0].astype(np.float32).mean(axis=0) * 30 + 35
    dense = ncct > 99  # the window ends at 100 HU: bone
    assert dense[mask].mean() < 0.02
    assert mask[dense].mean() < 0.05
    assert 1.7e3 < mask.sum() * np.prod(GRID.spacing_mm) / 1000 < 2.1e3  # mL


def test_mean_is_symmetric_and_the_average_of_the_patients(data: Dataset, head: ReferenceHead) -> None:
    assert np.array_equal(head.mean, head.mean[:, ::-1])
    average = data.images.astype(np.float64).mean(axis=0)
    expected = (average + average[:, ::-1]) / 2 * head.mask
    assert np.allclose(head.mean, expected, atol=2e-3)


def test_absent_channel_does_not_count_in_the_mean(data: Dataset, head: ReferenceHead) -> None:
    presence, images = data.presence.copy(), data.images.copy()
    presence[:6, 3:] = False
    images[:6, 3:] = 0
    fewer = reference.make(replace(data, images=images, presence=presence), np.arange(12), GRID)
    others = reference.make(data, np.arange(6, 12), GRID)
    assert np.allclose(fewer.mean[3:], others.mean[3:], atol=2e-3)
    assert np.array_equal(fewer.mean[:3], head.mean[:3])


def test_training_sees_what_the_service_sees(data: Dataset, head: ReferenceHead) -> None:
    """Both mirror left-sided patients and take the difference to the mean head inside the mask."""
    left = reference.left_sided(data)
    assert 0 < left.sum() < 12
    presence = data.presence.copy()
    presence[:, 4] = False
    data = replace(data, presence=presence)
    shown = context(data, head)
    seen = shown.images(np.arange(12), presence).numpy()
    spec = clinical_encoder.fit(data.records, [*defaults.VARIABLES])
    for row in range(12):
        case: ModelInput = to_model_input(data, shown.vectors, spec, row)
        assert (case.affected is Side.LEFT) == left[row]
        network_sees = head.to_network(case.image, case.presence, mirrored=head.is_mirrored(case.affected))
        assert np.allclose(seen[row], network_sees, atol=1e-5)
    assert not seen[:, :, ~head.mask].any()


def test_augmented_images_stay_side_aligned_and_inside_the_mask(data: Dataset, head: ReferenceHead) -> None:
    images, _ = context(data, head).augmented(np.arange(12), np.random.default_rng(0), rotate=True)
    assert not images.numpy()[:, :, ~head.mask].any()
    tmax = images.numpy()[:, 3]
    right_minus_left = tmax[:, 20:].sum(axis=(1, 2, 3)) - tmax[:, :20].sum(axis=(1, 2, 3))
    present = np.abs(tmax).sum(axis=(1, 2, 3)) > 0
    assert (right_minus_left[present] > 0).all()


def test_side_without_a_record_is_that_of_the_images(data: Dataset) -> None:
    known = reference.left_sided(data)
    anonymous = replace(data, records=[ClinicalRecord(age=70.0)] * 12)
    assert np.array_equal(reference.left_sided(anonymous), known)
