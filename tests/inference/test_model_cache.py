"""Versions kept warm."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
import torch

from app.inference.model_cache import ModelCache, out_of_memory
from app.inference.model_version import save
from app.sdk.errors import ModelNotFound, ModelNotReady
from app.worker import resource_limits
from tests.factory import random_network, tiny_case, tiny_manifest, tiny_version


def test_a_version_is_loaded_once_and_stays_warm(tmp_path: Path) -> None:
    tiny_version(tmp_path)
    predictor = ModelCache(tmp_path, "cpu")
    assert predictor.loaded() == []
    first = predictor.version("tiny", "1.0.0")
    assert predictor.version("tiny", "1.0.0") is first
    assert [(ref.name, ref.version) for ref in predictor.loaded()] == [("tiny", "1.0.0")]
    assert predictor.loaded()[0].digest == first.digest


def test_a_version_dropped_in_later_is_found(tmp_path: Path) -> None:
    predictor = ModelCache(tmp_path, "cpu")
    with pytest.raises(ModelNotFound):
        predictor.version("tiny", "1.0.0")
    tiny_version(tmp_path)
    predictor.version("tiny", "1.0.0")


def test_unloading_forgets_and_loads_again(tmp_path: Path) -> None:
    tiny_version(tmp_path)
    predictor = ModelCache(tmp_path, "cpu")
    first = predictor.version("tiny", "1.0.0")
    predictor.unload("tiny", "1.0.0")
    assert predictor.loaded() == []
    assert predictor.version("tiny", "1.0.0") is not first


def test_a_damaged_version_is_not_kept(tmp_path: Path) -> None:
    folder = tiny_version(tmp_path)
    (folder / "fold-0.safetensors").write_bytes(b"")
    predictor = ModelCache(tmp_path, "cpu")
    with pytest.raises(ModelNotReady):
        predictor.version("tiny", "1.0.0")
    assert predictor.loaded() == []


def test_a_load_that_nobody_waits_for_makes_way_between_its_pieces(tmp_path: Path) -> None:
    tiny_version(tmp_path)
    predictor, pauses = ModelCache(tmp_path, "cpu"), []
    gently = predictor.version("tiny", "1.0.0", pause=lambda: pauses.append(1))
    assert len(pauses) >= len(gently.manifest.folds) + 3  # the folds, the backend, the warming up, the golden cases


def test_many_threads_get_one_version_and_equal_answers(tmp_path: Path) -> None:
    tiny_version(tmp_path)
    predictor = ModelCache(tmp_path, "cpu")
    together = threading.Barrier(6)

    def ask(seed: int) -> tuple[int, float]:
        together.wait()
        version = predictor.version("tiny", "1.0.0")
        return id(version), version.predict(tiny_case(version.manifest, seed=seed % 2)).probability

    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(ask, range(6)))
    assert len({which for which, _ in answers}) == 1
    assert len({probability for _, probability in answers}) == 2


def store_of(folder: Path, *versions: str, filters: int = 2) -> Path:
    """Versions of one size, whose weights grow with the square of ``filters``."""
    for seed, version in enumerate(versions):
        manifest = tiny_manifest(version=version)
        manifest = manifest.model_copy(
            update={"architecture": manifest.architecture.model_copy(update={"filters": filters})}
        )
        folds = [random_network(manifest.architecture, 10 * seed + fold) for fold in range(2)]
        save(folder / "tiny" / version, manifest, folds, golden=[tiny_case(manifest)])
    return folder


def warm(predictor: ModelCache) -> list[str]:
    return sorted(ref.version for ref in predictor.loaded())


def test_the_version_that_was_longest_not_asked_for_makes_room(tmp_path: Path) -> None:
    store = store_of(tmp_path, "1.0.0", "2.0.0", "3.0.0")
    measured = ModelCache(store, "cpu")
    size = measured.version("tiny", "1.0.0").bytes
    predictor = ModelCache(store, "cpu", budget=2 * size)
    first = predictor.version("tiny", "1.0.0")
    predictor.version("tiny", "2.0.0")
    assert (warm(predictor), predictor.bytes()) == (["1.0.0", "2.0.0"], 2 * size)
    assert predictor.version("tiny", "1.0.0") is first
    predictor.version("tiny", "3.0.0")
    assert (warm(predictor), predictor.bytes()) == (["1.0.0", "3.0.0"], 2 * size)


def test_the_version_in_use_is_kept_whatever_it_takes(tmp_path: Path) -> None:
    predictor = ModelCache(store_of(tmp_path, "1.0.0", "2.0.0"), "cpu", budget=1)
    for version in ("1.0.0", "2.0.0", "1.0.0"):
        predictor.version("tiny", version)
        assert warm(predictor) == [version]
    unbounded = ModelCache(predictor.registry, "cpu")
    for version in ("1.0.0", "2.0.0"):
        unbounded.version("tiny", version)
    assert warm(unbounded) == ["1.0.0", "2.0.0"]


@pytest.mark.parametrize("backend", ["torch", "openvino"])
@pytest.mark.parametrize("how", ["unload", "budget"])
def test_what_is_unloaded_gives_its_memory_back(tmp_path: Path, backend: str, how: str) -> None:
    store = store_of(tmp_path, "1.0.0", filters=32)
    store_of(store, "2.0.0")
    alone = get_context("spawn")  # what is weighed is a whole process: one that other tests have left nothing in
    with ProcessPoolExecutor(1, mp_context=alone) as scales:
        size, loaded, unloaded = scales.submit(weigh, store, backend, how).result()
    assert size > 25_000_000
    assert 0.8 * size < loaded < 2 * size  # of the load itself, some four times the weights, nothing is left
    assert unloaded > 0.8 * size


def weigh(store: Path, backend: str, how: str) -> tuple[int, int, int]:
    """Bytes of a version's weights, what its load added to this process, and what its unloading gave back."""
    resource_limits.keep_memory()  # as a worker's allocator does
    predictor = ModelCache(store, "cpu", 1, backend=backend, budget=1 if how == "budget" else 0)
    predictor.version("tiny", "1.0.0")
    predictor.unload("tiny", "1.0.0")  # what is paid once, libraries and their pools, is paid now
    empty = resident()
    version = predictor.version("tiny", "1.0.0")
    size, gone = version.bytes, weakref.ref(version)
    del version
    before = resident()
    if how == "unload":
        predictor.unload("tiny", "1.0.0")
    else:
        predictor.version("tiny", "2.0.0")
    assert gone() is None
    return size, before - empty, before - resident()


def resident() -> int:
    """Bytes of memory that this process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_relief_leaves_the_version_at_work_and_takes_that_too_where_it_is_alone(tmp_path: Path) -> None:
    predictor = ModelCache(store_of(tmp_path, "1.0.0", "2.0.0"), "cpu")
    for version in ("1.0.0", "2.0.0"):
        predictor.version("tiny", version)
    predictor.evict("tiny", "1.0.0")
    assert warm(predictor) == ["1.0.0"]
    predictor.evict("tiny", "1.0.0")
    assert warm(predictor) == []


def test_memory_that_is_not_there_is_known_for_what_it_is() -> None:
    def met(ask: Callable[[], object]) -> BaseException:
        with pytest.raises((RuntimeError, MemoryError)) as caught:
            ask()
        return caught.value

    assert out_of_memory(met(lambda: torch.empty(2**50)))
    assert out_of_memory(met(lambda: np.empty(2**50)))
    assert out_of_memory(torch.OutOfMemoryError())
    assert not out_of_memory(met(lambda: torch.empty(2) @ torch.empty(3)))


def test_auto_is_told_by_its_name(tmp_path: Path) -> None:
    assert ModelCache(tmp_path, "auto").device == ("cuda" if torch.cuda.is_available() else "cpu")
