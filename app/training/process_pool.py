"""Folds side by side: each in a process of its own, or one after another in this one. The weights are the same.

Notable choices:
- A fold computes on one CPU thread wherever it runs, so neither ``--jobs`` nor the machine's cores change its weights.
- Processes are spawned, not forked: a fork would inherit locked thread pools, and CUDA forbids it. Images do not
  travel: they are a file that every process maps, and the kernel keeps its pages once.
- A member of the crew dies with its parent, so that a killed run leaves nobody behind.
"""

from __future__ import annotations

import ctypes
import mmap
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from app.training.tasks import TrainingContext

Task = TypeVar("Task")
Result = TypeVar("Result")
Tell = Callable[[Any], None]
Work = Callable[[Task, Tell], Result]

_PR_SET_PDEATHSIG = 1  # prctl(2)


@dataclass(frozen=True)
class SharedContext:
    """A bench as it travels to another process: without its images, but with the file (.npy) that holds them."""

    _context: TrainingContext
    _images: Path

    @property
    def context(self) -> TrainingContext:
        """The bench, its images mapped."""
        images = np.load(self._images, mmap_mode="r")
        return replace(self._context, data=replace(self._context.data, images=images))


def share(context: TrainingContext, folder: Path) -> SharedContext:
    """The bench for other processes; images that are in memory only are written into ``folder`` once."""
    images = context.data.images
    if isinstance(images, np.memmap) and isinstance(images.base, mmap.mmap) and images.filename is not None:
        path = Path(images.filename)
    else:
        path = folder / "images.npy"
        if not path.exists():
            folder.mkdir(parents=True, exist_ok=True)
            draft = path.with_suffix(".part")
            with draft.open("wb") as file:
                np.save(file, images)
            draft.replace(path)
    return SharedContext(replace(context, data=replace(context.data, images=images[:0])), path)


def side_by_side(work: Work[Task, Result], tasks: Sequence[Task], jobs: int, on_progress: Tell) -> list[Result]:
    """``work(task, tell)`` for every task, in the order of the tasks, ``jobs`` of them at once.

    :param work: a function of a module; what it tells reaches ``on_progress`` in this process
    """
    if jobs <= 1 or len(tasks) <= 1:
        with one_thread():
            return [work(task, on_progress) for task in tasks]
    context = multiprocessing.get_context("spawn")
    words = context.SimpleQueue()
    ear = threading.Thread(target=_listen, args=(words, on_progress), daemon=True)
    ear.start()
    try:
        crew = ProcessPoolExecutor(
            min(jobs, len(tasks)), mp_context=context, initializer=_join, initargs=(words, os.getpid())
        )
        with crew:
            return list(crew.map(_work, [work] * len(tasks), tasks))
    finally:
        words.put(None)
        ear.join()


@contextmanager
def one_thread() -> Iterator[None]:
    """torch on one CPU thread, then as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


_words: Any = None  # of a crew's member: the way to its parent


def _join(words: Any, parent: int) -> None:
    """What a member does first."""
    global _words
    _words = words
    torch.set_num_threads(1)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before we asked to be told
        os._exit(1)


def _work(work: Work[Task, Result], task: Task) -> Result:
    return work(task, _words.put)


def _listen(words: Any, on_progress: Tell) -> None:
    while (told := words.get()) is not None:
        on_progress(told)
