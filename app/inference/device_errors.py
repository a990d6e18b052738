"""What an error of a device means: memory ran out, or the device can no longer be used by this process."""

from __future__ import annotations

import torch

# torch has no separate error class for CPU memory (c10/core/impl/alloc_cpu.cpp), and the libraries of CUDA report a
# failed allocation as an error of their own. cuDNN 9 has new names for it. If no engine of cuDNN gets its workspace,
# torch says only that it found none.
_FULL = (
    "DefaultCPUAllocator: ",
    "CUDA out of memory",
    "CUDA error: out of memory",
    "CUDA driver error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "_ALLOCATION_FAILED",
    "unable to find an engine to execute this computation",
)
# After an error of a kernel, a library that is called next reports it as a plain RuntimeError with a status of its own.
_LOST = tuple(
    f"{library}_STATUS_{status}"
    for library in ("CUBLAS", "CUDNN")
    for status in ("EXECUTION_FAILED", "INTERNAL_ERROR", "MAPPING_ERROR", "NOT_INITIALIZED")
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
    if out_of_memory(error):
        return False
    if isinstance(error, torch.AcceleratorError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _LOST)
