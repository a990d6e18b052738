"""Data-parallel training of one fold under ``torchrun``: one process per GPU, or gloo between CPUs.

Design notes:
- Without ``torchrun`` there is one rank and every function does nothing.
- Every rank holds the whole network and takes its share of each batch; shares differ by at most one patient. Gradients
  are averaged before each step, so that the weights of all ranks stay equal.
- Batch norm uses the share of one rank; running statistics are averaged after each epoch. So the weights depend on the
  number of ranks.
- Only the first rank scores, writes checkpoints and the version, and reports progress.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, distributed, nn


def is_launched_by_torchrun() -> bool:
    """Whether torchrun started this process."""
    return distributed.is_available() and distributed.is_torchelastic_launched()


@contextmanager
def process_group(device: torch.device) -> Iterator[torch.device]:
    """Join the process group within the block; yields the device of this rank."""
    if not is_launched_by_torchrun():
        yield device
        return
    if device.type == "cuda":
        device = torch.device("cuda", distributed.get_node_local_rank())
        torch.cuda.set_device(device)
    backend = "nccl" if device.type == "cuda" else "gloo"
    distributed.init_process_group(
        backend, timeout=timedelta(hours=12)
    )  # the other ranks wait while the first preprocesses
    try:
        yield device
    finally:
        distributed.destroy_process_group()


def is_distributed() -> bool:
    """Whether there are several ranks."""
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def rank_count() -> int:
    """Number of ranks that train one fold."""
    return distributed.get_world_size() if is_distributed() else 1


def is_first_rank() -> bool:
    """Whether this rank writes files and reports progress."""
    return not is_distributed() or distributed.get_rank() == 0


def rank_rows(rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Rows of a batch that this rank processes."""
    return np.array_split(rows, distributed.get_world_size())[distributed.get_rank()] if is_distributed() else rows


def average_gradients(module: nn.Module) -> None:
    """Average the gradients over the ranks in one all-reduce; a missing gradient counts as zero."""
    if not is_distributed():
        return
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    for parameter, mean in zip(parameters, _mean(gradients), strict=True):
        parameter.grad = mean


def average_buffers(module: nn.Module, weights: dict[str, Tensor] | None = None) -> None:
    """Average running statistics over the ranks, in ``module`` and in its moving average ``weights`` if it has one."""
    if not is_distributed():
        return
    names = [name for name, buffer in module.named_buffers() if buffer.is_floating_point()]
    buffers = dict(module.named_buffers())
    statistics = [source[name] for source in (buffers, weights) if source is not None for name in names]
    with torch.no_grad():
        for buffer, mean in zip(statistics, _mean(statistics), strict=True):
            buffer.copy_(mean)


def broadcast(value: float, device: torch.device) -> float:
    """Value of the first rank, on every rank."""
    if not is_distributed():
        return value
    buffer = torch.tensor([value], dtype=torch.float64, device=device)
    distributed.broadcast(buffer, 0)
    return float(buffer[0])


def barrier() -> None:
    """Wait for the other ranks."""
    if is_distributed():
        distributed.barrier()


def _mean(tensors: list[Tensor]) -> list[Tensor]:
    if not tensors:  # a module without batch normalisation has no running statistics
        return []
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    distributed.all_reduce(flat)
    flat /= distributed.get_world_size()
    parts = torch.split(flat, [tensor.numel() for tensor in tensors])
    return [part.view_as(tensor) for part, tensor in zip(parts, tensors, strict=True)]
