"""What an error of a device means: memory ran out, or the device can no longer be used by this process."""

from __future__ import annotations

import torch

# torch has no separate error class for CPU memory (c10/core/impl/alloc_cpu.cpp), and the libraries of CUDA report a
# failed allocation as an error of their own.
_FULL = (
    "DefaultCPUAllocator: ",
    "CUDA out of memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)


def out_of_memory(error: BaseException) -> bool:
    """Whether the device or this process ran out of memory."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _FULL)


def device_lost(error: BaseException) -> bool:
    """Whether every later use of the device in this process will fail, too.

    An error of a CUDA kernel ends the context of the process; only a new process can use the device again.
    """
    return isinstance(error, torch.AcceleratorError) and not out_of_memory(error)
