"""Versions kept warm."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from app.predictor import Predictor
from app.sdk.errors import ModelNotFound, ModelNotReady
from tests.factory import tiny_case, tiny_version


def test_a_version_is_loaded_once_and_stays_warm(tmp_path: Path) -> None:
    tiny_version(tmp_path)
    predictor = Predictor(tmp_path, "cpu")
    assert predictor.loaded() == []
    first = predictor.version("tiny", "1.0.0")
    assert predictor.version("tiny", "1.0.0") is first
    assert [(ref.name, ref.version) for ref in predictor.loaded()] == [("tiny", "1.0.0")]
    assert predictor.loaded()[0].digest == first.digest


def test_a_version_dropped_in_later_is_found(tmp_path: Path) -> None:
    predictor = Predictor(tmp_path, "cpu")
    with pytest.raises(ModelNotFound):
        predictor.version("tiny", "1.0.0")
    tiny_version(tmp_path)
    predictor.version("tiny", "1.0.0")


def test_unloading_forgets_and_loads_again(tmp_path: Path) -> None:
    tiny_version(tmp_path)
    predictor = Predictor(tmp_path, "cpu")
    first = predictor.version("tiny", "1.0.0")
    predictor.unload("tiny", "1.0.0")
    assert predictor.loaded() == []
    assert predictor.version("tiny", "1.0.0") is not first


def test_a_damaged_version_is_not_kept(tmp_path: Path) -> None:
    folder = tiny_version(tmp_path)
    (folder / "fold-0.safetensors").write_bytes(b"")
    predictor = Predictor(tmp_path, "cpu")
    with pytest.raises(ModelNotReady):
        predictor.version("tiny", "1.0.0")
    assert predictor.loaded() == []


def test_many_threads_get_one_version_and_equal_answers(tmp_path: Path) -> None:
    tiny_version(tmp_path)
    predictor = Predictor(tmp_path, "cpu")
    together = threading.Barrier(6)

    def ask(seed: int) -> tuple[int, float]:
        together.wait()
        version = predictor.version("tiny", "1.0.0")
        return id(version), version.predict(tiny_case(version.manifest, seed=seed % 2)).probability

    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(ask, range(6)))
    assert len({which for which, _ in answers}) == 1
    assert len({probability for _, probability in answers}) == 2
