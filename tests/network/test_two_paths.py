"""A trunk with a second path over a box of the image."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from app.inference.attribution import deeplift
from app.inference.ensemble_predictor import ExplanationMethod, NetworkFolds
from app.network import backends
from app.network.architecture import Architecture, BoxPath, Fusion
from app.network.backends import Backend
from app.network.daft import build
from app.network.ensemble import Ensemble, fold_batch_norm
from app.network.resnet import MultiPathTrunk
from app.network.tail_evaluator import TailEvaluator
from tests.factory import random_network

BOX = BoxPath(start=(16, 8, 0), size=(8, 16, 8), filters=3, marks=5)
ARCHITECTURE = Architecture(in_channels=2, clinical_size=6, filters=2, box=BOX)
BITS = slice(4, 6)


@pytest.fixture
def image() -> Tensor:
    return torch.randn(1, 2, 24, 32, 16, generator=torch.Generator().manual_seed(0))


def test_features_of_the_box_stand_at_its_place(image: Tensor) -> None:
    trunk = random_network(ARCHITECTURE).trunk
    assert isinstance(trunk, MultiPathTrunk)
    with torch.no_grad():
        features = trunk(image)
        assert features.shape == (1, ARCHITECTURE.trunk_channels, 3, 4, 2)
        assert torch.equal(features[:, :8], trunk.whole(image))
        boxed = features[:, 8:]
        assert trunk.marks is not None
        parts = [path(image[:, :, 16:24, 8:24, 0:8]) for path in (trunk.box, trunk.marks)]
        assert torch.equal(boxed[:, :, 2:3, 1:3, 0:1], torch.cat(parts, dim=1))
        assert parts[1].shape == (1, 5, 1, 2, 1)
        assert parts[1].std() > 0
    assert boxed.count_nonzero() == boxed[:, :, 2:3, 1:3, 0:1].count_nonzero() > 0


def test_box_without_marks_has_the_features_of_its_path_alone(image: Tensor) -> None:
    """Versions that were written before there were marks."""
    without = ARCHITECTURE.model_copy(update={"box": BoxPath(start=BOX.start, size=BOX.size, filters=3)})
    trunk = random_network(without).trunk
    with torch.no_grad():
        assert trunk(image).shape[1] == without.trunk_channels == 8 + 12
    assert not [name for name in trunk.state_dict() if name.startswith("marks")]


def test_single_voxel_of_the_box_reaches_its_path_and_a_voxel_outside_does_not(image: Tensor) -> None:
    trunk = random_network(ARCHITECTURE).trunk
    inside, outside = image.clone(), image.clone()
    inside[0, 0, 19, 12, 4] += 3
    outside[0, 0, 4, 12, 4] += 3
    with torch.no_grad():
        before, after, elsewhere = (trunk(each)[:, 8:] for each in (image, inside, outside))
    assert not torch.equal(before, after)
    assert torch.equal(before, elsewhere)


def test_an_image_without_the_box_is_refused() -> None:
    network = build(ARCHITECTURE)
    with pytest.raises((ValueError, RuntimeError)):
        network(torch.zeros(1, 2, 16, 16, 16), torch.zeros(1, 6))


@pytest.mark.parametrize("change", [{"start": (4, 8, 0)}, {"size": (8, 12, 8)}, {"size": (0, 8, 8)}])
def test_a_box_between_the_cells_of_the_features_is_refused(change: dict[str, tuple[int, int, int]]) -> None:
    with pytest.raises(ValueError, match=r"multiple of 8|greater than or equal"):
        BoxPath.model_validate(BOX.model_dump() | change)


@pytest.mark.parametrize("fusion", list(Fusion))
def test_openvino_computes_the_features_of_torch(image: Tensor, fusion: Fusion) -> None:
    folds = [fold_batch_norm(random_network(ARCHITECTURE.model_copy(update={"fusion": fusion}), n)) for n in (1, 2)]
    trunks = backends.select_backend(Backend.OPENVINO, torch.device("cpu"), folds, (2, 24, 32, 16))
    assert trunks is not None
    for fold, features in zip(folds, trunks(image[0]), strict=True):
        with torch.no_grad():
            assert torch.allclose(features, fold.trunk(image), atol=1e-4)


def test_rescale_shares_sum_to_the_gain(image: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deeplift, "TAIL_STEPS", 400)  # the rule is exact in the trunk, the quadrature of the tail not
    ensemble = Ensemble([random_network(ARCHITECTURE, 1)])
    (fold,), batch = ensemble.folds, ensemble.image(image[0])
    clinical = torch.tensor([[0.3, -1.2, 0.5, 1.0, 1.0, 1.0]])
    blank = torch.zeros_like(batch)
    result = deeplift.rescale([fold], deeplift.baseline_activations(fold, blank), batch, clinical, BITS)
    shares = (result.voxels * batch).sum() + (result.bits * clinical[0, BITS]).sum()
    without = clinical.clone()
    without[:, BITS] = 0
    with torch.no_grad():
        gain = fold(batch, clinical) - fold(blank, without)
    assert shares.item() == pytest.approx(gain.item(), abs=1e-3)


def test_tail_evaluator_gives_the_logits_of_the_network(image: Tensor) -> None:
    network = random_network(ARCHITECTURE, 2)
    clinical = torch.randn(5, 6, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        features = network.trunk(image)
        expected = network.tail(features.expand(5, -1, -1, -1, -1), clinical)
        assert torch.allclose(TailEvaluator(network, features).logits(clinical), expected, atol=1e-4)


def test_folds_with_one_trunk_share_it(image: Tensor) -> None:
    """Folds on a frozen trunk have its weights each; the ensemble computes it once and gives the same numbers."""
    first, second, other = (random_network(ARCHITECTURE, seed) for seed in (1, 2, 3))
    second.trunk.load_state_dict(first.trunk.state_dict())
    ensemble, alone = Ensemble([first, second, other]), [Ensemble([each]) for each in (first, second, other)]
    assert (len(ensemble.distinct), ensemble.trunk_of) == (2, [0, 0, 1])
    assert ensemble.folds[0].trunk is ensemble.folds[1].trunk
    networks = NetworkFolds(ensemble, (2, 24, 32, 16))
    trunk = sum(weight.nbytes for weight in ensemble.folds[0].trunk.parameters())
    assert networks.bytes == sum(NetworkFolds(each, (2, 24, 32, 16)).bytes for each in alone) - trunk
    one_by_one = [NetworkFolds(each, (2, 24, 32, 16)) for each in alone]
    clinical = np.array([0.3, -1.2, 0.5, 1.0, 1.0, 1.0], np.float32)
    pixels = image[0].numpy()
    expected = np.concatenate([each.logits(pixels, clinical) for each in one_by_one])
    assert np.allclose(networks.logits(pixels, clinical), expected, atol=1e-6)
    raw = networks.image_shares(pixels, clinical, BITS, [0, 1], ExplanationMethod())
    parts = [each.image_shares(pixels, clinical, BITS, [0, 1], ExplanationMethod()) for each in one_by_one]
    assert np.allclose(raw.channels, np.mean([part.channels for part in parts], axis=0), atol=1e-6)
    assert raw.voxels is not None
    voxels = torch.stack([part.voxels for part in parts if part.voxels is not None]).mean(dim=0)
    assert torch.allclose(raw.voxels, voxels, atol=1e-6)
