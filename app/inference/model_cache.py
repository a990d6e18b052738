"""Loaded model versions on one device.

Design notes:
- One case at a time per device: one thread computes the predictions and explanations of all versions, because cases
  at the same time would compete for cores or GPU memory. app/core/concurrency.py explains why it is always one thread.
- A version that is added to the model store later is loaded at its first use, without a restart.
- A version is usable only after its golden cases agree with its manifest on this device.
- The use of a loaded version does not wait for the load of another one.
- Weights stay within a budget: the least recently used version is unloaded first.
"""

from __future__ import annotations

import ctypes
import gc
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from threading import Lock
from typing import TypeVar

import torch

from app.core.concurrency import SerialExecutor, no_pause, run_inline, submit
from app.core.logging import error_location
from app.inference.device_errors import device_lost, out_of_memory
from app.inference.model_version import ModelVersion
from app.network.backends import Backend, Precision
from app.network.ensemble import select_device
from app.registry.model_store import ModelStore, StoredVersion
from app.sdk.errors import ModelNotReady, RlvoError
from app.sdk.types import ModelRef

T = TypeVar("T")

PAUSE_S = 0.05  # seconds between two parts of a load in the background, so that it does not slow predictions down


@dataclass
class _CachedVersion:
    entry: StoredVersion
    version: ModelVersion
    last_used: float = field(default_factory=time.monotonic)


