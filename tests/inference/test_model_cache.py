"""The cache of loaded model versions."""

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
from app.inference.model_version import ModelVersion, save
from app.sdk.errors import ModelNotFound, ModelNotReady
from app.worker import resource_limits
from tests.factory import random_network, tiny_case, tiny_manifest, tiny_version


def test_version_is_loaded_once_and_stays_loaded(tmp_path: Path) -> None:
    tiny_version(tmp_path)
    model_cache = ModelCache(tmp_path, "cpu")
    assert model_cache.loaded() == []
    first = model_cache.version("tiny", "1.0.0")
    assert model_cache.version("tiny", "1.0.0") is first
    assert [(ref.name, ref.version) for ref in model_cache.loaded()] == [("tiny", "1.0.0")]
    assert model_cache.loaded()[0].digest == first.digest


def test_version_added_later_is_loaded(tmp_path: Path) -> None:
    model_cache = ModelCache(tmp_path, "cpu")
    with pytest.raises(ModelNotFound):
        model_cache.version("tiny", "1.0.0")
    folder = tiny_version(tmp_path)
    version = model_cache.version("tiny", "1.0.0")
    assert (version.manifest.name, version.manifest.version) == ("tiny", "1.0.0")
    assert version.check(folder) < 1e-5


def test_unloaded_version_is_loaded_again(tmp_path: Path) -> None:
    tiny_version(tmp_path)
    model_cache = ModelCache(tmp_path, "cpu")
    first = model_cache.version("tiny", "1.0.0")
    model_cache.unload("tiny", "1.0.0")
    assert model_cache.loaded() == []
    assert model_cache.version("tiny", "1.0.0") is not first


def test_damaged_version_is_not_cached(tmp_path: Path) -> None:
    folder = tiny_version(tmp_path)
    (folder / "fold-0.safetensors").write_bytes(b"")
    model_cache = ModelCache(tmp_path, "cpu")
    with pytest.raises(ModelNotReady):
        model_cache.version("tiny", "1.0.0")
    assert model_cache.loaded() == []


def test_load_pauses_between_its_parts(tmp_path: Path) -> None:
    tiny_version(tmp_path)
    model_cache, pauses = ModelCache(tmp_path, "cpu"), []
    version = model_cache.version("tiny", "1.0.0", pause=lambda: pauses.append(1))
    assert len(pauses) >= len(version.manifest.folds) + 3  # folds, backend, loaded_versions-up, golden cases


def test_threads_share_one_version_and_get_equal_results(tmp_path: Path) -> None:
    tiny_version(tmp_path)
    model_cache = ModelCache(tmp_path, "cpu")
    barrier = threading.Barrier(6)

    def predict(seed: int) -> tuple[int, float]:
        barrier.wait()
        version = model_cache.version("tiny", "1.0.0")
        return id(version), version.predict(tiny_case(version.manifest, seed=seed % 2)).probability

    with ThreadPoolExecutor(6) as pool:
        results = list(pool.map(predict, range(6)))
    assert len({identity for identity, _ in results}) == 1
    assert len({probability for _, probability in results}) == 2


def test_threads_apply_to_the_work_of_the_cache_only(tmp_path: Path) -> None:
    tiny_version(tmp_path)
    threads: list[int] = []
    usual = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        model_cache = ModelCache(tmp_path, "cpu", 1)
        version = model_cache.version("tiny", "1.0.0", pause=lambda: threads.append(torch.get_num_threads()))
        assert set(threads) == {1}
        assert version.executor(torch.get_num_threads) == 1
        assert version.executor(lambda: (version.executor(torch.get_num_threads), torch.get_num_threads())) == (1, 1)
        with ThreadPoolExecutor(1) as pool:  # a new thread takes the number of the process
            assert pool.submit(torch.get_num_threads).result() == torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(usual)


def write_versions(folder: Path, *versions: str, filters: int = 2) -> Path:
    """Write versions of equal size; the weights grow with the square of ``filters``."""
    for seed, version in enumerate(versions):
        manifest = tiny_manifest(version=version)
        manifest = manifest.model_copy(
            update={"architecture": manifest.architecture.model_copy(update={"filters": filters})}
        )
        folds = [random_network(manifest.architecture, 10 * seed + fold) for fold in range(2)]
        save(folder / "tiny" / version, manifest, folds, golden=[tiny_case(manifest)])
    return folder


def loaded_versions(model_cache: ModelCache) -> list[str]:
    return sorted(ref.version for ref in model_cache.loaded())


def test_least_recently_used_version_is_unloaded_first(tmp_path: Path) -> None:
    store = write_versions(tmp_path, "1.0.0", "2.0.0", "3.0.0")
    measured = ModelCache(store, "cpu")
    size = measured.version("tiny", "1.0.0").bytes
    model_cache = ModelCache(store, "cpu", budget=2 * size)
    first = model_cache.version("tiny", "1.0.0")
    model_cache.version("tiny", "2.0.0")
    assert (loaded_versions(model_cache), model_cache.bytes()) == (["1.0.0", "2.0.0"], 2 * size)
    assert model_cache.version("tiny", "1.0.0") is first
    model_cache.version("tiny", "3.0.0")
    assert (loaded_versions(model_cache), model_cache.bytes()) == (["1.0.0", "3.0.0"], 2 * size)


