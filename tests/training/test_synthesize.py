"""Cohorts whose patients differ in scanner and protocol: missing series are known as missing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from app.inference.defaults import CHANNELS, GRID
from app.phantoms.biology import Preset
from app.phantoms.scene import PLAIN, Appearance
from app.training import cohort as tables
from app.training.dataset import Dataset, Drawn, phantoms
from app.training.errors import CohortFault
from app.training.preprocess import preprocess
from app.training.progress import ProgressReporter
from app.training.synthesize import synthesize

PATIENTS, SEED = 24, 5
SCANNERS = Appearance(scanners=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("cohorts") / "scanners"
    synthesize(out, PATIENTS, SEED, Preset.XOR, appearance=SCANNERS)
    return out


def read(folder: Path) -> Dataset:
    return preprocess(tables.read(folder), ProgressReporter())


def test_missing_series_of_a_prepared_cohort_are_not_present(folder: Path) -> None:
    found = read(folder)
    assert 0 < (~found.presence).any(axis=1).sum() < PATIENTS
    for image, presence in zip(found.images, found.presence, strict=True):
        assert [bool(channel.any()) for channel in image] == presence.tolist()
    without_maps = ~found.presence[:, 3]
    cores = [record.perfusion.core_ml if record.perfusion else None for record in found.records]
    assert [core is None for core in cores] == without_maps.tolist()


def test_images_of_an_earlier_call_have_the_same_presence_and_volumes(folder: Path) -> None:
    images = np.load(folder / "images.npy", mmap_mode="r")
    arguments = (PATIENTS, SEED, Preset.XOR, GRID, CHANNELS)
    again = phantoms(*arguments, appearance=SCANNERS, drawn=Drawn(images))
    assert np.array_equal(again.presence, read(folder).presence)
    plain = phantoms(*arguments, appearance=PLAIN, drawn=Drawn(images))
    assert plain.presence.all()
    pairs = zip(again.perfusion, plain.perfusion, strict=True)
    smaller = [one.tmax6_ml < other.tmax6_ml for one, other in pairs if one and other and other.tmax6_ml]
    assert any(smaller)  # a slab that is cut


@pytest.mark.parametrize("damage", ["shape", "bytes"])
def test_presence_that_does_not_fit_is_refused(folder: Path, damage: str, tmp_path: Path) -> None:
    for name in ("cohort.csv", "truth.csv", "images.npy", "images.json"):
        (tmp_path / name).symlink_to(folder / name)
    path = tmp_path / "presence.npy"
    if damage == "shape":
        np.save(path, np.ones((PATIENTS + 1, len(CHANNELS)), bool))
    else:
        path.write_bytes(b"damaged")
    with pytest.raises(CohortFault, match="make the cohort again"):
        read(tmp_path)
    path.unlink()
    assert read(tmp_path).presence.all()  # without the file every channel is present
