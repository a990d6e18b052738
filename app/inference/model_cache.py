"""Model versions kept warm on one device.

Notable choices:
- One case at a time per device: all versions predict and explain in one thread. A second case would only fight for the
  same cores, or for the card's memory; why it is the same thread each time, app/aside.py says.
- A version that appears in the model store later is loaded when it is first asked for; nothing restarts.
- A version is warm only after its golden cases came out as its manifest says, on this very device.
- Whoever asks for a warm version never waits for the load of another one.
- Weights stay within a budget: the version that was longest not asked for goes first. Where a device runs out of memory
  nevertheless, all others go, and the work is tried again.
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

import torch

from app.core.concurrency import SerialExecutor, no_pause, run_inline, submit
from app.inference.model_version import ModelVersion
from app.network.backends import Backend, Precision
from app.network.ensemble import pick_device
from app.registry.model_store import ModelStore, StoredVersion
from app.sdk.types import ModelRef

PAUSE = 0.05
"""Seconds between two pieces of a load that nobody waits for: all at once, it slowed some 18 answers by a quarter."""


@dataclass
class _Warm:
    entry: StoredVersion
    version: ModelVersion
    asked: float = field(default_factory=time.monotonic)


class ModelCache:
    """The warm versions of one worker.

    :param device: ``auto``, ``cpu`` or ``cuda``; the attribute is the one in use, never ``auto``
    :param threads: CPU threads of this process; 0: as torch finds them
    :param budget: bytes of weights that may be warm at once; 0: no bound. The version in use is kept whatever it takes
    """

    def __init__(
        self,
        model_store: Path | ModelStore,
        device: str = "auto",
        threads: int = 0,
        *,
        backend: str = Backend.TORCH,
        precision: str = Precision.FLOAT32,
        budget: int = 0,
    ) -> None:
        self.registry = model_store if isinstance(model_store, ModelStore) else ModelStore(model_store)
        self.device = pick_device(device).type
        # Said to every load, not found there: it differs for a moment while a small tail is computed.
        self.threads = threads or torch.get_num_threads()
        self.budget = budget
        self._backend, self._precision = Backend(backend), Precision(precision)
        self._warm: dict[str, _Warm] = {}
        self._loading: defaultdict[str, Lock] = defaultdict(Lock)
        self._table = Lock()
        self._turn = SerialExecutor("device")

    def version(self, name: str, version: str, *, pause: Callable[[], None] = no_pause) -> ModelVersion:
        """The version, loaded if it was not yet, or if its manifest has been replaced since.

        :param pause: see `ModelVersion.load`
        :raises ModelNotFound: where the store has no such version
        :raises ModelNotReady: where its files are not what its manifest says, or its golden cases come out otherwise
        """
        entry = self.registry.resolve(f"{name}@{version}")
        key = f"{name}@{version}"
        if (found := self._known(key, entry)) is not None:
            return found
        with self._table:
            loading = self._loading[key]
        with loading:
            if (found := self._known(key, entry)) is not None:
                return found
            # In a thread that ends, and its OpenMP helpers with it.
            loaded = submit(partial(self._loaded, entry, pause)).result()
            with self._table:
                self._warm[key] = _Warm(entry, loaded)
            self._keep_within(self.budget, key)
            _release()  # what loading leaves behind, the files' bytes among it
            return loaded

    def _loaded(self, entry: StoredVersion, pause: Callable[[], None]) -> ModelVersion:
        """The version, warm and vouched for.

        On a CPU all of that is done beside whoever is served, who would wait longer for a turn of so many pieces; a
        card's memory is one case's at a time.
        """
        loaded = ModelVersion.load(
            entry.folder,
            entry.manifest,
            self.device,
            self.threads,
            turn=self._turn if self.device == "cuda" else run_inline,
            backend=self._backend,
            precision=self._precision,
            pause=pause,
        )
        pause()
        loaded.warm_up()
        pause()
        loaded.verify_golden_cases(entry.folder)
        loaded.turn = self._turn
        return loaded

    def check(self, name: str, version: str) -> None:
        """Loads the version if it was not yet, and checks its files and golden cases even if it was.

        Raises ModelNotFound, ModelNotReady.
        """
        entry = self.registry.resolve(f"{name}@{version}")
        if (known := self._known(f"{name}@{version}", entry)) is not None:
            self.registry.verify(entry)
            known.verify_golden_cases(entry.folder)
        else:
            # Each file is checked as it is read, and the version vouched for.
            self.version(name, version, pause=partial(time.sleep, PAUSE))

    def loaded(self) -> list[ModelRef]:
        """The versions that are warm now."""
        with self._table:
            entries = [warm.entry for warm in self._warm.values()]
        return [ModelRef(name=entry.name, version=entry.version, digest=entry.digest) for entry in entries]

    def bytes(self) -> int:
        """What the warm versions' weights take on the device."""
        with self._table:
            return sum(warm.version.bytes for warm in self._warm.values())

    def device_memory(self) -> tuple[int, int]:
        """Bytes of the GPU's memory in use, by whomever, and in all; nothing on a CPU."""
        if self.device != "cuda":
            return 0, 0
        free, whole = torch.cuda.mem_get_info()
        return whole - free, whole

    def unload(self, name: str, version: str) -> None:
        """Forget a version, and give its device memory back, once no case is being worked on."""
        self._turn(lambda: self._forget(f"{name}@{version}"))
        _release()

    def evict(self, name: str, version: str) -> None:
        """The device ran out of memory: unloads every version but this one; where it is alone already, it too.

        It is then loaded anew at its next use, into memory that nothing is scattered over.
        """
        if not self._keep_within(1, f"{name}@{version}"):
            self.unload(name, version)

    def _forget(self, key: str) -> None:
        with self._table:
            self._warm.pop(key, None)

    def _known(self, key: str, entry: StoredVersion) -> ModelVersion | None:
        with self._table:
            known = self._warm.get(key)
            if known is None or known.entry.digest != entry.digest:
                return None
            known.asked = time.monotonic()
            return known.version

    def _keep_within(self, budget: int, key: str) -> bool:
        """Unloads the versions that were longest not asked for, never ``key``, until the rest fits the budget.

        Returns whether any had to go.
        """
        gone = False
        with self._table:
            spare = sorted((each for each in self._warm if each != key), key=lambda each: self._warm[each].asked)
            while budget and spare and sum(warm.version.bytes for warm in self._warm.values()) > budget:
                del self._warm[spare.pop(0)]
                gone = True
        if gone:
            _release()
        return gone


def out_of_memory(error: BaseException) -> bool:
    """Whether the device, or this process, had no room for what was asked."""
    # torch has no error of its own for the CPU's memory (c10/core/impl/alloc_cpu.cpp).
    on_cpu = isinstance(error, RuntimeError) and "DefaultCPUAllocator: " in str(error)
    return on_cpu or isinstance(error, torch.OutOfMemoryError | MemoryError)


def _release() -> None:
    """Gives freed memory back to the device and to the system, so that others can have it."""
    gc.collect()  # a loaded graph holds itself by cycles
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    # glibc keeps what was freed in the middle of its heaps: without this, none of a version's weights came back (seen).
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)