class ModelCache:
    """The loaded versions of one worker.

    ``threads`` are the CPU threads of loads and predictions; 0 keeps torch's number. ``budget`` limits the bytes of
    loaded weights; 0 is no limit, and the version in use always stays. The attribute ``device`` is never ``auto``.
    """

    def __init__(
        self,
        model_store: Path | ModelStore,
        device: str = "auto",
        threads: int = 0,
        *,
        backend: str = Backend.TORCH,
        precision: str = "auto",
        budget: int = 0,
    ) -> None:
        self.registry = model_store if isinstance(model_store, ModelStore) else ModelStore(model_store)
        self.device = select_device(device).type
        # Read here, not in a load's thread, because it is 1 while another thread computes a small tail.
        self._process_threads = torch.get_num_threads()
        self.threads = threads or self._process_threads
        self.budget = budget
        self._backend, self._precision = Backend(backend), None if precision == "auto" else Precision(precision)
        self._cached: dict[str, _CachedVersion] = {}
        self._loading: defaultdict[str, Lock] = defaultdict(Lock)
        self._lock = Lock()
        self._device_thread = SerialExecutor("device")
        self._vessel_thread = SerialExecutor("vessels")

    def version(self, name: str, version: str, *, pause: Callable[[], None] = no_pause) -> ModelVersion:
        """Return the version; load it first if it is not loaded, or if its manifest has changed since.

        ``pause`` is described at `ModelVersion.load`.

        Raises:
            ModelNotFound: The store has no such version.
            ModelNotReady: A file or a golden case differs from the manifest.
        """
        entry = self.registry.resolve(f"{name}@{version}")
        key = f"{name}@{version}"
        if (cached := self._get(key, entry)) is not None:
            return cached
        with self._lock:
            loading = self._loading[key]
        with loading:
            if (cached := self._get(key, entry)) is not None:
                return cached
            loaded = self._load_with_room(entry, key, pause)
            with self._lock:
                self._cached[key] = _CachedVersion(entry, loaded)
            self._unload_beyond(self.budget, key)
            release_memory()  # temporary memory of the load
            return loaded

    def _load_with_room(self, entry: StoredVersion, key: str, pause: Callable[[], None]) -> ModelVersion:
        """Load a version; if memory runs out, unload all others and load it once more."""
        load = partial(self._with_threads, partial(self._load, entry, pause))
        try:
            return submit(load).result()  # in a thread that ends, so that its OpenMP threads end too
        except Exception as error:
            if not out_of_memory(error):
                raise
        # Not in the handler: the error keeps the memory of the load until the handler ends.
        if not self._unload_beyond(1, key):
            release_memory()
        return submit(load).result()

    def _load(self, entry: StoredVersion, pause: Callable[[], None]) -> ModelVersion:
        """Load a version; unusable files raise ModelNotReady, errors of the device are raised as they are."""
        try:
            return self._load_and_verify(entry, pause)
        except (RlvoError, MemoryError):
            raise
        except Exception as error:
            if out_of_memory(error) or device_lost(error):
                raise
            where = error_location(error)
            raise ModelNotReady(f"The files of this version do not fit this release ({where}).") from error

    def _load_and_verify(self, entry: StoredVersion, pause: Callable[[], None]) -> ModelVersion:
        """Load a version and verify its golden cases.

        On a CPU the load runs in parallel to predictions; on a GPU it uses the device's thread, because GPU memory is
        for one case at a time.
        """
        loaded = ModelVersion.load(
            entry.folder,
            entry.manifest,
            self.device,
            executor=self._run_on_device if self.device == "cuda" else run_inline,
            backend=self._backend,
            precision=self._precision,
            pause=pause,
        )
        pause()
        loaded.warm_up()
        pause()
        loaded.verify_golden_cases(entry.folder)
        loaded.executor = self._run_on_device
        if self.device != "cpu":  # the vessel network is on the CPU, and must not hold the turn of the GPU meanwhile
            loaded.vessel_executor = self._run_beside_device
        return loaded

    def _run_beside_device(self, task: Callable[[], T], /) -> T:
        return self._vessel_thread(partial(self._with_threads, task))

    def _run_on_device(self, task: Callable[[], T], /) -> T:
        """Run a task in the device's thread; an ``Executor`` (docs/decisions/0060)."""
        return self._device_thread(partial(self._with_threads, task))

    def _with_threads(self, task: Callable[[], T]) -> T:
        """Run a task with ``threads`` CPU threads in the calling thread, then restore the process's number."""
        if torch.get_num_threads() == self.threads:  # also in a task that another task started
            return task()
        torch.set_num_threads(self.threads)
        try:
            return task()
        finally:
            torch.set_num_threads(self._process_threads)

    def check(self, name: str, version: str) -> None:
        """Verify the files and golden cases of a version, and load it if needed.

        Raises:
            ModelNotFound: The store has no such version.
            ModelNotReady: A file or a golden case differs from the manifest.
        """
        entry = self.registry.resolve(f"{name}@{version}")
        if (cached := self._get(f"{name}@{version}", entry)) is not None:
            self.registry.verify(entry)
            cached.verify_golden_cases(entry.folder)
        else:
            # The load itself verifies files and golden cases.
            self.version(name, version, pause=partial(time.sleep, PAUSE_S))

    def loaded(self) -> list[ModelRef]:
        """Return the versions that are loaded now."""
        with self._lock:
            entries = [cached.entry for cached in self._cached.values()]
        return [ModelRef(name=entry.name, version=entry.version, digest=entry.digest) for entry in entries]

    def bytes(self) -> int:
        """Return the size of the loaded weights on the device."""
        with self._lock:
            return sum(cached.version.bytes for cached in self._cached.values())

    def device_memory(self) -> tuple[int, int]:
        """Return the bytes of GPU memory in use by all processes, and in total; (0, 0) on a CPU or a lost device."""
        if self.device != "cuda":
            return 0, 0
        try:
            free, whole = torch.cuda.mem_get_info()
        except RuntimeError:  # the heartbeat goes on, so that others see that this worker lives
            return 0, 0
        return whole - free, whole

    def unload(self, name: str, version: str) -> None:
        """Remove a version and release its device memory, after the running case."""
        self._run_on_device(lambda: self._forget(f"{name}@{version}"))
        release_memory()

    def evict(self, name: str, version: str) -> None:
        """Release device memory after an out-of-memory error.

        Unloads all other versions. If there is no other, it unloads this one; its next use loads it into unfragmented
        memory.
        """
        if not self._unload_beyond(1, f"{name}@{version}"):
            self.unload(name, version)

    def _forget(self, key: str) -> None:
        with self._lock:
            self._cached.pop(key, None)

    def _get(self, key: str, entry: StoredVersion) -> ModelVersion | None:
        with self._lock:
            cached = self._cached.get(key)
            if cached is None or cached.entry.digest != entry.digest:
                return None
            cached.last_used = time.monotonic()
            return cached.version

    def _unload_beyond(self, budget: int, key: str) -> bool:
        """Unload the least recently used versions, except ``key``, until the rest fits; return whether any was."""
        unloaded = False
        with self._lock:
            others = sorted((each for each in self._cached if each != key), key=lambda k: self._cached[k].last_used)
            while budget and others and sum(cached.version.bytes for cached in self._cached.values()) > budget:
                del self._cached[others.pop(0)]
                unloaded = True
        if unloaded:
            release_memory()
        return unloaded


def release_memory() -> None:
    """Return freed memory to the device and to the operating system."""
    gc.collect()  # a loaded graph has reference cycles
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    # glibc keeps freed memory inside its heaps; without this call, a version's weights stay allocated.
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)
