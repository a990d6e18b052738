"""One fold spread over several processes, as ``torchrun`` starts them: one a GPU, or gloo between CPUs.

Notable choices:
- Nothing to configure: under ``torchrun`` the processes find each other by its environment, otherwise there is one rank
  and every function here does nothing.
- Every rank holds the whole network and takes its share of each batch; gradients are averaged before each step, so the
  ranks' weights stay the same. Shares differ by one patient at most.
- Batch normalisation sees a rank's own share (as DistributedDataParallel by default); running statistics are averaged
  after each epoch. So several ranks give another, equally good network than one.
- The first rank alone scores, writes checkpoints and the version, and speaks.
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
    """Meet the other ranks for the time of the block; this rank's own device."""
    if not is_launched_by_torchrun():
        yield device
        return
    if device.type == "cuda":
        device = torch.device("cuda", distributed.get_node_local_rank())
        torch.cuda.set_device(device)
    backend = "nccl" if device.type == "cuda" else "gloo"
    distributed.init_process_group(backend, timeout=timedelta(hours=12))  # the others wait while the first prepares
    try:
        yield device
    finally:
        distributed.destroy_process_group()


def is_distributed() -> bool:
    """Whether there is more than this rank."""
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def is_first_rank() -> bool:
    """Whether this is the rank that writes and speaks."""
    return not is_distributed() or distributed.get_rank() == 0


def rank_rows(rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """This rank's rows of a batch."""
    return np.array_split(rows, distributed.get_world_size())[distributed.get_rank()] if is_distributed() else rows


def average_gradients(module: nn.Module) -> None:
    """After ``backward``: the mean over the ranks, in one message. A parameter without a gradient counts as zero."""
    if not is_distributed():
        return
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    for parameter, mean in zip(parameters, _mean(gradients), strict=True):
        parameter.grad = mean


def average_buffers(module: nn.Module, weights: dict[str, Tensor]) -> None:
    """The mean over the ranks of running statistics, in the module and in its moving average ``weights``."""
    if not is_distributed():
        return
    names = [name for name, buffer in module.named_buffers() if buffer.is_floating_point()]
    own = dict(module.named_buffers())
    found = [own[name] for name in names] + [weights[name] for name in names]
    with torch.no_grad():
        for buffer, mean in zip(found, _mean(found), strict=True):
            buffer.copy_(mean)


def broadcast(value: float, device: torch.device) -> float:
    """The first rank's value, on every rank."""
    if not is_distributed():
        return value
    box = torch.tensor([value], dtype=torch.float64, device=device)
    distributed.broadcast(box, 0)
    return float(box[0])


def barrier() -> None:
    """Wait for the other ranks."""
    if is_distributed():
        distributed.barrier()


def _mean(tensors: list[Tensor]) -> list[Tensor]:
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    distributed.all_reduce(flat)
    flat /= distributed.get_world_size()
    parts = torch.split(flat, [tensor.numel() for tensor in tensors])
    return [part.view_as(tensor) for part, tensor in zip(parts, tensors, strict=True)]