def test_version_in_use_stays_loaded_beyond_the_budget(tmp_path: Path) -> None:
    model_cache = ModelCache(write_versions(tmp_path, "1.0.0", "2.0.0"), "cpu", budget=1)
    for version in ("1.0.0", "2.0.0", "1.0.0"):
        model_cache.version("tiny", version)
        assert loaded_versions(model_cache) == [version]
    unbounded = ModelCache(model_cache.registry, "cpu")
    for version in ("1.0.0", "2.0.0"):
        unbounded.version("tiny", version)
    assert loaded_versions(unbounded) == ["1.0.0", "2.0.0"]


@pytest.mark.parametrize("backend", ["torch", "openvino"])
@pytest.mark.parametrize("how", ["unload", "budget"])
def test_unloading_releases_memory(tmp_path: Path, backend: str, how: str) -> None:
    store = write_versions(tmp_path, "1.0.0", filters=32)
    write_versions(store, "2.0.0")
    # The memory of a whole process is measured, so it is a new process without other tests' memory.
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        size, loaded, unloaded = pool.submit(measure_memory, store, backend, how).result()
    assert size > 25_000_000
    assert 0.8 * size < loaded < 2 * size  # temporary memory of the load is released
    assert unloaded > 0.8 * size


def measure_memory(store: Path, backend: str, how: str) -> tuple[int, int, int]:
    """Return the bytes of a version's weights, of memory that its load added, and that its unloading released."""
    resource_limits.keep_memory()  # the allocator settings of a worker
    model_cache = ModelCache(store, "cpu", 1, backend=backend, budget=1 if how == "budget" else 0)
    model_cache.version("tiny", "1.0.0")
    model_cache.unload("tiny", "1.0.0")  # libraries and their pools are loaded now
    empty = resident()
    version = model_cache.version("tiny", "1.0.0")
    size, reference = version.bytes, weakref.ref(version)
    del version
    before = resident()
    if how == "unload":
        model_cache.unload("tiny", "1.0.0")
    else:
        model_cache.version("tiny", "2.0.0")
    assert reference() is None
    return size, before - empty, before - resident()


def resident() -> int:
    """Return the resident memory of this process in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_eviction_unloads_other_versions_first_and_then_the_used_one(tmp_path: Path) -> None:
    model_cache = ModelCache(write_versions(tmp_path, "1.0.0", "2.0.0"), "cpu")
    for version in ("1.0.0", "2.0.0"):
        model_cache.version("tiny", version)
    model_cache.evict("tiny", "1.0.0")
    assert loaded_versions(model_cache) == ["1.0.0"]
    model_cache.evict("tiny", "1.0.0")
    assert loaded_versions(model_cache) == []


def test_load_without_room_unloads_the_other_versions_and_is_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model_cache = ModelCache(write_versions(tmp_path, "1.0.0", "2.0.0"), "cpu")
    model_cache.version("tiny", "1.0.0")
    verify, tried = ModelVersion.verify_golden_cases, []

    def verify_with_room_for_one(version: ModelVersion, folder: Path) -> None:
        tried.append(loaded_versions(model_cache))
        if tried[-1]:
            raise torch.OutOfMemoryError
        verify(version, folder)

    monkeypatch.setattr(ModelVersion, "verify_golden_cases", verify_with_room_for_one)
    model_cache.version("tiny", "2.0.0")
    assert tried == [["1.0.0"], []]
    assert loaded_versions(model_cache) == ["2.0.0"]


def test_load_on_a_lost_device_does_not_blame_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model_cache = ModelCache(write_versions(tmp_path, "1.0.0"), "cpu")

    def lose_device(*_: object) -> None:
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(ModelVersion, "verify_golden_cases", lose_device)
    with pytest.raises(torch.AcceleratorError):  # ModelNotReady would fail the study, and leave the worker running
        model_cache.version("tiny", "1.0.0")


def test_out_of_memory_errors_are_recognised() -> None:
    def error_of(task: Callable[[], object]) -> BaseException:
        with pytest.raises((RuntimeError, MemoryError)) as caught:
            task()
        return caught.value

    assert out_of_memory(error_of(lambda: torch.empty(2**50)))
    assert out_of_memory(error_of(lambda: np.empty(2**50)))
    assert out_of_memory(torch.OutOfMemoryError())
    assert not out_of_memory(error_of(lambda: torch.empty(2) @ torch.empty(3)))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_missing_device_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelNotReady, match="no CUDA device"):
        ModelCache(tmp_path, "cuda")


def test_auto_resolves_to_a_device(tmp_path: Path) -> None:
    assert ModelCache(tmp_path, "auto").device == ("cuda" if torch.cuda.is_available() else "cpu")
