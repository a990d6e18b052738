"""One study to prepare, as a file that any worker can carry out: how a cohort's preparation goes through the queue.

Notable choices:
- The order is a file beside the cache, under the study's own digest. The queue carries its path and nothing else: no
  path of a patient's file ever lies in the engine's tables.
- Carrying out an order twice is harmless: what is in the cache already is left there. So an order may be queued again,
  and a worker that takes over begins it anew.
- An order that cannot be carried out leaves a word of why. One that killed its worker each time it was tried is given
  up, instead of killing the next.
- Workers must see the cohort's folder under the same path: a shared disk, where they run on other machines.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from app.inference import preprocess_cache
from app.sdk.errors import RlvoError
from app.sdk.types import Input


class HasVolumes(Protocol):
    """A study with the paths of its volumes, such as a row of a training cohort."""

    @property
    def volumes(self) -> Mapping[Input, Path]: ...


S = TypeVar("S", bound=HasVolumes)

GIVEN_UP = "the worker that prepared it died, or went beyond its limits, each time it was tried"


@dataclass(frozen=True)
class PreprocessJob:
    """An order in ``folder``, the cache, under ``key``."""

    folder: Path
    key: str

    @property
    def path(self) -> Path:
        """The file that a worker is told of."""
        return self.folder / f"{self.key}.order"

    @property
    def ended(self) -> bool:
        """Whether it was carried out, or cannot be."""
        return (self.folder / f"{self.key}.safetensors").exists() or self._failed.exists()

    @property
    def given_up(self) -> bool:
        """Whether it killed its workers."""
        return self._failed.exists() and self._failed.read_text() == GIVEN_UP

    @property
    def _failed(self) -> Path:
        return self.folder / f"{self.key}.failed"

    @property
    def _tries(self) -> Path:
        return self.folder / f"{self.key}.tries"

    def carry_out(self, tries: int) -> None:
        """Prepare the study into the cache, or leave a word of why not. At most ``tries`` times, whoever dies."""
        if self.ended or not self.path.exists():
            return
        with self._tries.open("ab") as file:
            file.write(b".")
        if self._tries.stat().st_size > tries:
            self._fail(GIVEN_UP)
            return
        volumes = {Input(name): Path(path) for name, path in json.loads(self.path.read_text()).items()}
        try:
            preprocess_cache.prepare_cached(volumes, self.folder)
        except (RlvoError, OSError) as error:
            self._fail(getattr(error, "detail", None) or type(error).__name__)

    def clear(self) -> None:
        """Remove the order and what was noted of it; what was prepared stays."""
        for path in (self.path, self._failed, self._tries):
            path.unlink(missing_ok=True)

    def _fail(self, why: str) -> None:
        draft = self._failed.with_suffix(".part")
        draft.write_text(why)
        draft.replace(self._failed)


def write(studies: Sequence[S], cache: Path) -> Iterator[tuple[S, PreprocessJob]]:
    """Leave an order for each study in ``cache``; those whose files cannot be read have none."""
    cache.mkdir(parents=True, exist_ok=True)
    for study in studies:
        with suppress(OSError):
            order = PreprocessJob(cache.resolve(), preprocess_cache.cache_key(study.volumes))
            order.clear()
            draft = order.path.with_suffix(".part")
            draft.write_text(json.dumps({name: str(path.resolve()) for name, path in study.volumes.items()}))
            draft.replace(order.path)
            yield study, order


def job_at(path: Path) -> PreprocessJob:
    """The order whose file that is."""
    return PreprocessJob(path.parent, path.stem)
