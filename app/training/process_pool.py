"""Run tasks in several processes, or one after another in this process, with the same results.

Design notes:
- A task uses one CPU thread in either case, so ``--jobs`` and the number of cores change no weight.
- Processes are spawned: a fork would copy locked thread pools, and CUDA forbids it.
- Images are not pickled: every process maps the same file.
- Each task carries the writing end of the progress pipe; no process keeps a channel in a global variable.
- Linux kills the processes of a pool when their parent stops, so a killed run leaves no process behind.
"""

from __future__ import annotations

import ctypes
import hashlib
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
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from app.network.ensemble import forbid_tf32
from app.training.tasks import TrainingContext

Task = TypeVar("Task")
Result = TypeVar("Result")
Tell = Callable[[Any], None]
Work = Callable[[Task, Tell], Result]

_PR_SET_PDEATHSIG = 1  # prctl(2)


@dataclass(frozen=True)
class SharedContext:
    """A training context that can be pickled: without its images, with the path of the .npy file that holds them."""

    _context: TrainingContext
    _images: Path

    @property
    def context(self) -> TrainingContext:
        """The training context, its images memory-mapped."""
        images = np.load(self._images, mmap_mode="r")
        return replace(self._context, data=replace(self._context.data, images=images))


def share(context: TrainingContext, folder: Path) -> SharedContext:
    """Make a context that can be sent to other processes; images that are in no file are written to ``folder`` once.

    The name of the file holds the digest of the images.
    """
    images = context.data.images
    if isinstance(images, np.memmap) and isinstance(images.base, mmap.mmap) and images.filename is not None:
        path = Path(images.filename)
    else:
        path = folder / f"images-{hashlib.sha256(np.ascontiguousarray(images).data).hexdigest()[:32]}.npy"
        if not path.exists():
            folder.mkdir(parents=True, exist_ok=True)
            draft = path.with_suffix(".part")
            with draft.open("wb") as file:
                np.save(file, images)
            draft.replace(path)
    return SharedContext(replace(context, data=replace(context.data, images=images[:0])), path)


def side_by_side(work: Work[Task, Result], tasks: Sequence[Task], jobs: int, on_progress: Tell) -> list[Result]:
    """Run ``work(task, tell)`` for every task.

    Args:
        work: Function of a module. It reports progress with ``tell``; a report is shorter than a pipe's atomic write.
        tasks: One argument of ``work`` for each call; pickled if ``jobs`` is more than one.
        jobs: Number of processes; 1: this process.
        on_progress: Receives the reports in this process.

    Returns:
        The results, in the order of the tasks.
    """
    if jobs <= 1 or len(tasks) <= 1:
        with one_thread():
            return [work(task, on_progress) for task in tasks]
    context = multiprocessing.get_context("spawn")
    reader, writer = context.Pipe(duplex=False)
    listener = threading.Thread(target=_listen, args=(reader, on_progress), daemon=True)
    listener.start()
    workers = min(jobs, len(tasks))
    try:
        with ProcessPoolExecutor(workers, context, initializer=_initialise, initargs=(os.getpid(),)) as pool:
            return list(pool.map(_run, [work] * len(tasks), tasks, [writer] * len(tasks)))
    finally:
        writer.send(None)
        listener.join()
        writer.close()
        reader.close()


@contextmanager
def one_thread() -> Iterator[None]:
    """Limit torch to one CPU thread inside the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _initialise(parent: int) -> None:
    """Prepare a process of the pool: one thread, exact float32, and an end together with the parent process."""
    torch.set_num_threads(1)
    forbid_tf32()  # a setting of the process, which a spawned one does not inherit
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # the parent stopped before prctl was called
        os._exit(1)


def _run(work: Work[Task, Result], task: Task, progress: Connection) -> Result:
    return work(task, progress.send)


def _listen(reader: Connection, on_progress: Tell) -> None:
    while (report := reader.recv()) is not None:
        on_progress(report)
