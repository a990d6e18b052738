"""Model versions kept warm on one device.

Notable choices:
- One case at a time per device: the versions share one lock, which they hold while they predict or explain. A second
  case would only fight for the same cores, or for the card's memory.
- A version that appears in the model store later is loaded when it is first asked for; nothing restarts.
"""

from __future__ import annotations

from pathlib import Path
from threading import Lock, RLock

import torch

from app.model import ModelVersion
from app.registry import Entry, Registry
from app.sdk.types import ModelRef


class Predictor:
    """The warm versions of one worker.

    :param device: ``auto``, ``cpu`` or ``cuda``
    :param threads: CPU threads of this process; 0: as torch finds them
    """

    def __init__(self, model_store: Path, device: str = "auto", threads: int = 0) -> None:
        self.registry = Registry(model_store)
        self.device = device
        self.threads = threads
        self._warm: dict[str, tuple[Entry, ModelVersion]] = {}
        self._loading = Lock()
        self._turn = RLock()

    def version(self, name: str, version: str) -> ModelVersion:
        """The version, loaded if it was not yet, or if its manifest has been replaced since.

        :raises ModelNotFound: where the store has no such version
        :raises ModelNotReady: where its files are not what its manifest says
        """
        entry = self.registry.resolve(f"{name}@{version}")
        with self._loading:
            known = self._warm.get(f"{name}@{version}")
            if known is None or known[0].digest != entry.digest:
                loaded = ModelVersion.load(entry.folder, entry.manifest, self.device, self.threads, turn=self._turn)
                loaded.warm_up()
                self._warm[f"{name}@{version}"] = known = (entry, loaded)
            return known[1]

    def loaded(self) -> list[ModelRef]:
        """The versions that are warm now."""
        return [ModelRef(name=e.name, version=e.version, digest=e.digest) for e, _ in list(self._warm.values())]

    def unload(self, name: str, version: str) -> None:
        """Forget a version, and give its device memory back."""
        with self._loading, self._turn:
            self._warm.pop(f"{name}@{version}", None)
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
