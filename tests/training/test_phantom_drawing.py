"""Phantoms that several processes draw are those that one process draws."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from app.inference.defaults import CHANNELS, GRID
from app.phantoms import biology, scene
from app.phantoms.biology import Preset
from app.phantoms.scene import Appearance
from app.training import phantom_drawing
from app.training import synthesize as generator
from app.training.dataset import cells_of_two, phantoms
from app.training.phantom_drawing import rows_by_anatomy

VARIED = Appearance(variants=2, scanners=True)
UNSEEN = Appearance(variants=3, first=60)
SEED = 5


def test_several_processes_draw_the_same_phantoms(tmp_path: Path) -> None:
    images, clots = tmp_path / "images.part", tmp_path / "clots.part"
    patients, advanced = biology.draw(6, SEED, Preset.PAPER), []
    protocols = phantom_drawing.draw(
        patients, SEED, GRID, CHANNELS, VARIED, images, clots, jobs=2, advance=lambda: advanced.append(1)
    )
    alone = phantoms(6, SEED, Preset.PAPER, GRID, CHANNELS, appearance=VARIED)
    assert np.array_equal(np.load(images), alone.images)
    assert np.array_equal(protocols[:, : len(CHANNELS)] > 0, alone.presence)
    assert len(advanced) == len(patients)
    shares = np.load(clots)
    assert shares.shape[1:] == cells_of_two(alone.images[0, 0]).shape
    assert (shares.reshape(6, -1).max(axis=1) > 0).all()


def test_several_processes_write_the_same_volumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generator, "FULL_SIZE_EACH", 1)
    for jobs in (1, 2):
        generator.synthesize(tmp_path / str(jobs), 2, SEED, Preset.PAPER, appearance=VARIED, full_size=True, jobs=jobs)
    one, two = digests(tmp_path / "1"), digests(tmp_path / "2")
    assert one == two
    assert len({path.parts[0] for path in one if path.suffix == ".gz"}) == 2


def digests(folder: Path) -> dict[Path, str]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_patients_of_an_anatomy_are_together_and_divided_when_they_are_many() -> None:
    patients = biology.draw(40, SEED, Preset.PAPER)
    parts = rows_by_anatomy(patients, SEED, UNSEEN, 8)
    assert sorted(row for part in parts for row in part) == list(range(40))
    assert max(map(len, parts)) == 8
    anatomy = [scene.draw_variation(SEED, row, UNSEEN).variant.number for row in range(40)]
    numbers = [{anatomy[row] for row in part} for part in parts]
    assert all(len(each) == 1 for each in numbers)
    assert set().union(*numbers) == {60, 61, 62}
